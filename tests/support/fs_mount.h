// Mounts of latchfs for the filesystem tests.
#pragma once

#include <string>
#include <vector>

#include "support/fs_stage.h"

namespace latchfs::fsdiff {

// Each mount by a daemon of its own; all of them share one lock table. options: each one -o.
// What it mounts throws std::runtime_error, one clear line, where the machine has no /dev/fuse.
[[nodiscard]] Mounter latchfs_mounter(std::vector<std::string> options = {});

// By a daemon that the user runs himself, through fusermount3; others may look (allow_other).
// Precondition: use_private_mounts(), since /dev/fuse and /etc/fuse.conf are made to allow it.
[[nodiscard]] Mounter users_mounter(int actor);

}  // namespace latchfs::fsdiff
