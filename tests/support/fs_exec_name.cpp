#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <vector>

#include "support/fs_exec.h"

namespace latchfs::fsdiff {
namespace {

struct Dirent {
  std::uint64_t ino;
  std::int64_t off;
  std::uint16_t size;
  std::uint8_t type;
  char name[1];
};

// What a directory's kernel buffer says: "name/type", in the order it came.
std::vector<std::string> names_in(const char* from, std::size_t size) {
  std::vector<std::string> out;
  for (std::size_t i = 0; i < size;) {
    Dirent head{};
    std::memcpy(&head, from + i, offsetof(Dirent, name));
    std::string name = escape(from + i + offsetof(Dirent, name));
    if (head.ino == 0) name += "(no inode)";
    out.push_back(name + "/" + std::to_string(head.type));
    i += head.size;
  }
  return out;
}

std::string joined(const std::vector<std::string>& names) {
  std::string out = std::to_string(names.size()) + ":";
  for (const std::string& name : names) out += " " + name;
  return out;
}

Outcome some_names(int fd, std::size_t size) {
  std::vector<char> buffer(std::max<std::size_t>(size, 1));
  Outcome out = answer(syscall(SYS_getdents64, fd, buffer.data(), size));
  if (out.ret > 0) {
    out.data = joined(names_in(buffer.data(), static_cast<std::size_t>(out.ret)));
  }
  return out;
}

Outcome all_names(int fd) {
  if (lseek(fd, 0, SEEK_SET) < 0) return answer(-1);
  std::vector<std::string> all;
  std::vector<char> buffer(32768);
  for (;;) {
    const long got = syscall(SYS_getdents64, fd, buffer.data(), buffer.size());
    if (got < 0) return answer(-1);
    if (got == 0) break;
    auto more = names_in(buffer.data(), static_cast<std::size_t>(got));
    all.insert(all.end(), more.begin(), more.end());
  }
  Outcome out;
  out.data = joined(all);
  return out;
}

}  // namespace

Outcome Executor::run_name(const Op& op) {
  const At one = first(op);
  const auto mode = static_cast<mode_t>(op.a);
  switch (op.call) {
    case Call::kMkdir:
      return answer(mkdirat(one.dir, one.c_str(), mode));
    case Call::kRmdir:
      return answer(unlinkat(one.dir, one.c_str(), AT_REMOVEDIR));
    case Call::kMknod:
      return answer(mknodat(one.dir, one.c_str(), mode, static_cast<dev_t>(op.b)));
    case Call::kSymlink:
      return answer(symlinkat(op.text.c_str(), one.dir, one.c_str()));
    case Call::kReadlink: {
      std::vector<char> into(static_cast<std::size_t>(std::max<std::int64_t>(op.a, 1)));
      Outcome out =
          answer(readlinkat(one.dir, one.c_str(), into.data(), static_cast<std::size_t>(op.a)));
      if (out.ret > 0) out.data = escape({into.data(), static_cast<std::size_t>(out.ret)});
      return out;
    }
    case Call::kLink: {
      const At two = second(op);
      return answer(linkat(one.dir, one.c_str(), two.dir, two.c_str(), static_cast<int>(op.a)));
    }
    case Call::kLinkFd: {
      const At two = second(op);
      return answer(linkat(slot(op.fd), "", two.dir, two.c_str(), AT_EMPTY_PATH));
    }
    case Call::kUnlink:
      return answer(unlinkat(one.dir, one.c_str(), 0));
    case Call::kRename: {
      const At two = second(op);
      auto rename = [&] {
        return answer(syscall(SYS_renameat2, one.dir, one.c_str(), two.dir, two.c_str(),
                              static_cast<unsigned>(op.a)));
      };
      Outcome out = rename();
      if (out.err != ESTALE) return out;
      // The kernel found under a new name what it knew under another (it was moved through a second
      // mount), in the one call in which it cannot put that right. A look puts it right.
      struct stat st {};
      (void)fstatat(one.dir, one.c_str(), &st, AT_SYMLINK_NOFOLLOW);
      (void)fstatat(two.dir, two.c_str(), &st, AT_SYMLINK_NOFOLLOW);
      return rename();
    }
    case Call::kReaddir:
      return some_names(slot(op.fd), static_cast<std::size_t>(op.a));
    default:
      return all_names(slot(op.fd));
  }
}

}  // namespace latchfs::fsdiff
