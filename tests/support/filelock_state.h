// What a filelock protects of a file and its backup keeps, to compare before and after.
#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <set>
#include <sstream>
#include <string>

#include "support/filelock_world.h"

namespace latchfs::test {

// The user.* attributes, in order.
inline std::string attributes_of(const std::string& path) {
  std::array<char, 4096> list{};
  const ssize_t size = ::llistxattr(path.c_str(), list.data(), list.size());
  std::set<std::string> all;
  for (ssize_t at = 0; at < size;) {
    const std::string name{list.data() + at};
    at += static_cast<ssize_t>(name.size()) + 1;
    if (name.rfind("user.", 0) != 0) continue;
    std::array<char, 256> value{};
    const ssize_t n = ::lgetxattr(path.c_str(), name.c_str(), value.data(), value.size());
    all.insert(name + "=" + std::string(value.data(), n < 0 ? 0 : static_cast<std::size_t>(n)));
  }
  std::string text;
  for (const std::string& one : all) text += one + ";";
  return text;
}

// content() of large files too.
inline std::string bytes_of(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  std::string text;
  for (ssize_t n = 1; n > 0;) {
    constexpr std::size_t kAtOnce = std::size_t{1} << 20;
    const std::size_t size = text.size();
    text.resize(size + kAtOnce);
    n = ::read(fd, text.data() + size, kAtOnce);
    text.resize(size + static_cast<std::size_t>(std::max<ssize_t>(n, 0)));
  }
  ::close(fd);
  return text;
}

struct FileLook {
  std::string content;
  std::string facts;  // mode, mtime, user.* attributes
  bool operator==(const FileLook&) const = default;
};
inline FileLook look_at(const std::string& path) {
  struct stat st {};
  if (::lstat(path.c_str(), &st) != 0) return {"", std::strerror(errno)};
  std::ostringstream out;
  out << std::oct << st.st_mode << std::dec << ' ' << st.st_mtim.tv_sec << '.' << st.st_mtim.tv_nsec
      << ' ' << attributes_of(path);
  return {bytes_of(path), out.str()};
}

// For messages: contents are long.
inline std::string difference(const FileLook& a, const FileLook& b) {
  if (a == b) return "none";
  std::ostringstream out;
  if (a.facts != b.facts) out << "'" << a.facts << "' / '" << b.facts << "'";
  if (a.content != b.content) {
    const auto end = static_cast<std::ptrdiff_t>(std::min(a.content.size(), b.content.size()));
    const auto at =
        std::mismatch(a.content.begin(), a.content.begin() + end, b.content.begin()).first -
        a.content.begin();
    out << " sizes " << a.content.size() << " / " << b.content.size() << ", first at byte " << at;
  }
  return out.str();
}

}  // namespace latchfs::test
