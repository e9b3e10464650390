#include "support/fs_snapshot.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>

#include "base/unique_fd.h"
#include "support/fs_exec.h"
#include "support/fs_op.h"

namespace latchfs::fsdiff {
namespace {

constexpr std::int64_t kReadWhole = 4 << 20;

// The entry is reached by its name in an open directory, so that no depth of tree and no length
// of path is too much.
std::string by_name(int dir, const std::string& name) {
  return "/proc/self/fd/" + std::to_string(dir) + "/" + name;
}

std::map<std::string, std::string> xattrs_of(const std::string& path, std::string& error) {
  std::map<std::string, std::string> out;
  std::vector<char> names(65536);
  const ssize_t size = llistxattr(path.c_str(), names.data(), names.size());
  if (size < 0) {
    if (errno != ENOTSUP) error += std::string{" llistxattr: "} + std::strerror(errno);
    return out;
  }
  for (ssize_t i = 0; i < size;) {
    const std::string name{names.data() + i};
    i += static_cast<ssize_t>(name.size()) + 1;
    std::vector<char> value(65536);
    const ssize_t got = lgetxattr(path.c_str(), name.c_str(), value.data(), value.size());
    out[escape(name)] =
        got < 0 ? std::strerror(errno) : digest(value.data(), static_cast<std::size_t>(got));
  }
  return out;
}

// The data segments of a file and their bytes, or all bytes of a small one: a sparse terabyte costs
// what is in it.
void read_content(int fd, std::int64_t size, Entry& entry) {
  std::vector<std::pair<off_t, off_t>> segments;
  for (off_t at = 0; at < size;) {
    const off_t data = lseek(fd, at, SEEK_DATA);
    if (data < 0) {
      if (errno != ENXIO) entry.error += std::string{" SEEK_DATA: "} + std::strerror(errno);
      break;
    }
    at = lseek(fd, data, SEEK_HOLE);
    segments.emplace_back(data, at);
    entry.holes += std::to_string(data) + "-" + std::to_string(at) + " ";
  }
  if (size <= kReadWhole) segments = {{0, size}};
  std::string bytes;
  std::vector<char> buffer(65536);
  for (const auto& [begin, end] : segments) {
    for (off_t i = begin; i < end;) {
      const auto wanted = std::min<std::int64_t>(end - i, static_cast<std::int64_t>(buffer.size()));
      const ssize_t got = pread(fd, buffer.data(), static_cast<std::size_t>(wanted), i);
      if (got <= 0) {
        entry.error += std::string{" pread: "} + (got < 0 ? std::strerror(errno) : "end of file");
        break;
      }
      bytes.append(buffer.data(), static_cast<std::size_t>(got));
      i += got;
    }
  }
  entry.content = digest(bytes.data(), bytes.size());
}

struct Walk {
  Snapshot out;
  std::map<ino_t, std::string> first_path;

  void entry(int dir, const std::string& name, const std::string& path) {
    Entry e;
    if (fstatat(dir, name.c_str(), &e.st, AT_SYMLINK_NOFOLLOW) != 0) {
      e.error = std::string{" fstatat: "} + std::strerror(errno);
      out[path] = e;
      return;
    }
    e.group = first_path.try_emplace(e.st.st_ino, path).first->second;
    e.xattrs = xattrs_of(by_name(dir, name), e.error);
    if (S_ISLNK(e.st.st_mode)) {
      std::vector<char> target(8192);
      const ssize_t got = readlinkat(dir, name.c_str(), target.data(), target.size());
      if (got >= 0) e.link = escape({target.data(), static_cast<std::size_t>(got)});
    } else if (S_ISREG(e.st.st_mode)) {
      const UniqueFd fd{openat(dir, name.c_str(), O_RDONLY | O_NOFOLLOW | O_NOATIME | O_CLOEXEC)};
      if (fd) {
        read_content(fd.get(), e.st.st_size, e);
      } else {
        e.error += std::string{" open: "} + std::strerror(errno);
      }
    }
    out[path] = e;
    if (S_ISDIR(e.st.st_mode)) {
      UniqueFd fd{
          openat(dir, name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_NOATIME | O_CLOEXEC)};
      if (fd) {
        directory(std::move(fd), path);
      } else {
        out[path].error += std::string{" open: "} + std::strerror(errno);
      }
    }
  }

  void directory(UniqueFd fd, const std::string& path) {
    const int raw = fd.release();
    std::unique_ptr<DIR, int (*)(DIR*)> stream{fdopendir(raw), closedir};
    if (!stream) return;
    std::vector<std::string> names;
    while (const dirent* d = readdir(stream.get())) names.emplace_back(d->d_name);
    std::sort(names.begin(), names.end());
    if (std::count(names.begin(), names.end(), ".") != 1 ||
        std::count(names.begin(), names.end(), "..") != 1) {
      out[path].error += " not exactly one . and ..";
    }
    for (const std::string& name : names) {
      if (name != "." && name != "..") entry(raw, name, path + "/" + escape(name));
    }
  }
};

std::string note(const char* what, const std::string& a, const std::string& b) {
  return a == b ? "" : std::string{" "} + what + " " + a + " vs " + b + ";";
}

std::string octal(mode_t mode) {
  char text[16];
  std::snprintf(text, sizeof text, "%07o", mode);
  return text;
}

// Blocks depend on when delayed allocation happens: only a gross difference counts.
bool about_equal(blkcnt_t a, blkcnt_t b) {
  const auto slack = std::max<blkcnt_t>(64, std::max(a, b) / 4);
  return a - b <= slack && b - a <= slack;
}

bool made_by_step(const std::string& time) { return time.rfind("step ", 0) == 0; }

}  // namespace

Snapshot take_snapshot(const std::string& root) {
  Walk walk;
  walk.entry(AT_FDCWD, root, "");
  // Named from the outside, the root must not have its own name in the groups.
  return std::move(walk.out);
}

std::string difference(const struct stat& a, const TimeName& time_a, const struct stat& b,
                       const TimeName& time_b, const CompareOptions& options) {
  using std::to_string;
  std::string out;
  out += note("mode", octal(a.st_mode), octal(b.st_mode));
  out += note("uid", to_string(a.st_uid), to_string(b.st_uid));
  out += note("gid", to_string(a.st_gid), to_string(b.st_gid));
  out += note("nlink", to_string(a.st_nlink), to_string(b.st_nlink));
  out += note("size", to_string(a.st_size), to_string(b.st_size));
  out += note("rdev", to_string(a.st_rdev), to_string(b.st_rdev));
  out += note("blksize", to_string(a.st_blksize), to_string(b.st_blksize));
  if (!about_equal(a.st_blocks, b.st_blocks)) {
    out += note("blocks", to_string(a.st_blocks), to_string(b.st_blocks));
  }
  const bool special = S_ISFIFO(a.st_mode) || S_ISCHR(a.st_mode) || S_ISBLK(a.st_mode);
  if (options.times && (options.special_times || !special)) {
    out += note("mtime", time_a(a.st_mtim), time_b(b.st_mtim));
    out += note("ctime", time_a(a.st_ctim), time_b(b.st_ctim));
    const std::string one = time_a(a.st_atim);
    const std::string two = time_b(b.st_atim);
    // The first's was made by a read that the second may have missed, or have noticed later
    // (with relatime only the first read after a change counts).
    const bool missed = options.access_times == AccessTimes::kMayMissReads && made_by_step(one);
    // relatime asks whether atime is before mtime or ctime: within one clock tick the kernel itself
    // answers by chance, on two native directories too.
    const bool by_chance = made_by_step(one) != made_by_step(two);
    if (options.access_times != AccessTimes::kIgnored && !missed && !by_chance)
      out += note("atime", one, two);
  }
  return out;
}

std::vector<std::string> differences(const Snapshot& a, const TimeName& time_a, const Snapshot& b,
                                     const TimeName& time_b, const CompareOptions& options) {
  std::vector<std::string> out;
  auto say = [&out](const std::string& path, const std::string& what) {
    if (out.size() < 20) out.push_back((path.empty() ? "the root" : path) + ":" + what);
  };
  for (const auto& [path, one] : a) {
    const auto found = b.find(path);
    if (found == b.end()) {
      say(path, " only in the first");
      continue;
    }
    const Entry& two = found->second;
    std::string what = difference(one.st, time_a, two.st, time_b, options);
    what += note("target", one.link, two.link);
    if (options.holes || one.st.st_size <= kReadWhole) {
      what += note("content", one.content, two.content);
    }
    if (options.holes) what += note("holes", one.holes, two.holes);
    what += note("same inode as", one.group, two.group);
    what += note("error", one.error, two.error);
    for (const auto& [name, value] : one.xattrs) {
      const auto other = two.xattrs.find(name);
      what += note(name.c_str(), value, other == two.xattrs.end() ? "(absent)" : other->second);
    }
    for (const auto& [name, value] : two.xattrs) {
      if (one.xattrs.count(name) == 0) what += note(name.c_str(), "(absent)", value);
    }
    if (!what.empty()) say(path, what);
  }
  for (const auto& [path, two] : b) {
    if (a.count(path) == 0) say(path, " only in the second");
  }
  return out;
}

}  // namespace latchfs::fsdiff
