#include "nlmd/options.h"

#include <fmt/core.h>

#include <algorithm>
#include <charconv>
#include <limits>
#include <string_view>

namespace latchfs::nlmd {
namespace {

using Refusal = std::string;  // "": taken

template <class Number>
bool read_number(const std::string& text, Number& out) {
  Number value{};
  const char* const end = text.data() + text.size();
  const auto [stop, err] = std::from_chars(text.data(), end, value);
  if (text.empty() || err != std::errc{} || stop != end) return false;
  out = value;
  return true;
}

Refusal bad(std::string_view option, const std::string& value, std::string_view wanted) {
  return fmt::format("--{}={}: {}", option, log::printable(value), wanted);
}

Refusal set_export(Options& o, const std::string& value) {
  const std::size_t equals = value.find('=');
  const auto fsid = nlm::Fsid::parse(value.substr(0, equals));
  if (!fsid || equals == std::string::npos || value.substr(equals + 1, 1) != "/") {
    return bad("export", value, "FSID=/MOUNTPOINT is wanted, FSID a number or a UUID");
  }
  if (!o.exports.emplace(*fsid, value.substr(equals + 1)).second) {
    return bad("export", value, "this FSID is given twice");
  }
  return {};
}

Refusal set_log_level(Options& o, const std::string& value) {
  const std::map<std::string, log::Level> levels{{"debug", log::Level::kDebug},
                                                 {"info", log::Level::kInfo},
                                                 {"warn", log::Level::kWarn},
                                                 {"error", log::Level::kError}};
  const auto it = levels.find(value);
  if (it == levels.end()) return bad("log-level", value, "debug, info, warn or error is wanted");
  o.log_level = it->second;
  return {};
}

bool is_table_name(const std::string& name) {
  return !name.empty() && name.size() <= 64 &&
         name.find_first_not_of(
             "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") ==
             std::string::npos;
}

Refusal set_value(Options& o, const std::string& name, const std::string& value) {
  constexpr std::string_view kNumber = "a number is wanted";
  const auto number = [&](auto& out) {
    return read_number(value, out) ? Refusal{} : bad(name, value, kNumber);
  };
  if (name == "export") return set_export(o, value);
  if (name == "listen") {
    if (!nlm::Endpoint::parse(value, 0)) return bad(name, value, "a numeric address is wanted");
    o.listen.push_back(value);
    return {};
  }
  if (name == "allow") {
    const auto network = nlm::Network::parse(value);
    if (!network) return bad(name, value, "an address or ADDRESS/BITS is wanted");
    o.allow.push_back(*network);
    return {};
  }
  if (name == "table") {
    if (!is_table_name(value)) {
      return bad(name, value, "1 to 64 letters, digits, '.', '_' and '-' are wanted");
    }
    o.table = value;
    return {};
  }
  if (name == "state-dir" || name == "log") {
    const bool word = name == "log" && (value == "stderr" || value == "syslog");
    if (!word && value.substr(0, 1) != "/") return bad(name, value, "an absolute path is wanted");
    (name == "log" ? o.log : o.state_dir) = value;
    return {};
  }
  if (name == "port") return number(o.port);
  if (name == "grace") return number(o.grace);
  if (name == "grant-patience") return number(o.grant_patience);
  if (name == "anon-uid") return number(o.anonymous_uid);
  if (name == "anon-gid") return number(o.anonymous_gid);
  if (name == "max-locks-per-user") {
    std::uint64_t most = 0;
    if (!read_number(value, most)) return bad(name, value, kNumber);
    o.max_locks_per_user = most;
    return {};
  }
  if (name == "log-level") return set_log_level(o, value);
  return fmt::format("unknown option '--{}'", log::printable(name));
}

// Whether there is such an option, and it was set.
bool set_switch(Options& o, const std::string& name) {
  if (name == "register") return o.take_lockds_place = true;
  if (name == "no-statd") return !(o.statd = false);
  if (name == "no-root-squash") return !(o.root_squash = false);
  if (name == "insecure-ports") return o.insecure_ports = true;
  if (name == "insecure-locks") return o.insecure_locks = true;
  if (name == "foreground") return o.foreground = true;
  return false;
}

}  // namespace

Parsed parse_options(const std::vector<std::string>& args) {
  Options o;
  for (std::size_t i = 0; i < args.size(); ++i) {
    const std::string& arg = args[i];
    if (arg == "-h" || arg == "--help") return Help{};
    if (arg == "-V" || arg == "--version") return Version{};
    if (arg == "-f") {
      o.foreground = true;
      continue;
    }
    if (arg.size() < 3 || arg.substr(0, 2) != "--") {
      return UsageError{fmt::format("'{}' is no option", log::printable(arg))};
    }
    const std::size_t equals = arg.find('=');
    const std::string name = arg.substr(2, equals == std::string::npos ? equals : equals - 2);
    if (equals == std::string::npos && set_switch(o, name)) continue;
    if (equals == std::string::npos && i + 1 == args.size()) {
      Options unused;
      // Known or not: "--frobnicate" is unknown, "--port" lacks something.
      const Refusal why = set_value(unused, name, "");
      return UsageError{why.starts_with("unknown") ? why : fmt::format("--{} needs a value", name)};
    }
    const Refusal why =
        set_value(o, name, equals == std::string::npos ? args[++i] : arg.substr(equals + 1));
    if (!why.empty()) return UsageError{why};
  }
  if (o.exports.empty()) return UsageError{"no --export=FSID=MOUNTPOINT is given"};
  if (o.listen.empty()) return UsageError{"no --listen=ADDRESS is given"};
  return o;
}

std::string usage_text() {
  return R"(usage: latchfs-nlm --export=FSID=MOUNTPOINT... --listen=ADDRESS... [OPTION...]

Serves the locks of NFS version 3 clients (NLM version 4) from the table that
the latchfs mounts of this machine share. Runs beside the kernel's NFS server,
instead of its lock manager. Returns when it answers; SIGTERM ends it.

  --export=FSID=MOUNTPOINT   which mount an export's fsid= (exports(5)) is: a
                             number or a UUID; repeatable
  --listen=ADDRESS           where it listens, numeric; repeatable. 0.0.0.0 is
                             all of IPv4, :: all of IPv6 and no IPv4
  --port=N                   UDP and TCP port (0: any that is free)
  --allow=NETWORK            who may ask: ADDRESS or ADDRESS/BITS; repeatable (all)
  --register                 take the place of lockd with rpcbind, and give it
                             back at the end; without it no client finds the port
  --table=NAME               the lock table, as the mounts' (machine)
  --grace=SECONDS            after the start only reclaimed locks (50; 0: none)
  --grant-patience=SECONDS   how long a client that is granted what it waited
                             for, and cannot be reached, keeps it (120)
  --no-statd                 lock without rpc.statd: nobody notices that a
                             client restarts, its locks stay
  --state-dir=DIR            who holds locks, for the next start
                             (/var/lib/latchfs-nlm)
  --no-root-squash           root of a client is root here
  --anon-uid=UID --anon-gid=GID   who root and unknown users are (65534)
  --insecure-locks           lock files also for users who may not read them, as
                             no_auth_nlm of exports(5)
  --insecure-ports           hear also who speaks from a port above 1023, so anybody
                             on a client, as insecure of exports(5)
  --max-locks-per-user=N     ENOLCK beyond (1000000); 0: no limit
  --log=stderr|syslog|/PATH  (syslog; stderr with -f)
  --log-level=debug|info|warn|error   (info)
  -f, --foreground           stay in the foreground, log to stderr
  -h, --help                 this text
  -V, --version              the version

Exit status: 0 it serves (with -f: it ended), 1 failed, 2 wrong usage.
)";
}

}  // namespace latchfs::nlmd
