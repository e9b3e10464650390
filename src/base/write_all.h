// write(2) until all of it is written.
#pragma once

#include <unistd.h>

#include <cerrno>
#include <string_view>

namespace latchfs {

// False, with errno, if a part could not be written.
inline bool write_all(int fd, std::string_view text) noexcept {
  while (!text.empty()) {
    const ssize_t n = TEMP_FAILURE_RETRY(::write(fd, text.data(), text.size()));
    if (n <= 0) return false;
    text.remove_prefix(static_cast<std::size_t>(n));
  }
  return true;
}

}  // namespace latchfs
