// Reading and writing through an open backing file, as the caller.
#pragma once

#include <sys/types.h>

#include <cstddef>

#include "base/caller.h"
#include "latchfs/result.h"

namespace latchfs::posix {

// flags: those of the request, which follow fcntl(F_SETFL) and RWF_*SYNC: O_APPEND writes at the
// end whatever the offset says, O_SYNC and O_DSYNC hold for this write. May write less (a full
// disk). Set-ID bits go as the backing file system says.
[[nodiscard]] Result<std::size_t> write_at(int fd, const char* data, std::size_t size, off_t offset,
                                           int flags, const Caller& caller);

// Less than size only at the end of the file. As who opened it: files of proc show more to some
// than to others when they are read.
[[nodiscard]] Result<std::size_t> read_at(int fd, char* data, std::size_t size, off_t offset,
                                          const Caller& opener);

Result<void> allocate(int fd, int mode, off_t offset, off_t length, const Caller& caller);
[[nodiscard]] Result<std::size_t> copy_range(int from, off_t from_offset, int to, off_t to_offset,
                                             std::size_t size, unsigned flags,
                                             const Caller& caller);
Result<void> sync_file(int fd, bool data_only);
// What close(2) would say (NFS and other backing file systems report late write errors there).
Result<void> flush_file(int fd);
// SEEK_DATA, SEEK_HOLE.
[[nodiscard]] Result<off_t> seek_file(int fd, off_t offset, int whence);

}  // namespace latchfs::posix
