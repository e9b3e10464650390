// The locks held on a file, as the system lists them: /proc/locks for the kernel's own, the
// control tree's `list` for a mount's.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "support/lock_step.h"

namespace latchfs::locktest {

struct ListedLock {
  enum class Who : std::uint8_t { kProcess, kDescription, kUnknown };
  Who who{};  // kDescription: an OFD lock; kUnknown: POSIX or OFD
  pid_t pid{};
  Kind kind{};
  Mode mode{};
  std::int64_t start{};
  std::int64_t len{};  // 0: to the end of file
};

// Of the file at `path`, from /proc/locks. Throws std::runtime_error.
[[nodiscard]] std::vector<ListedLock> kernel_locks(const std::string& path);

// Whether requests wait on that file which the kernel need not serve in order of arrival, as a
// mount does. The kernel queues a request behind one lock that blocks it (fs/locks.c
// __locks_insert_block), below an earlier waiter on that lock that it conflicts with, if any: a
// tree. Two waiters that conflict are served in order of arrival if one is queued below the other.
// Otherwise
// - if they wait for different locks, or some waiter above them is blocked by a second lock too,
//   they may be woken at the same time, and the scheduler decides;
// - if the earlier one is queued below a third that goes away (a signal, SIGKILL), it queues anew,
//   behind the later one.
// arrival: when a request began to wait, as a number that grows; 0 if it is not known.
[[nodiscard]] bool kernel_waiters_entangled(
    const std::string& path, const std::function<unsigned(const ListedLock&)>& arrival);

// The whole of /.locks/list below `mount`, or with `path` (in the mount, "/a/b") only that file's,
// page by page. Throws std::runtime_error.
[[nodiscard]] std::vector<ListedLock> mount_locks(const std::string& mount,
                                                  const std::string& path = {});
// Likewise for `waiters`: what is asked for.
[[nodiscard]] std::vector<ListedLock> mount_waiters(const std::string& mount);

// A file of the control tree. Throws std::runtime_error, naming file and errno.
[[nodiscard]] std::string read_file(const std::string& path);

}  // namespace latchfs::locktest
