#include "daemon/mount_config.h"

#include <pwd.h>
#include <unistd.h>

#include <algorithm>
#include <optional>
#include <utility>

namespace latchfs::daemon {

namespace {

fuse::DataMode data_mode(const Options& o) {
  if (o.enforce == Enforce::kMandatory) return fuse::DataMode::kDirect;
  switch (o.io) {
    case Io::kDirect:
      return fuse::DataMode::kDirect;
    case Io::kCached:
      return fuse::DataMode::kCached;
    case Io::kAuto:
      break;
  }
  return fuse::DataMode::kAuto;
}

transport::Wanted::Rings rings(const Options& o) {
  using Rings = transport::Wanted::Rings;
  switch (o.transport) {
    case Transport::kDev:
      return Rings::kNo;
    case Transport::kUring:
      return Rings::kYes;
    case Transport::kAuto:
      break;
  }
  return Rings::kIfOffered;
}

}  // namespace

// Root: /var/lib/latchfs/TABLE. Others: .local/state/latchfs/TABLE in the home directory that the
// user database names. Neither depends on the environment, on which two mounts of one user might
// disagree. "": there is none.
std::string state_directory(const std::string& table) {
  if (::geteuid() == 0) return "/var/lib/latchfs/" + table;
  const struct passwd* const user = ::getpwuid(::geteuid());
  if (user == nullptr || user->pw_dir == nullptr || user->pw_dir[0] != '/') return "";
  return std::string{user->pw_dir} + "/.local/state/latchfs/" + table;
}

fuse::Timeouts timeouts(const Options& o) {
  static constexpr double kMost = 5;
  const double otherwise = o.cache == Cache::kRelaxed ? 1 : 0;
  const auto seconds = [otherwise](const std::optional<double>& given) {
    return std::min(kMost, given.value_or(otherwise));
  };
  return {.entry = seconds(o.entry_timeout),
          .attr = seconds(o.attr_timeout),
          .negative = seconds(o.negative_timeout)};
}

fuse::MountConfig mount_config(const Options& o, Places places, std::string version) {
  fuse::MountConfig config;
  config.source = std::move(places.source);
  config.source_path = std::move(places.source_path);
  config.mountpoint = std::move(places.mountpoint);

  config.options = o.mount_options;
  const auto add = [&](bool wanted, const char* name) {
    if (wanted) config.options.emplace_back(name);
  };
  add(o.read_only, "ro");
  add(o.allow_other, "allow_other");
  add(o.allow_root, "allow_root");
  add(o.default_permissions, "default_permissions");
  add(o.auto_unmount, "auto_unmount");
  if (o.max_read != 0) config.options.push_back("max_read=" + std::to_string(o.max_read));
  config.max_read = o.max_read;
  if (!o.fsname.empty()) config.options.push_back("fsname=" + o.fsname);
  if (!o.subtype.empty()) config.options.push_back("subtype=" + o.subtype);

  // Byte-range locks hold against reads and writes only where the daemon sees each of them.
  config.mandatory = o.enforce == Enforce::kMandatory;
  config.data_mode = data_mode(o);
  config.rings = rings(o);
  config.timeouts = timeouts(o);
  config.control_name = o.control;
  config.admin_gid = o.admin_gid;
  config.table = o.table;
  config.node_name = o.node_name;
  config.node_address = o.node_address;
  config.snapshots = o.snapshots;
  config.state_directory = state_directory(o.table);
  config.version = std::move(version);
  return config;
}

}  // namespace latchfs::daemon
