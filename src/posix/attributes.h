// Mode, owner, size, times, extended attributes and flags of a file.
//
// A file is given by the descriptor of its pin (O_PATH) and, where the caller came with an open
// file, by that file's descriptor: what was allowed at open stays allowed (a file made read-only
// since can still be truncated through it).
#pragma once

#include <sys/stat.h>
#include <sys/statvfs.h>

#include <cstddef>
#include <optional>
#include <string>

#include "base/caller.h"
#include "latchfs/result.h"
#include "posix/credentials.h"

namespace latchfs::posix {

struct FileRef {
  int path_fd{-1};  // -1 only if open_fd is given
  int open_fd{-1};
  bool writable{};  // open_fd is
};

// Only what is set changes: owner, size, mode, times, so that a new mode is not undone by the
// others; the first failure ends it.
struct AttrChange {
  std::optional<uid_t> uid;
  std::optional<gid_t> gid;
  bool owner{};  // chown(-1, -1) counts too: it clears set-ID bits
  std::optional<mode_t> mode;
  std::optional<off_t> size;
  bool times{};
  struct timespec atime {};  // UTIME_NOW and UTIME_OMIT as in utimensat(2)
  struct timespec mtime {};
};
Result<void> change_attributes(const FileRef& file, const AttrChange& change, const Caller& caller);

[[nodiscard]] Result<std::string> read_link(int path_fd, const Caller& caller);
[[nodiscard]] Result<struct statvfs> file_system_of(int path_fd);

// Who owns a file may do with it what nfsd lets an owner do: he could change its mode first.
[[nodiscard]] bool is_owner(int fd, const Caller& caller);

// access(2) with the caller's effective ids. mask: R_OK | W_OK | X_OK. deciding: only where the
// kernel has checked the caller for the same already.
Result<void> check_access(int path_fd, int mask, const Caller& caller,
                          const Deciding& deciding = {});

// Size 0 asks for the length; else ERANGE if it does not fit. As the daemon: the kernel has
// checked. (For trusted.* too: vfs_getxattr() does that before it asks us.)
[[nodiscard]] Result<std::size_t> get_xattr(int path_fd, const char* name, char* value,
                                            std::size_t size);
// As the caller, without trusted.* unless he is root: nobody else may see those names (xattr(7)).
// The whole list.
[[nodiscard]] Result<std::string> list_xattrs(int path_fd, const Caller& caller);
Result<void> set_xattr(int path_fd, const char* name, const char* value, std::size_t size,
                       int flags, const Caller& caller);
Result<void> remove_xattr(int path_fd, const char* name, const Caller& caller);

}  // namespace latchfs::posix
