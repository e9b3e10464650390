// Who could modify a file without anybody being asked: by a shared mapping, or by a descriptor that
// one could be made with.
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

struct Storer {
  Process process;
  bool maps{};  // else: has it open for reading and writing
  dev_t dev{};  // of the mount it does so through
};

// Processes other than this one with a shared mapping that is, or could be made, writable, or with
// a descriptor that such a mapping can be made with, of a file of that number on a mount of this
// program's type. Reads all of /proc, as the daemon: an ordinary user's sees his own processes,
// which are the only ones that can reach his mount. (A descriptor that is on its way from one
// process to another, in a socket, is not seen.)
[[nodiscard]] Result<std::vector<Storer>> possible_storers(std::uint64_t ino);

}  // namespace latchfs::posix
