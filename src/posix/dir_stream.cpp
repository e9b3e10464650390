#include "posix/dir_stream.h"

#include <dirent.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>

namespace latchfs::posix {

Result<void> DirStream::seek(off_t cookie) {
  if (cookie != 0 && cookie == position_) return {};
  if (::lseek(fd_.get(), cookie, SEEK_SET) < 0) return last_errno();
  at_ = end_ = 0;
  position_ = cookie;
  return {};
}

Result<void> DirStream::fill(std::size_t expected) {
  if (!buffer_) buffer_ = std::make_unique<char[]>(kBuffer);
  // An entry with the longest name takes 280 bytes.
  const std::size_t room = std::clamp<std::size_t>(expected, 1024, kBuffer);
  const long n = ::syscall(SYS_getdents64, fd_.get(), buffer_.get(), room);
  if (n < 0) return last_errno();
  at_ = 0;
  end_ = static_cast<std::size_t>(n);
  return {};
}

Result<const DirItem*> DirStream::peek(std::size_t expected) {
  if (at_ == end_) {
    if (auto filled = fill(expected); !filled) return filled.error();
    if (end_ == 0) return static_cast<const DirItem*>(nullptr);
  }
  const auto* raw = reinterpret_cast<const struct dirent64*>(buffer_.get() + at_);
  item_ = {raw->d_ino, raw->d_off, raw->d_type, raw->d_name};
  return static_cast<const DirItem*>(&item_);
}

void DirStream::advance() noexcept {
  at_ += reinterpret_cast<const struct dirent64*>(buffer_.get() + at_)->d_reclen;
  position_ = item_.next;
}

}  // namespace latchfs::posix
