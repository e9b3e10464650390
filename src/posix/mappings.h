// Who could modify a file without anybody being asked: by a shared mapping.
//
// A mapping made through a mount outlives the descriptor it was made with, and the mount's daemon.
// With passthrough the daemon hears of neither; what the kernel tells of it is in /proc/PID/maps:
// the device and inode number of the mount's file, not of the one beneath.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "latchfs/result.h"

namespace latchfs::posix {

// Certainly nobody has the file open for writing, or mapped through a descriptor that is: two
// system calls instead of a look at every process. fd: open to be read. SIGIO must be ignored
// (fcntl(2), F_SETLEASE). False too where it cannot be told.
[[nodiscard]] bool has_no_writer(int fd) noexcept;

struct Process {
  pid_t pid{};
  uid_t uid{};  // of its file system accesses; that of nobody (-1) if it is gone
  std::string comm;
};
[[nodiscard]] Process describe_process(pid_t pid);

// Processes other than this one with a shared mapping that is, or could be made, writable, of a
// file of that number on a mount of this program's type. Reads all of /proc: an ordinary user's
// daemon sees his own processes, which are the only ones that can reach his mount. ETIMEDOUT after
// three seconds: some process cannot be looked at now; EBUSY: too many such searches are stuck
// already.
[[nodiscard]] Result<std::vector<Process>> shared_writers(std::uint64_t ino);

}  // namespace latchfs::posix
