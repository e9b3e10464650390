// Flags of a mount that libfuse cannot ask for.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "latchfs/result.h"

namespace latchfs::fuse {

// Whether "NAME" or "NAME=..." is among the options.
[[nodiscard]] bool has_option(const std::vector<std::string>& options, std::string_view name);

// The options without those that libfuse does not know and settle_flags() sees to.
[[nodiscard]] std::vector<std::string> for_libfuse(std::vector<std::string> options);

// Gives the mount that is on top at mountpoint the per-mount flags which the options ask for, where
// libfuse has left some out. For a mount that serves nobody yet: the file system is not asked.
// Other users' flags are fusermount3's to decide: nothing is done, but nosymfollow is EPERM.
Result<void> settle_flags(const std::string& mountpoint, const std::vector<std::string>& options);

}  // namespace latchfs::fuse
