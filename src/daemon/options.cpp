#include "daemon/options.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <limits>

#include "daemon/split_options.h"

namespace latchfs::daemon {
namespace {

// Why an option's value is refused; "" when it was taken.
using Refusal = std::string;

template <class T>
std::optional<T> parse_number(std::string_view text) {
  T value{};
  const auto [end, ec] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || ec != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  return value;
}

// Seconds: what libfuse and the kernel hold as sec + nsec. No "inf", no "nan", no minus.
Refusal set_seconds(std::optional<double>& out, const std::string& text) {
  constexpr double kMostSeconds = 1e9;
  const auto value = parse_number<double>(text);
  if (!value || !std::isfinite(*value) || std::signbit(*value) || *value > kMostSeconds) {
    return "must be a number of seconds from 0 to 1000000000";
  }
  out = *value;
  return {};
}

bool is_path_component(const std::string& text) {
  return !text.empty() && text != "." && text != ".." && text.size() <= 255 &&
         text.find('/') == std::string::npos;
}

// One line in listings, JSON and logs.
Refusal set_text(std::string& out, const std::string& text, std::size_t most) {
  const bool control = std::any_of(text.begin(), text.end(), [](char ch) {
    return static_cast<unsigned char>(ch) < 0x20 || ch == 0x7f;
  });
  if (text.empty() || text.size() > most || control) {
    return fmt::format("must be 1 to {} bytes without control characters", most);
  }
  out = text;
  return {};
}

// A POSIX shared-memory name without its slash.
Refusal set_table(std::string& out, const std::string& text) {
  constexpr std::size_t kMost = 64;
  const bool plain = std::all_of(text.begin(), text.end(), [](char ch) {
    return (ch >= 'a' && ch <= 'z') || (ch >= 'A' && ch <= 'Z') || (ch >= '0' && ch <= '9') ||
           ch == '.' || ch == '_' || ch == '-';
  });
  if (!plain || text.empty() || text.front() == '.' || text.size() > kMost) {
    return fmt::format("must be 1 to {} letters, digits, '.', '_' or '-', not starting with '.'",
                       kMost);
  }
  out = text;
  return {};
}

Refusal set_admin_group(Options& o, const std::string& text, const Environment& env) {
  if (const auto gid = parse_number<std::uint32_t>(text)) {
    if (*gid == std::numeric_limits<gid_t>::max()) return "is not a group number";
    o.admin_gid = *gid;
    return {};
  }
  if (text.empty()) return "must be a group's name or number";
  o.admin_gid = env.group_by_name(text);
  return o.admin_gid ? Refusal{} : "names no group of this machine";
}

Refusal set_table_max(Options& o, const std::string& text, const Environment& env) {
  const auto size = parse_size(text);
  if (!size || *size < env.table_max_least || *size > env.table_max_most) {
    return fmt::format("must be a size from {} to {}, such as 512M",
                       print_size(env.table_max_least), print_size(env.table_max_most));
  }
  o.table_max = *size;
  return {};
}

Refusal set_log(Options& o, const std::string& text) {
  if (text != "stderr" && text != "syslog" && (text.empty() || text.front() != '/')) {
    return "must be stderr, syslog or an absolute path";
  }
  o.log = text;
  return {};
}

// One of the names, exactly.
template <class T, std::size_t N>
Refusal set_choice(T& out, const std::string& text,
                   const std::array<std::pair<std::string_view, T>, N>& choices) {
  std::string names;
  for (std::size_t i = 0; i < N; ++i) {
    if (choices[i].first == text) {
      out = choices[i].second;
      return {};
    }
    names += i == 0 ? "" : i + 1 == N ? " or " : ", ";
    names += choices[i].first;
  }
  return "must be " + names;
}

constexpr std::array<std::pair<std::string_view, log::Level>, 4> kLevels{{
    {"debug", log::Level::kDebug},
    {"info", log::Level::kInfo},
    {"warn", log::Level::kWarn},
    {"error", log::Level::kError},
}};
constexpr std::array<std::pair<std::string_view, Enforce>, 2> kEnforce{{
    {"advisory", Enforce::kAdvisory},
    {"mandatory", Enforce::kMandatory},
}};
constexpr std::array<std::pair<std::string_view, Io>, 3> kIo{{
    {"auto", Io::kAuto},
    {"direct", Io::kDirect},
    {"cached", Io::kCached},
}};
constexpr std::array<std::pair<std::string_view, Transport>, 3> kTransport{{
    {"auto", Transport::kAuto},
    {"dev", Transport::kDev},
    {"uring", Transport::kUring},
}};
constexpr std::array<std::pair<std::string_view, Cache>, 2> kCache{{
    {"strict", Cache::kStrict},
    {"relaxed", Cache::kRelaxed},
}};

Refusal set_max_locks(Options& o, const std::string& text) {
  const auto value = parse_number<std::uint64_t>(text);
  if (!value) return "must be a number; 0 is no limit";
  o.max_locks_per_user = *value;
  return {};
}

Refusal set_max_read(Options& o, const std::string& text) {
  const auto value = parse_number<std::uint32_t>(text);
  if (!value || *value < 4096) return "must be a number of bytes of at least 4096";
  o.max_read = *value;
  return {};
}

// Ours and FUSE's options that carry a value.
struct ValueOption {
  std::string_view name;
  Refusal (*set)(Options&, const std::string&, const Environment&);
};
constexpr std::array<ValueOption, 20> kValueOptions{{
    {"enforce", [](Options& o, const std::string& v,
                   const Environment&) { return set_choice(o.enforce, v, kEnforce); }},
    {"io",
     [](Options& o, const std::string& v, const Environment&) { return set_choice(o.io, v, kIo); }},
    {"transport", [](Options& o, const std::string& v,
                     const Environment&) { return set_choice(o.transport, v, kTransport); }},
    {"cache", [](Options& o, const std::string& v,
                 const Environment&) { return set_choice(o.cache, v, kCache); }},
    {"admin_group", set_admin_group},
    {"control",
     [](Options& o, const std::string& v, const Environment&) {
       if (!is_path_component(v)) return Refusal{"must be one path component"};
       return set_text(o.control, v, 255);
     }},
    {"table",
     [](Options& o, const std::string& v, const Environment&) { return set_table(o.table, v); }},
    {"table_max", set_table_max},
    {"max_locks_per_user",
     [](Options& o, const std::string& v, const Environment&) { return set_max_locks(o, v); }},
    {"node_name", [](Options& o, const std::string& v,
                     const Environment&) { return set_text(o.node_name, v, 255); }},
    {"node_address", [](Options& o, const std::string& v,
                        const Environment&) { return set_text(o.node_address, v, 255); }},
    {"snapshots", [](Options& o, const std::string& v,
                     const Environment&) { return set_text(o.snapshots, v, 4095); }},
    {"log", [](Options& o, const std::string& v, const Environment&) { return set_log(o, v); }},
    {"log_level", [](Options& o, const std::string& v,
                     const Environment&) { return set_choice(o.log_level, v, kLevels); }},
    {"attr_timeout", [](Options& o, const std::string& v,
                        const Environment&) { return set_seconds(o.attr_timeout, v); }},
    {"entry_timeout", [](Options& o, const std::string& v,
                         const Environment&) { return set_seconds(o.entry_timeout, v); }},
    {"negative_timeout", [](Options& o, const std::string& v,
                            const Environment&) { return set_seconds(o.negative_timeout, v); }},
    {"fsname", [](Options& o, const std::string& v,
                  const Environment&) { return set_text(o.fsname, v, 4095); }},
    {"subtype", [](Options& o, const std::string& v,
                   const Environment&) { return set_text(o.subtype, v, 64); }},
    {"max_read",
     [](Options& o, const std::string& v, const Environment&) { return set_max_read(o, v); }},
}};

// Said to mount(8), to fstab or to libfuse 2, nothing for us to do. "nonempty" is how every FUSE 3
// mount works. Access times are the backing file system's, whatever a FUSE mount is told
// (fs/fuse/inode.c sets S_NOATIME).
constexpr std::array<std::string_view, 26> kIgnoredFlags{
    "_netdev",  "auto",          "noauto",     "nofail",     "user",        "nouser", "users",
    "nousers",  "owner",         "group",      "defaults",   "nonempty",    "async",  "atime",
    "relatime", "norelatime",    "diratime",   "nodiratime", "strictatime", "silent", "loud",
    "lazytime", "nostrictatime", "nolazytime", "nomand",     "noiversion"};
constexpr std::array<std::string_view, 4> kIgnoredPrefixes{"x-", "X-", "comment=", "user="};

constexpr std::array<std::string_view, 11> kKernelFlags{
    "suid", "nosuid",  "dev",     "nodev",     "exec",       "noexec",
    "sync", "dirsync", "noatime", "symfollow", "nosymfollow"};

template <class Range>
bool contains(const Range& range, std::string_view text) {
  return std::find(range.begin(), range.end(), text) != range.end();
}

bool is_ignored(std::string_view text) {
  return contains(kIgnoredFlags, text) ||
         std::any_of(
             kIgnoredPrefixes.begin(), kIgnoredPrefixes.end(),
             [&](std::string_view prefix) { return text.substr(0, prefix.size()) == prefix; });
}

// A later option beats an earlier one of its pair: "nodev,dev" means dev.
void add_kernel_flag(Options& o, const std::string& flag) {
  const std::string opposite = flag.rfind("no", 0) == 0 ? flag.substr(2) : "no" + flag;
  const auto drop = [&](const std::string& text) {
    o.mount_options.erase(std::remove(o.mount_options.begin(), o.mount_options.end(), text),
                          o.mount_options.end());
  };
  drop(opposite);
  drop(flag);
  if (flag != "symfollow") o.mount_options.push_back(flag);  // what the kernel does untold
}

bool set_flag(Options& o, const std::string& text) {
  if (text == "ro" || text == "rw") {
    o.read_only = text == "ro";
  } else if (text == "allow_other") {
    o.allow_other = true;
  } else if (text == "allow_root") {
    o.allow_root = true;
  } else if (text == "default_permissions") {
    o.default_permissions = true;
  } else if (text == "auto_unmount") {
    o.auto_unmount = true;
  } else if (contains(kKernelFlags, text)) {
    add_kernel_flag(o, text);
  } else {
    return is_ignored(text);
  }
  return true;
}

Refusal set_option(Options& o, const std::string& text, const Environment& env) {
  const auto equals = text.find('=');
  const std::string name = text.substr(0, equals);
  for (const ValueOption& option : kValueOptions) {
    if (option.name != name) continue;
    if (equals == std::string::npos) return fmt::format("option '{}' needs a value", name);
    const Refusal why = option.set(o, text.substr(equals + 1), env);
    return why.empty() ? why : fmt::format("option '{}' {}", log::printable(text), why);
  }
  if (set_flag(o, text)) return {};
  if (name == "remount") {
    return "option 'remount' is not supported: unmount and mount again, or use mount -o "
           "remount,bind for ro, nosuid, nodev, noexec and nosymfollow";
  }
  return fmt::format("unknown option '{}'", log::printable(text));
}

Refusal set_options(Options& o, const std::string& list, const Environment& env) {
  const auto items = split_options(list);
  if (!items) return fmt::format("'-o {}' ends in a lone backslash", log::printable(list));
  for (const std::string& item : *items) {
    if (item.empty()) continue;  // "-o a,,b" and "-o ''": as mount(8) takes them
    if (Refusal why = set_option(o, item, env); !why.empty()) return why;
  }
  return {};
}

Refusal check_together(Options& o, std::vector<std::string> places, const Environment& env) {
  if (places.empty()) return "SOURCE and MOUNTPOINT are missing";
  if (places.size() == 1) return "MOUNTPOINT is missing";
  if (places.size() > 2) {
    return fmt::format("'{}' is one argument too many", log::printable(places[2]));
  }
  o.source = std::move(places[0]);
  o.mountpoint = std::move(places[1]);
  if (o.source.empty()) return "SOURCE is empty";
  if (o.mountpoint.empty()) return "MOUNTPOINT is empty";
  if (o.log == "stderr" && !o.foreground) return "log=stderr needs -f: a daemon has no terminal";
  if (contains(o.mount_options, "nosymfollow") && !env.root) {
    return "option 'nosymfollow' is root's: fusermount3 does not know it";
  }
  if (o.io == Io::kCached && o.enforce == Enforce::kMandatory) {
    return "io=cached and enforce=mandatory exclude each other";
  }
  if (o.allow_other && o.allow_root) return "allow_other and allow_root exclude each other";
  return {};
}

}  // namespace

std::optional<std::uint64_t> parse_size(std::string_view text) {
  std::uint64_t value{};
  const auto [end, ec] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || ec != std::errc{}) return std::nullopt;
  std::string_view suffix = text.substr(static_cast<std::size_t>(end - text.data()));
  if (suffix.empty()) return value;
  unsigned shift = 0;
  switch (suffix.front() | 0x20) {
    case 'k':
      shift = 10;
      break;
    case 'm':
      shift = 20;
      break;
    case 'g':
      shift = 30;
      break;
    case 't':
      shift = 40;
      break;
    default:
      return std::nullopt;
  }
  suffix.remove_prefix(1);
  if (!suffix.empty() && suffix != "iB") return std::nullopt;
  if (value > (std::numeric_limits<std::uint64_t>::max() >> shift)) return std::nullopt;
  return value << shift;
}

std::string print_size(std::uint64_t bytes) {
  constexpr std::string_view kUnits = "KMGT";
  std::string unit;
  for (std::size_t i = 0; i < kUnits.size() && bytes != 0 && bytes % 1024 == 0; ++i) {
    bytes /= 1024;
    unit = kUnits[i];
  }
  return fmt::format("{}{}", bytes, unit);
}

Parsed parse_options(const std::vector<std::string>& args, const Environment& env) {
  Options o;
  o.node_name = env.hostname.empty() ? "localhost" : env.hostname;
  std::vector<std::string> places;
  bool only_places = false;
  for (std::size_t i = 0; i < args.size(); ++i) {
    const std::string& arg = args[i];
    if (only_places || arg.size() < 2 || arg.front() != '-') {
      places.push_back(arg);
    } else if (arg == "--") {
      only_places = true;
    } else if (arg == "-h" || arg == "--help") {
      return Help{};
    } else if (arg == "-V" || arg == "--version") {
      return Version{};
    } else if (arg == "-f" || arg == "--foreground") {
      o.foreground = true;
    } else if (arg.rfind("-o", 0) == 0) {
      if (arg == "-o" && i + 1 == args.size()) return UsageError{"-o needs a list of options"};
      const Refusal why = set_options(o, arg == "-o" ? args[++i] : arg.substr(2), env);
      if (!why.empty()) return UsageError{why};
    } else {
      return UsageError{fmt::format("unknown option '{}'", log::printable(arg))};
    }
  }
  if (Refusal why = check_together(o, std::move(places), env); !why.empty()) return UsageError{why};
  return o;
}

std::string usage_text() {
  return R"(usage: latchfs SOURCE MOUNTPOINT [-o OPTION[,OPTION...]] [-f]

Mounts the directory SOURCE at MOUNTPOINT with every file lock kept in one table
that all mounts of the machine share, and that MOUNTPOINT/.locks shows.
Returns when the mount answers. 'umount MOUNTPOINT' or 'fusermount3 -u
MOUNTPOINT' ends it.

  -o OPTIONS      see below; '\,' is a comma within a value
  -f              stay in the foreground, log to stderr
  -h, --help      this text
  -V, --version   the version

latchfs options:
  enforce=advisory|mandatory  byte-range locks against reads and writes (advisory)
  io=auto|direct|cached       how files are read (auto): see the README
  transport=auto|dev|uring    how requests come from the kernel (auto): io_uring
                              where it is switched on, else /dev/fuse
  cache=relaxed|strict        what changes on SOURCE, not through a mount, is seen
                              within a second, or at once, which is slow (relaxed)
  admin_group=GROUP           name or number: members may do what root may
  control=NAME                name of the control directory (.locks)
  table=NAME                  shared lock table (machine)
  table_max=SIZE              most memory the table may take (1G)
  max_locks_per_user=N        ENOLCK beyond (1000000); 0: no limit
  node_name=NAME              this machine, as listings name it (host name)
  node_address=ADDRESS        (127.0.0.1)
  snapshots=GLOB              directories of the mount that are snapshots
  log=stderr|syslog|/PATH     (syslog; stderr with -f)
  log_level=debug|info|warn|error   (info)

FUSE and mount options:
  allow_other allow_root default_permissions auto_unmount
  ro rw suid nosuid dev nodev exec noexec sync dirsync noatime
  nosymfollow                 (root's only)
  nodiratime relatime strictatime lazytime and the like are accepted and do
  nothing: access times are the file system's below
  fsname=NAME subtype=NAME max_read=BYTES
  attr_timeout=S entry_timeout=S negative_timeout=S

Exit status: 0 mounted, 1 failed, 2 wrong usage.
)";
}

}  // namespace latchfs::daemon
