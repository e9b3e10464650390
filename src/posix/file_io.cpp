#include "posix/file_io.h"

#include <fcntl.h>
#include <sys/uio.h>
#include <unistd.h>

#include "posix/credentials.h"
#include "posix/sys.h"

namespace latchfs::posix {
namespace {

#ifndef RWF_NOAPPEND
#define RWF_NOAPPEND 0x20  // Linux 6.9
#endif

// A file opened with O_APPEND appends whatever pwrite's offset is, and an append-only one must be
// opened so. A request may want it otherwise: fcntl(F_SETFL) has changed the flag on the mount's
// description since, or the kernel writes back what was stored into a mapping of it. So each write
// says what it wants: changing the descriptor's flag would be seen by another's write under way.
int append_flags(int now, int flags) {
  if (((now ^ flags) & O_APPEND) == 0) return 0;
  return (flags & O_APPEND) != 0 ? RWF_APPEND : RWF_NOAPPEND;
}

int sync_flags(int flags) {
  if ((flags & O_SYNC) == O_SYNC) return RWF_SYNC;
  return (flags & O_DSYNC) != 0 ? RWF_DSYNC : 0;
}

Result<long> write_once(int fd, const struct iovec& all, off_t offset, int how,
                        const Caller& caller) {
  return as_caller(caller, groups_for(fd), [&]() -> long {
    ssize_t n = 0;
    do {
      n = ::pwritev2(fd, &all, 1, offset, how);
    } while (n < 0 && errno == EINTR);
    return n;
  });
}

}  // namespace

Result<std::size_t> write_at(int fd, const char* data, std::size_t size, off_t offset, int flags,
                             const Caller& caller) {
  const int now = ::fcntl(fd, F_GETFL);
  if (now < 0) return last_errno();
  const struct iovec all { const_cast<char*>(data), size };
  const int append = append_flags(now, flags);
  auto written = write_once(fd, all, offset, append | sync_flags(flags), caller);
  if (append == RWF_NOAPPEND && written.error() == errno_code(EOPNOTSUPP)) {
    // Before Linux 6.9 there is no other way.
    if (auto r = done(::fcntl(fd, F_SETFL, now & ~O_APPEND)); !r) return r.error();
    written = write_once(fd, all, offset, sync_flags(flags), caller);
  }
  if (!written) return written.error();
  return static_cast<std::size_t>(*written);
}

Result<std::size_t> read_at(int fd, char* data, std::size_t size, off_t offset,
                            const Caller& opener) {
  if (auto r = become_caller(opener); !r) return r.error();
  std::size_t total = 0;
  while (total < size) {
    const ssize_t n = ::pread(fd, data + total, size - total, offset + static_cast<off_t>(total));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && total == 0) return last_errno();
    if (n <= 0) break;
    total += static_cast<std::size_t>(n);
  }
  return total;
}

Result<void> allocate(int fd, int mode, off_t offset, off_t length, const Caller& caller) {
  return as_caller(caller, groups_for(fd),
                   [&]() -> long { return ::fallocate(fd, mode, offset, length); })
      .error();
}

Result<std::size_t> copy_range(int from, off_t from_offset, int to, off_t to_offset,
                               std::size_t size, unsigned flags, const Caller& caller) {
  const auto copied = as_caller(caller, groups_for(to), [&]() -> long {
    off64_t in = from_offset;
    off64_t out = to_offset;
    return ::copy_file_range(from, &in, to, &out, size, flags);
  });
  if (!copied) return copied.error();
  return static_cast<std::size_t>(*copied);
}

Result<void> sync_file(int fd, bool data_only) {
  return done(data_only ? ::fdatasync(fd) : ::fsync(fd));
}

Result<void> flush_file(int fd) {
  const int copy = ::fcntl(fd, F_DUPFD_CLOEXEC, 0);
  if (copy < 0) return {};  // out of descriptors: the real close will say
  return done(::close(copy));
}

Result<off_t> seek_file(int fd, off_t offset, int whence) {
  const off_t at = ::lseek(fd, offset, whence);
  if (at < 0) return last_errno();
  return at;
}

}  // namespace latchfs::posix
