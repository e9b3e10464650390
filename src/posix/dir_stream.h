// One open directory being read: getdents64 with the backing file system's own cookies, so that
// telldir, seekdir and a directory that changes meanwhile behave as they do there.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <memory>

#include "base/unique_fd.h"
#include "latchfs/result.h"

namespace latchfs::posix {

struct DirItem {
  std::uint64_t ino{};
  off_t next{};          // the cookie of what follows
  unsigned char type{};  // DT_*
  const char* name{};    // valid until the next peek()
};

// Not thread-safe.
class DirStream {
 public:
  explicit DirStream(UniqueFd fd) noexcept : fd_{std::move(fd)} {}

  [[nodiscard]] int fd() const noexcept { return fd_.get(); }

  // The next peek() gives the entry at this cookie. 0 rewinds: entries made since are seen.
  Result<void> seek(off_t cookie);

  // The entry at the position, which stays; null at the end. `expected` is how many bytes of
  // entries the reader wants, so that little is read ahead of him.
  Result<const DirItem*> peek(std::size_t expected);
  // Past the entry that peek() gave.
  void advance() noexcept;

 private:
  Result<void> fill(std::size_t expected);

  static constexpr std::size_t kBuffer = 32768;
  UniqueFd fd_;
  std::unique_ptr<char[]> buffer_;
  std::size_t at_{};
  std::size_t end_{};
  off_t position_{};
  DirItem item_;
};

}  // namespace latchfs::posix
