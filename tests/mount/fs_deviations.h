// What the mount does differently from the file system below it because the kernel's FUSE client
// leaves no choice. One table: the tests read it, docs/compatibility.md ("File system") tells it to
// people. Kernel sources as of Linux 6.18.
#pragma once

#include <vector>

#include "support/fs_compare.h"

namespace latchfs::fsdiff {

[[nodiscard]] const std::vector<Deviation>& deviations();
// An ordinary user's mount, used by that user.
[[nodiscard]] const std::vector<Deviation>& deviations_of_a_users_mount();
// The same where nothing is preallocated, so that holes can be compared.
[[nodiscard]] const std::vector<Deviation>& deviations_without_preallocation();
// The same where files are made immutable and append-only.
[[nodiscard]] const std::vector<Deviation>& deviations_with_protection();

// The same for two mounts of one directory.
[[nodiscard]] const std::vector<Deviation>& deviations_between_mounts();

}  // namespace latchfs::fsdiff
