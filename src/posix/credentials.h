// Acting on the backing directory as the user who asked, so that its kernel decides and records
// owners as if he had called it himself.
//
// Linux keeps identities per thread (setfsuid(2), raw setgroups(2), capset(2)); glibc's wrappers
// would change all threads. What a thread is stays until it must be something else, because a
// change costs microseconds: code that needs the daemon's own rights says become_daemon() first,
// code that needs the caller's says as_caller(). A forgotten become_daemon() fails closed (EACCES).
//
// A thread that acts for anybody but root has no capability in force but those it changes identity
// with, and the caller's own where Groups calls for them: setfsuid(2) alone would leave it
// CAP_SYS_PTRACE and all others that are not about files.
//
// A daemon that is not root acts as itself always; only the umask follows the caller.
#pragma once

#include <array>
#include <cerrno>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "base/caller.h"
#include "latchfs/result.h"

namespace latchfs::posix {

// Supplementary groups and capabilities cost a read of /proc. kOnDemand tries with uid and gid
// alone (root's uid: with root's capabilities, the kernel has checked his) and again with all if
// that was refused. kNow is for calls that do different things to different callers when they
// succeed: set-ID bits stay or go by groups and CAP_FSETID; and where the kernel has not checked
// the caller before: a group may be denied what others have.
enum class Groups : std::uint8_t { kOnDemand, kNow };

// What a call is refused or allowed by: directories and files (descriptors, -1 for none), and the
// group that a file is given.
//
// Threads of the kernel's NFS server act as its users by override_creds(), of which /proc shows
// nothing: their groups cannot be known here. But the kernel, who knows them, has checked the call
// before it asked (`default_permissions`). So where it was refused to uid and gid alone, the caller
// is taken to be in the groups that have a say here; the backing file system still looks at what
// these may. Not where a call can also do less than it was asked for without failing, as creating
// with the set-group-ID bit: not all kernels have looked at that.
struct Deciding {
  std::array<int, 4> fds{-1, -1, -1, -1};
  std::optional<gid_t> given{};
  bool at_once{};  // not only when refused: every kernel has looked at just this
};
[[nodiscard]] inline Deciding about(int fd) noexcept { return {{fd, -1, -1, -1}}; }

// What writing to this file, cutting it or changing its owner calls for.
[[nodiscard]] Groups groups_for(int fd) noexcept;

// The daemon itself: its capabilities are in force (open_by_handle_at, any lookup).
void become_daemon() noexcept;

// The caller, by uid and gid, until something else is said: for calls on an open file that
// as_caller() cannot wrap. EOVERFLOW as below.
Result<void> become_caller(const Caller& caller) noexcept;

// This thread's umask from now on; the first call unshares it from the other threads' (CLONE_FS).
Result<void> set_umask(mode_t mask) noexcept;

namespace detail {
// EOVERFLOW for ids that the daemon's user namespace does not know.
Result<void> become(const Caller& caller, Groups groups, const Deciding& deciding = {}) noexcept;
// Takes on what the caller's thread has besides uid and gid. False: no more than there was.
// EAGAIN: the thread must not act for him.
Result<bool> take_rest(const Caller& caller, const Deciding& deciding) noexcept;
// The same for who has taken all that /proc tells.
Result<bool> take_vouched(const Caller& caller, const Deciding& deciding) noexcept;
void drop_rest() noexcept;
// The groups of somebody whose process is not on this machine. EAGAIN: the thread must not act for
// him. EOVERFLOW: one that the daemon's user namespace does not know.
Result<void> take_groups(const std::vector<gid_t>& groups) noexcept;
}  // namespace detail

// Runs `call` (returns -1 with errno, or a value) as the caller. It may be run twice, so it must
// be one system call that fails as a whole.
template <class Call>
[[nodiscard]] Result<long> as_caller(const Caller& caller, Groups groups, Call&& call,
                                     const Deciding& deciding = {}) {
  if (auto ready = detail::become(caller, groups, deciding); !ready) return ready.error();
  long value = call();
  int err = errno;
  const bool refused = value < 0 && (err == EACCES || err == EPERM);
  if (refused) {
    const auto more = groups == Groups::kOnDemand ? detail::take_rest(caller, deciding)
                                                  : detail::take_vouched(caller, deciding);
    if (more && *more) {
      value = call();
      err = errno;
    }
  }
  detail::drop_rest();
  if (value < 0) return errno_code(err);
  return value;
}

// The same for a user of whom a request from the network tells all there is: he has these groups
// and no capabilities (uid 0: the daemon's).
template <class Call>
[[nodiscard]] Result<long> as_user(uid_t uid, gid_t gid, const std::vector<gid_t>& groups,
                                   Call&& call) {
  if (auto ready = detail::become({uid, gid, 0, 0}, Groups::kOnDemand); !ready) {
    return ready.error();
  }
  long value = -1;
  int err = 0;
  const auto taken = detail::take_groups(groups);
  if (taken) {
    value = call();
    err = errno;
  }
  detail::drop_rest();
  if (!taken) return taken.error();
  if (value < 0) return errno_code(err);
  return value;
}

}  // namespace latchfs::posix
