#include "fuse/mount_flags.h"

#include <sys/mount.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <utility>

#include "base/log.h"

namespace latchfs::fuse {
namespace {

constexpr std::string_view kNoSymlinks = "nosymfollow";

// What MS_REMOUNT with MS_BIND sets or clears; the times' flags it leaves as they are.
constexpr std::array<std::pair<std::string_view, unsigned long>, 6> kPerMount{{
    {"ro", MS_RDONLY},
    {"nosuid", MS_NOSUID},
    {"nodev", MS_NODEV},
    {"noexec", MS_NOEXEC},
    {"noatime", MS_NOATIME},
    {kNoSymlinks, MS_NOSYMFOLLOW},
}};

}  // namespace

bool has_option(const std::vector<std::string>& options, std::string_view name) {
  return std::any_of(options.begin(), options.end(), [&](const std::string& option) {
    return std::string_view{option}.substr(0, option.find('=')) == name;
  });
}

std::vector<std::string> for_libfuse(std::vector<std::string> options) {
  options.erase(std::remove(options.begin(), options.end(), kNoSymlinks), options.end());
  return options;
}

Result<void> settle_flags(const std::string& mountpoint, const std::vector<std::string>& options) {
  // With auto_unmount fusermount3 mounts, also for root. It begins with nosuid and nodev, and
  // libfuse tells it what to set and nothing of what to clear.
  const bool by_fusermount = ::geteuid() == 0 && has_option(options, "auto_unmount");
  if (!by_fusermount && !has_option(options, kNoSymlinks)) return {};
  unsigned long flags = MS_REMOUNT | MS_BIND;
  for (const auto& [name, flag] : kPerMount) {
    if (has_option(options, name)) flags |= flag;
  }
  if (::mount(nullptr, mountpoint.c_str(), nullptr, flags, nullptr) == 0) return {};
  const std::error_code error = last_errno();
  if (has_option(options, kNoSymlinks)) return error;
  // A root that may not mount by itself: stricter than asked is no reason to have no mount.
  log::warn("with auto_unmount this mount is nosuid and nodev: {}", error.message());
  return {};
}

}  // namespace latchfs::fuse
