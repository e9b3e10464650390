// The command line of latchfs, as values. Parsing touches nothing but its arguments and the
// Environment it is given, so it is tested without a machine.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/log.h"

namespace latchfs::daemon {

enum class Enforce : std::uint8_t { kAdvisory, kMandatory };

// How files are read: fuse/mount.h, DataMode.
enum class Io : std::uint8_t { kAuto, kDirect, kCached };

// How requests come from the kernel: by io_uring where it offers that (kAuto and kUring alike; who
// asked for it is told where not), or by /dev/fuse.
enum class Transport : std::uint8_t { kAuto, kDev, kUring };

// How soon what is changed on SOURCE, not through a mount, is seen: at once, or within a second.
enum class Cache : std::uint8_t { kStrict, kRelaxed };

struct Options {
  std::string source;
  std::string mountpoint;
  bool foreground{};

  Enforce enforce{Enforce::kAdvisory};
  Io io{Io::kAuto};
  Transport transport{Transport::kAuto};
  std::optional<gid_t> admin_gid;
  std::string control{".locks"};                    // one path component
  std::string table{"machine"};                     // for files of all file systems: ADR 0005
  std::optional<std::uint64_t> table_max;           // bytes
  std::optional<std::uint64_t> max_locks_per_user;  // 0: no limit
  std::string node_name;
  std::string node_address{"127.0.0.1"};
  std::string snapshots;  // a glob, "": none
  std::string log;        // "": syslog when daemonised, stderr with -f
  log::Level log_level{log::Level::kInfo};

  Cache cache{Cache::kRelaxed};
  // Seconds the kernel may believe names and attributes without asking, while no other mount shares
  // the table: as `cache` says where not given.
  std::optional<double> attr_timeout;
  std::optional<double> entry_timeout;
  std::optional<double> negative_timeout;
  bool allow_other{};
  bool allow_root{};
  bool default_permissions{};
  bool read_only{};
  bool auto_unmount{};
  std::uint32_t max_read{};  // bytes, 0: no limit
  std::string fsname;        // "": SOURCE
  std::string subtype;       // "": latchfs
  // What else goes to the kernel or fusermount3 as it is: "nodev", "nosymfollow", …
  std::vector<std::string> mount_options;
};

struct Help {};
struct Version {};
struct UsageError {
  std::string message;  // one line, without the program's name
};
using Parsed = std::variant<Options, Help, Version, UsageError>;

// What parsing must ask of the machine.
struct Environment {
  // A group's number by name; nothing if there is no such group.
  std::function<std::optional<gid_t>(const std::string&)> group_by_name;
  std::string hostname;
  // What the store can do with table_max, in bytes.
  std::uint64_t table_max_least{};
  std::uint64_t table_max_most{};
  bool root{};  // the effective user
};

// argv without the program's name.
[[nodiscard]] Parsed parse_options(const std::vector<std::string>& args, const Environment& env);

// "4096", "64K", "512M", "4G": a number with an optional binary suffix (either case, optional
// "iB"). Nothing if it is anything else or does not fit.
[[nodiscard]] std::optional<std::uint64_t> parse_size(std::string_view text);

// The same size in the largest unit that is exact: "64K", "1G", "100".
[[nodiscard]] std::string print_size(std::uint64_t bytes);

[[nodiscard]] std::string usage_text();

}  // namespace latchfs::daemon
