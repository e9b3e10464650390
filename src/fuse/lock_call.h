// Which lock call a process is in: FUSE's SETLK does not say whether F_SETLK or F_OFD_SETLK was
// called, and deadlock detection and listings must know.
#pragma once

#include <sys/types.h>

#include <array>
#include <cstdint>
#include <string_view>

#include "latchfs/types.h"

namespace latchfs::fuse {

// Looks at the system call in which thread `tid` sleeps for the answer to its request
// (/proc/TID/syscall, proc(5): needs ptrace rights over it, which root has). kPosix, kOfd, or
// kFcntl if it cannot be told: no rights, a kernel thread (nfsd), not in fcntl.
[[nodiscard]] LockKind lock_call_of(pid_t tid) noexcept;

// The same from the text of that file.
[[nodiscard]] LockKind lock_call_from(std::string_view syscall_text) noexcept;

// The task's name, NUL-padded; all NUL if it is gone.
[[nodiscard]] std::array<char, 16> task_name(pid_t pid) noexcept;

// The process (thread group) of a thread; tid itself if that cannot be read.
[[nodiscard]] pid_t process_of(pid_t tid) noexcept;

}  // namespace latchfs::fuse
