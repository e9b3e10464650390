// Making, removing and renaming below a directory, as the caller. Directories are descriptors;
// names are single components.
#pragma once

#include <sys/types.h>

#include <string_view>

#include "base/caller.h"
#include "base/unique_fd.h"
#include "latchfs/result.h"

namespace latchfs::posix {

// The caller's umask applies as it would there: not where the directory has a default ACL.
Result<void> make_node(int dir, const char* name, mode_t mode, dev_t rdev, const Caller& caller);
Result<void> make_directory(int dir, const char* name, mode_t mode, const Caller& caller);
Result<void> make_symlink(int dir, const char* name, const char* target, const Caller& caller);
// path_fd: O_PATH descriptor of the file that gets one more name.
Result<void> make_link(int path_fd, int dir, const char* name, const Caller& caller);
Result<void> remove_file(int dir, const char* name, const Caller& caller);
Result<void> remove_directory(int dir, const char* name, const Caller& caller);
// flags: RENAME_*; what the file system cannot do it refuses itself.
Result<void> rename_entry(int from_dir, const char* from, int to_dir, const char* to,
                          unsigned flags, const Caller& caller);

// open(2) of a regular file that a pin holds. Flags that make or empty files are dropped, O_DIRECT
// too (the kernel's buffers are not aligned for the backing file system).
//
// As the caller. The kernel has checked his right before it asked us (default_permissions is always
// in force, FUSE_CAP_POSIX_ACL brings it), and lets two more things happen than his rights tell:
// running a program he may not read (execve(2); nfsd lets its clients read what they may run), and
// an NFS client writing the read-only file it made and owns. Those are opened as the daemon.
[[nodiscard]] Result<UniqueFd> open_file(int path_fd, int flags, const Caller& caller);

// As the daemon: reading was checked by the kernel. Of flags only O_NOATIME counts.
[[nodiscard]] Result<UniqueFd> open_directory(int path_fd, int flags);

struct Created {
  UniqueFd fd;
  bool fresh{};  // made by this call; else it existed, was not O_EXCL, and was not truncated
};
// ESTALE if something other than a regular file has got the name: the kernel looks again.
[[nodiscard]] Result<Created> create_file(int dir, const char* name, int flags, mode_t mode,
                                          const Caller& caller);
// O_TMPFILE in a directory.
[[nodiscard]] Result<UniqueFd> create_nameless(int dir, int flags, mode_t mode,
                                               const Caller& caller);

}  // namespace latchfs::posix
