// The command line of latchfs-nlm, as values. Parsing touches nothing but its arguments.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "base/log.h"
#include "nlm/address.h"
#include "nlm/nfs_handle.h"

namespace latchfs::nlmd {

struct Options {
  std::map<nlm::Fsid, std::string> exports;  // to the mount point
  std::vector<std::string> listen;           // numeric addresses
  std::uint16_t port{};                      // 0: any
  std::vector<nlm::Network> allow;           // empty: all
  std::string table{"machine"};
  std::uint32_t grace{50};            // seconds
  std::uint32_t grant_patience{120};  // seconds
  bool take_lockds_place{};
  bool statd{true};
  std::string state_dir{"/var/lib/latchfs-nlm"};
  bool root_squash{true};
  std::uint32_t anonymous_uid{65534};
  std::uint32_t anonymous_gid{65534};
  bool insecure_locks{};
  bool insecure_ports{};
  std::optional<std::uint64_t> max_locks_per_user;  // 0: no limit
  bool foreground{};
  std::string log;  // "": syslog when daemonised, stderr with -f
  log::Level log_level{log::Level::kInfo};
};

struct Help {};
struct Version {};
struct UsageError {
  std::string message;  // one line, without the program's name
};
using Parsed = std::variant<Options, Help, Version, UsageError>;

// argv without the program's name.
[[nodiscard]] Parsed parse_options(const std::vector<std::string>& args);

[[nodiscard]] std::string usage_text();

}  // namespace latchfs::nlmd
