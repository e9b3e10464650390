// What the process is allowed, set once at start while it has one thread.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "latchfs/result.h"

namespace latchfs::daemon {

// RLIMIT_NOFILE to what the hard limit, or with CAP_SYS_RESOURCE the kernel's fs.nr_open, allows.
// The limit now in force.
std::uint64_t raise_open_files() noexcept;

// RLIMIT_FSIZE to the hard limit, or with CAP_SYS_RESOURCE to none; SIGXFSZ ignored, so that what
// is left of it is EFBIG. The limit of whoever mounted is not that of the users: theirs the kernel
// asks before a write, truncate or fallocate reaches the daemon (generic_write_checks(),
// inode_newsize_ok()). The limit now in force.
std::uint64_t raise_file_size() noexcept;

// Gives CAP_SYS_RESOURCE up for good (capabilities(7)): with it the blocks ext4 reserves for root
// and the disk quotas of callers would not hold for what the daemon writes on their behalf.
// Without the capability: nothing to do.
Result<void> drop_sys_resource() noexcept;

// fs.fuse.max_request_timeout and default_request_timeout in seconds if either would abort a
// waiting lock request, as a line for the person who mounts. `directory` is /proc/sys/fs/fuse.
[[nodiscard]] std::optional<std::string> request_timeout_warning(const std::string& directory);

}  // namespace latchfs::daemon
