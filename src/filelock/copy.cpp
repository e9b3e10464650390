#include "filelock/copy.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <set>
#include <string>
#include <string_view>

#include "filelock/mark.h"
#include "posix/sys.h"

namespace latchfs::filelock {
namespace {

using posix::done;

constexpr std::size_t kBuffer = std::size_t{256} << 10;
constexpr std::size_t kMostAtOnce = std::size_t{256} << 20;

bool is_lack_of_space(int err) { return err == ENOSPC || err == EDQUOT; }

// Whether all blocks are shared now; an error only if more would not help.
Result<bool> clone(int from, int to) {
  if (::ioctl(to, FICLONE, from) == 0) return true;
  if (is_lack_of_space(errno) || errno == EIO) return last_errno();
  return false;
}

Result<void> write_all(int to, const char* data, std::size_t size, off_t offset) {
  while (size > 0) {
    const ssize_t n = ::pwrite(to, data, size, offset);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return last_errno();
    data += n;
    size -= static_cast<std::size_t>(n);
    offset += n;
  }
  return {};
}

Result<void> copy_through_memory(int from, int to, off_t begin, off_t end) {
  const auto buffer = std::make_unique<char[]>(kBuffer);
  while (begin < end) {
    const auto want = std::min(kBuffer, static_cast<std::size_t>(end - begin));
    const ssize_t n = ::pread(from, buffer.get(), want, begin);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return last_errno();
    if (n == 0) return errno_code(EIO);
    if (auto r = write_all(to, buffer.get(), static_cast<std::size_t>(n), begin); !r) return r;
    begin += n;
  }
  return {};
}

Result<void> copy_range(int from, int to, off_t begin, off_t end) {
  while (begin < end) {
    off64_t in = begin;
    off64_t out = begin;
    const auto want = std::min(kMostAtOnce, static_cast<std::size_t>(end - begin));
    const ssize_t n = ::copy_file_range(from, &in, to, &out, want, 0);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && (is_lack_of_space(errno) || errno == EIO)) return last_errno();
    if (n <= 0) return copy_through_memory(from, to, begin, end);
    begin += n;
  }
  return {};
}

// What is between two stretches of data reads as zeros afterwards, by a hole where there can be
// one.
Result<void> clear_range(int to, off_t begin, off_t end) {
  if (begin >= end) return {};
  if (::fallocate(to, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, begin, end - begin) == 0)
    return {};
  if (errno != EOPNOTSUPP && errno != ENOSYS) return last_errno();
  const auto zeros = std::make_unique<char[]>(kBuffer);
  for (off_t at = begin; at < end; at += static_cast<off_t>(kBuffer)) {
    const auto size = std::min(kBuffer, static_cast<std::size_t>(end - at));
    if (auto r = write_all(to, zeros.get(), size, at); !r) return r;
  }
  return {};
}

// Calls data(begin, end) and hole(begin, end) for what the file consists of, in order.
template <class Data, class Hole>
Result<void> for_each_segment(int fd, off_t size, Data&& data, Hole&& hole) {
  for (off_t at = 0; at < size;) {
    off_t begin = ::lseek(fd, at, SEEK_DATA);
    off_t end = size;
    if (begin < 0 && errno == ENXIO) {
      begin = size;
    } else if (begin < 0) {
      begin = at;  // the file system cannot tell: it is all data
    } else if (const off_t gap = ::lseek(fd, begin, SEEK_HOLE); gap > begin) {
      end = gap;
    }
    begin = std::min(begin, size);
    end = std::min(end, size);
    if (auto r = hole(at, begin); !r) return r;
    if (begin < end) {
      if (auto r = data(begin, end); !r) return r;
    }
    at = end;
  }
  return {};
}

Result<std::set<std::string>> names_of(int fd) {
  for (;;) {
    const ssize_t size = ::flistxattr(fd, nullptr, 0);
    if (size < 0 && errno == EOPNOTSUPP) return std::set<std::string>{};
    if (size < 0) return last_errno();
    std::string list(static_cast<std::size_t>(size), '\0');
    const ssize_t got = ::flistxattr(fd, list.data(), list.size());
    if (got < 0 && errno == ERANGE) continue;
    if (got < 0) return last_errno();
    std::set<std::string> names;
    for (std::size_t at = 0; at < static_cast<std::size_t>(got);) {
      std::string name{list.c_str() + at};
      at += name.size() + 1;
      if (!is_mark_name(name)) names.insert(std::move(name));
    }
    return names;
  }
}

Result<std::string> value_of(int fd, const std::string& name) {
  for (;;) {
    const ssize_t size = ::fgetxattr(fd, name.c_str(), nullptr, 0);
    if (size < 0) return last_errno();
    std::string value(static_cast<std::size_t>(size), '\0');
    const ssize_t got = ::fgetxattr(fd, name.c_str(), value.data(), value.size());
    if (got < 0 && errno == ERANGE) continue;
    if (got < 0) return last_errno();
    value.resize(static_cast<std::size_t>(got));
    return value;
  }
}

bool must_go_along(std::string_view name) {
  return name.starts_with("user.") || name.starts_with("trusted.") ||
         name == "system.posix_acl_access" || name == "security.capability";
}

Result<void> copy_xattrs(int from, int to) {
  const auto wanted = names_of(from);
  if (!wanted) return wanted.error();
  const auto there = names_of(to);
  if (!there) return there.error();
  for (const std::string& name : *there) {
    if (wanted->contains(name)) continue;
    if (::fremovexattr(to, name.c_str()) != 0 && errno != ENODATA && must_go_along(name)) {
      return last_errno();
    }
  }
  for (const std::string& name : *wanted) {
    const auto value = value_of(from, name);
    if (!value) {
      if (must_go_along(name) && value.error() != errno_code(ENODATA)) return value.error();
      continue;
    }
    if (const auto now = value_of(to, name); now && *now == *value) continue;
    if (::fsetxattr(to, name.c_str(), value->data(), value->size(), 0) != 0 &&
        (must_go_along(name) || is_lack_of_space(errno))) {
      return last_errno();
    }
  }
  return {};
}

}  // namespace

Result<void> copy_content(int from, int to, off_t size) {
  if (size == 0) return {};
  const auto cloned = clone(from, to);
  if (!cloned) return cloned.error();
  if (*cloned) return {};
  const auto data = [&](off_t begin, off_t end) { return copy_range(from, to, begin, end); };
  const auto hole = [](off_t, off_t) { return Result<void>{}; };
  if (auto r = for_each_segment(from, size, data, hole); !r) return r;
  return done(::ftruncate(to, size));
}

Result<void> replace_content(int from, int to, off_t size) {
  if (auto r = done(::ftruncate(to, size)); !r || size == 0) return r;
  const auto cloned = clone(from, to);
  if (!cloned) return cloned.error();
  if (*cloned) return {};
  const auto data = [&](off_t begin, off_t end) { return copy_range(from, to, begin, end); };
  const auto hole = [&](off_t begin, off_t end) { return clear_range(to, begin, end); };
  return for_each_segment(from, size, data, hole);
}

Result<void> reserve_content(int empty, int from, int to, off_t size) {
  if (size == 0) return {};
  const auto cloned = clone(from, empty);
  if (!cloned) return cloned.error();
  if (*cloned) return {};
  const auto data = [&](off_t begin, off_t end) -> Result<void> {
    if (::fallocate(to, FALLOC_FL_KEEP_SIZE, begin, end - begin) == 0) return {};
    if (is_lack_of_space(errno) || errno == EIO) return last_errno();
    return {};
  };
  const auto hole = [](off_t, off_t) { return Result<void>{}; };
  return for_each_segment(from, size, data, hole);
}

Result<void> copy_owner(int to, const struct stat& from) {
  const auto now = posix::stat_of(to);
  if (!now) return now.error();
  if (now->st_uid == from.st_uid && now->st_gid == from.st_gid) return {};
  return done(::fchown(to, from.st_uid, from.st_gid));
}

Result<void> copy_attributes(int from, int to, const struct stat& attr) {
  if (auto r = copy_xattrs(from, to); !r) return r;
  if (auto r = done(::fchmod(to, attr.st_mode & 07777)); !r) return r;
  const struct timespec times[2] = {attr.st_atim, attr.st_mtim};
  return done(::futimens(to, times));
}

}  // namespace latchfs::filelock
