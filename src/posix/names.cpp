#include "posix/names.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "posix/attributes.h"
#include "posix/credentials.h"
#include "posix/nfsd_clients.h"
#include "posix/sys.h"

namespace latchfs::posix {
namespace {

Result<void> outcome(const Result<long>& result) { return result.error(); }

Result<UniqueFd> fd_or_error(const Result<long>& result) {
  if (!result) return result.error();
  return UniqueFd{static_cast<int>(*result)};
}

Groups groups_for(mode_t mode) { return (mode & S_ISGID) != 0 ? Groups::kNow : Groups::kOnDemand; }

Deciding made_in(int dir, mode_t mode) { return (mode & S_ISGID) != 0 ? Deciding{} : about(dir); }

// Execution, in the open flags of the kernel (__FMODE_EXEC): open(2) refuses nothing it does not
// know, so it is dropped for cleanliness only.
constexpr int kKernelExec = 040;

int backing_flags(int flags) {
  return (flags & ~(O_CREAT | O_EXCL | O_TRUNC | O_DIRECT | O_NOFOLLOW | O_PATH | O_TMPFILE |
                    O_ASYNC | kKernelExec)) |
         O_NOCTTY | O_CLOEXEC;
}

}  // namespace

Result<void> make_node(int dir, const char* name, mode_t mode, dev_t rdev, const Caller& caller) {
  if (auto r = set_umask(caller.umask); !r) return r;
  return outcome(as_caller(
      caller, groups_for(mode), [&]() -> long { return ::mknodat(dir, name, mode, rdev); },
      made_in(dir, mode)));
}

Result<void> make_directory(int dir, const char* name, mode_t mode, const Caller& caller) {
  if (auto r = set_umask(caller.umask); !r) return r;
  return outcome(as_caller(
      caller, groups_for(mode), [&]() -> long { return ::mkdirat(dir, name, mode); },
      made_in(dir, mode)));
}

Result<void> make_symlink(int dir, const char* name, const char* target, const Caller& caller) {
  return outcome(as_caller(
      caller, Groups::kOnDemand, [&]() -> long { return ::symlinkat(target, dir, name); },
      about(dir)));
}

Result<void> make_link(int path_fd, int dir, const char* name, const Caller& caller) {
  // AT_EMPTY_PATH would need CAP_DAC_READ_SEARCH; the descriptor's own name does not.
  return outcome(as_caller(
      caller, Groups::kOnDemand,
      [&]() -> long {
        return ::linkat(self_fds(), FdName{path_fd}.c_str(), dir, name, AT_SYMLINK_FOLLOW);
      },
      // (Not for the file: nfsd has not looked at fs.protected_hardlinks.)
      about(dir)));
}

Result<void> remove_file(int dir, const char* name, const Caller& caller) {
  return outcome(as_caller(
      caller, Groups::kOnDemand, [&]() -> long { return ::unlinkat(dir, name, 0); }, about(dir)));
}

Result<void> remove_directory(int dir, const char* name, const Caller& caller) {
  return outcome(as_caller(
      caller, Groups::kOnDemand, [&]() -> long { return ::unlinkat(dir, name, AT_REMOVEDIR); },
      about(dir)));
}

Result<void> rename_entry(int from_dir, const char* from, int to_dir, const char* to,
                          unsigned flags, const Caller& caller) {
  const auto rename = [&]() -> long {
    return ::syscall(SYS_renameat2, from_dir, from, to_dir, to, flags);
  };
  Deciding deciding{{from_dir, to_dir, -1, -1}};
  const auto done = as_caller(caller, Groups::kOnDemand, rename, deciding);
  if (done || done.error() != errno_code(EACCES)) return outcome(done);
  become_daemon();
  if (!NfsdClients::is_server_thread(caller.pid)) return outcome(done);
  // A directory that gets another parent is itself written to, for its ".."; two that change
  // places are.
  const UniqueFd moved{::openat(from_dir, from, O_PATH | O_NOFOLLOW | O_CLOEXEC)};
  const UniqueFd other{::openat(to_dir, to, O_PATH | O_NOFOLLOW | O_CLOEXEC)};
  deciding.fds[2] = moved.get();
  deciding.fds[3] = other.get();
  return outcome(as_caller(caller, Groups::kOnDemand, rename, deciding));
}

Result<UniqueFd> open_file(int path_fd, int flags, const Caller& caller) {
  const FdName name{path_fd};
  const int backing = backing_flags(flags);
  const auto attempt = [&]() -> long { return ::openat(self_fds(), name.c_str(), backing); };
  const auto fd = as_caller(caller, Groups::kOnDemand, attempt, about(path_fd));
  if (fd || fd.error() != errno_code(EACCES)) return fd_or_error(fd);
  const bool reading = (flags & O_ACCMODE) == O_RDONLY;
  if (!is_owner(path_fd, caller) &&
      !(reading && check_access(path_fd, X_OK, caller, about(path_fd)))) {
    return fd.error();
  }
  become_daemon();
  return fd_or_error(checked(attempt()));
}

Result<UniqueFd> open_directory(int path_fd, int flags) {
  become_daemon();
  return opened(::openat(self_fds(), FdName{path_fd}.c_str(),
                         O_RDONLY | O_DIRECTORY | O_CLOEXEC | (flags & O_NOATIME)));
}

Result<Created> create_file(int dir, const char* name, int flags, mode_t mode,
                            const Caller& caller) {
  if (auto r = set_umask(caller.umask); !r) return r.error();
  const int backing = backing_flags(flags) | O_NOFOLLOW;
  // The kernel saw no such name. Somebody may have made it since, on the backing directory or
  // through another mount.
  for (int tries = 0; tries < 16; ++tries) {
    auto made = fd_or_error(as_caller(
        caller, groups_for(mode),
        [&]() -> long { return ::openat(dir, name, backing | O_CREAT | O_EXCL, mode & 07777); },
        made_in(dir, mode)));
    if (made) return Created{std::move(*made), true};
    if (made.error() != errno_code(EEXIST) || (flags & O_EXCL) != 0) return made.error();

    const auto there = opened(::openat(dir, name, O_PATH | O_NOFOLLOW | O_CLOEXEC));
    if (!there && there.error() == errno_code(ENOENT)) continue;  // and gone again
    if (!there) return there.error();
    const auto st = stat_of(there->get());
    if (!st) return st.error();
    if (!S_ISREG(st->st_mode)) return errno_code(ESTALE);
    // The kernel has not checked his right to it.
    auto fd = fd_or_error(as_caller(caller, Groups::kNow, [&]() -> long {
      return ::openat(self_fds(), FdName{there->get()}.c_str(), backing & ~O_NOFOLLOW);
    }));
    if (!fd) return fd.error();
    return Created{std::move(*fd), false};
  }
  return errno_code(ESTALE);
}

Result<UniqueFd> create_nameless(int dir, int flags, mode_t mode, const Caller& caller) {
  if (auto r = set_umask(caller.umask); !r) return r.error();
  const int backing = backing_flags(flags) | O_TMPFILE | (flags & O_EXCL);
  return fd_or_error(as_caller(
      caller, groups_for(mode), [&]() -> long { return ::openat(dir, ".", backing, mode & 07777); },
      made_in(dir, mode)));
}

}  // namespace latchfs::posix
