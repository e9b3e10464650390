#include "posix/attributes.h"

#include <fcntl.h>
#include <limits.h>
#include <linux/limits.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <cstring>
#include <string_view>

#include "posix/credentials.h"
#include "posix/sys.h"

namespace latchfs::posix {
namespace {

Result<void> outcome(const Result<long>& result) { return result.error(); }

Result<void> change_owner(const FileRef& file, const AttrChange& change, const Caller& caller) {
  const uid_t uid = change.uid.value_or(static_cast<uid_t>(-1));
  const gid_t gid = change.gid.value_or(static_cast<gid_t>(-1));
  const int fd = file.path_fd >= 0 ? file.path_fd : file.open_fd;
  Deciding deciding = about(fd);
  deciding.given = change.gid;
  return outcome(as_caller(
      caller, groups_for(fd), [&]() -> long { return ::fchownat(fd, "", uid, gid, AT_EMPTY_PATH); },
      deciding));
}

// A kernel that clears set-ID bits itself (libfuse before 3.17 cannot tell it that we do) sends the
// new mode on behalf of whoever writes, cuts or gives away the file, who need not be the owner.
bool only_clears_set_id(int fd, mode_t mode) {
  const auto st = stat_of(fd);
  if (!st) return false;
  const mode_t now = st->st_mode & 07777;
  return (now & ~kSetId) == (mode & ~kSetId) && (mode & ~now) == 0;
}

Result<void> change_mode(const FileRef& file, mode_t mode, const Caller& caller) {
  // A set-group-ID bit is dropped without a word if the file's group is not one of the caller's.
  const Groups groups = (mode & S_ISGID) != 0 ? Groups::kNow : Groups::kOnDemand;
  const auto attempt = [&]() -> long {
    if (file.open_fd >= 0) return ::fchmod(file.open_fd, mode);
    return ::fchmodat(self_fds(), FdName{file.path_fd}.c_str(), mode, 0);
  };
  const int fd = file.open_fd >= 0 ? file.open_fd : file.path_fd;
  Deciding deciding = about(fd);
  deciding.at_once = true;  // setattr_prepare()
  const auto r = as_caller(caller, groups, attempt, deciding);
  if (r || r.error() != errno_code(EPERM) || !only_clears_set_id(fd, mode)) return outcome(r);
  become_daemon();
  return done(attempt());
}

Result<void> change_size(const FileRef& file, off_t size, const Caller& caller) {
  const bool by_fd = file.open_fd >= 0 && file.writable;
  const int fd = by_fd ? file.open_fd : file.path_fd;
  const auto attempt = [&]() -> long {
    return by_fd ? ::ftruncate(fd, size) : ::truncate(FdName{fd}.absolute(), size);
  };
  const auto r = as_caller(caller, groups_for(fd), attempt, about(fd));
  // truncate(2) of one's own read-only file does not come here, the kernel has refused it; what
  // comes is nfsd (NFSD_MAY_OWNER_OVERRIDE).
  if (r || r.error() != errno_code(EACCES) || !is_owner(fd, caller)) return outcome(r);
  become_daemon();
  return done(attempt());
}

// Who may write to a file may say that he just did. utimensat(2) lets him say so of both times
// only; nfsd asks for one, with each change of size (fs/nfsd/vfs.c nfsd_setattr()).
bool may_say_now(int fd, const struct timespec (&times)[2], const Caller& caller) {
  for (const auto& time : times) {
    if (time.tv_nsec != UTIME_NOW && time.tv_nsec != UTIME_OMIT) return false;
  }
  return check_access(fd, W_OK, caller, about(fd)).ok();
}

Result<void> change_times(const FileRef& file, const AttrChange& change, const Caller& caller) {
  const struct timespec times[2] = {change.atime, change.mtime};
  const int fd = file.path_fd >= 0 ? file.path_fd : file.open_fd;
  const auto attempt = [&]() -> long {
    // Without glibc's check of the empty name.
    return ::syscall(SYS_utimensat, fd, "", times, AT_EMPTY_PATH);
  };
  const auto r = as_caller(caller, Groups::kOnDemand, attempt, about(fd));
  if (r || r.error() != errno_code(EPERM) || !may_say_now(fd, times, caller)) return outcome(r);
  become_daemon();
  return done(attempt());
}

bool is_acl(const char* name) { return std::strncmp(name, "system.posix_acl_", 17) == 0; }

// Drops the names that begin with prefix from a NUL-separated list.
std::string without(const std::string& list, std::string_view prefix) {
  std::string kept;
  for (std::size_t at = 0; at < list.size();) {
    const std::size_t length = std::strlen(list.data() + at) + 1;
    const std::string_view name{list.data() + at, length};
    if (name.substr(0, prefix.size()) != prefix) kept += name;
    at += length;
  }
  return kept;
}

}  // namespace

Result<void> change_attributes(const FileRef& file, const AttrChange& change,
                               const Caller& caller) {
  if (change.owner) {
    if (auto r = change_owner(file, change, caller); !r) return r;
  }
  if (change.size) {
    if (auto r = change_size(file, *change.size, caller); !r) return r;
  }
  if (change.mode) {
    if (auto r = change_mode(file, *change.mode, caller); !r) return r;
  }
  if (change.times) return change_times(file, change, caller);
  return {};
}

Result<std::string> read_link(int path_fd, const Caller& caller) {
  std::string text(PATH_MAX, '\0');
  // Links of proc (exe, cwd) are read by who may.
  const auto n = as_caller(caller, Groups::kOnDemand, [&]() -> long {
    return ::readlinkat(path_fd, "", text.data(), text.size());
  });
  if (!n) return n.error();
  text.resize(static_cast<std::size_t>(*n));
  return text;
}

Result<struct statvfs> file_system_of(int path_fd) {
  struct statvfs sv {};
  if (::fstatvfs(path_fd, &sv) < 0) return last_errno();
  return sv;
}

bool is_owner(int fd, const Caller& caller) {
  const auto st = stat_of(fd);
  return st && st->st_uid == caller.uid;
}

Result<void> check_access(int path_fd, int mask, const Caller& caller, const Deciding& deciding) {
  // AT_EACCESS: with the ids just set, not the process's real ones.
  const auto access = [&]() -> long {
    return ::syscall(SYS_faccessat2, path_fd, "", mask, AT_EACCESS | AT_EMPTY_PATH);
  };
  // kNow: being in the file's group may also mean less than being in none (mode 0604).
  return outcome(as_caller(caller, Groups::kNow, access, deciding));
}

Result<std::size_t> get_xattr(int path_fd, const char* name, char* value, std::size_t size) {
  become_daemon();
  const ssize_t n = ::getxattr(FdName{path_fd}.absolute(), name, value, size);
  if (n < 0) return last_errno();
  return static_cast<std::size_t>(n);
}

Result<std::string> list_xattrs(int path_fd, const Caller& caller) {
  std::string names;
  for (;;) {
    const auto size = as_caller(caller, Groups::kOnDemand, [&]() -> long {
      return ::listxattr(FdName{path_fd}.absolute(), names.data(), names.size());
    });
    if (!size) {
      // It grew between the two calls.
      if (size.error() != errno_code(ERANGE) || names.size() >= XATTR_LIST_MAX) return size.error();
      names.resize(XATTR_LIST_MAX);
      continue;
    }
    const auto length = static_cast<std::size_t>(*size);
    if (names.empty() && length != 0) {
      names.resize(length);
      continue;
    }
    names.resize(length);
    return caller.uid == 0 ? names : without(names, "trusted.");
  }
}

Result<void> set_xattr(int path_fd, const char* name, const char* value, std::size_t size,
                       int flags, const Caller& caller) {
  // An access ACL sets the mode, and with it may drop the set-group-ID bit.
  const Groups groups = is_acl(name) ? Groups::kNow : Groups::kOnDemand;
  return outcome(as_caller(
      caller, groups,
      [&]() -> long { return ::setxattr(FdName{path_fd}.absolute(), name, value, size, flags); },
      about(path_fd)));
}

Result<void> remove_xattr(int path_fd, const char* name, const Caller& caller) {
  const auto remove = [&]() -> long { return ::removexattr(FdName{path_fd}.absolute(), name); };
  const auto as_himself = as_caller(caller, Groups::kOnDemand, remove, about(path_fd));
  // Whoever writes to a file or cuts it takes its capabilities away, and the kernel asks for that
  // in his name, who need not have the right to ask himself. Where a process does ask, the kernel
  // has looked at his rights (security/commoncap.c cap_inode_killpriv(), cap_inode_removexattr()).
  // chown(path, -1, -1) asks too; natively that is the owner's alone where there are set-ID bits.
  const bool may_be_for_him = !as_himself && as_himself.error() == errno_code(EPERM) &&
                              std::string_view{name} == "security.capability" &&
                              (!has_set_id(path_fd) || check_access(path_fd, W_OK, caller));
  if (!may_be_for_him) return outcome(as_himself);
  become_daemon();
  return done(remove());
}

}  // namespace latchfs::posix
