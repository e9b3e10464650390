#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <vector>

#include "support/fs_exec.h"

namespace latchfs::fsdiff {
namespace {

std::array<timespec, 2> times(const Op& op) {
  auto one = [](std::int64_t index) {
    const auto [seconds, nanoseconds] = time_choice(index);
    return timespec{seconds, nanoseconds};
  };
  return {one(op.a), one(op.b)};
}

// The fields that do not move with everything else that goes on in the file system.
std::string describe(const struct statfs& s) {
  return "type " + std::to_string(s.f_type) + " bsize " + std::to_string(s.f_bsize) + " frsize " +
         std::to_string(s.f_frsize) + " blocks " + std::to_string(s.f_blocks) + " files " +
         std::to_string(s.f_files) + " namelen " + std::to_string(s.f_namelen) + " flags " +
         std::to_string(s.f_flags) + (s.f_bavail <= s.f_bfree ? "" : " bavail > bfree");
}

// Names of a listxattr buffer, sorted: their order is the file system's own affair.
std::string sorted_names(const char* from, std::size_t size) {
  std::vector<std::string> names;
  for (std::size_t i = 0; i < size;) {
    std::string name{from + i};
    i += name.size() + 1;
    names.push_back(escape(name));
  }
  std::sort(names.begin(), names.end());
  std::string out;
  for (const std::string& name : names) out += name + " ";
  return out;
}

Outcome other_ioctl(int fd, std::int64_t which) {
  unsigned value = 0;
  switch (which) {
    case 0: {
      fsxattr attributes{};
      Outcome out = answer(ioctl(fd, FS_IOC_FSGETXATTR, &attributes));
      if (out.err == 0) out.data = std::to_string(attributes.fsx_xflags);
      return out;
    }
    case 1:
      return answer(ioctl(fd, FIONREAD, &value));
    case 2:
      return answer(ioctl(fd, FICLONE, fd));
    case 3:
      return answer(ioctl(fd, 0x5401 /* TCGETS: isatty() */, nullptr));
    default:
      return answer(ioctl(fd, 0x4c00 /* LOOP_SET_FD: nobody's business here */, nullptr));
  }
}

}  // namespace

Outcome Executor::run_attr(const Op& op) {
  const At one = first(op);
  switch (op.call) {
    case Call::kStat:
    case Call::kFstat: {
      struct stat got {};
      Outcome out = answer(op.call == Call::kStat
                               ? fstatat(one.dir, one.c_str(), &got, static_cast<int>(op.a))
                               : fstat(slot(op.fd), &got));
      out.has_stat = out.err == 0;
      out.st = got;
      return out;
    }
    case Call::kStatfs: {
      struct statfs got {};
      Outcome out = answer(op.fd >= 0 ? fstatfs(slot(op.fd), &got) : statfs(one.c_str(), &got));
      if (out.err == 0) out.data = describe(got);
      return out;
    }
    case Call::kAccess:
      return answer(syscall(SYS_faccessat2, one.dir, one.c_str(), static_cast<int>(op.a),
                            static_cast<int>(op.b)));
    case Call::kChmod:
      return answer(fchmodat(one.dir, one.c_str(), static_cast<mode_t>(op.a), 0));
    case Call::kFchmod:
      return answer(fchmod(slot(op.fd), static_cast<mode_t>(op.a)));
    case Call::kChown:
      return answer(fchownat(one.dir, one.c_str(), static_cast<uid_t>(op.a),
                             static_cast<gid_t>(op.b), static_cast<int>(op.c)));
    case Call::kFchown:
      return answer(fchown(slot(op.fd), static_cast<uid_t>(op.a), static_cast<gid_t>(op.b)));
    case Call::kUtimens: {
      const auto when = times(op);
      return answer(utimensat(one.dir, one.c_str(), when.data(), static_cast<int>(op.c)));
    }
    case Call::kFutimens: {
      const auto when = times(op);
      return answer(futimens(slot(op.fd), when.data()));
    }
    case Call::kGetflags: {
      int flags = 0;
      Outcome out = answer(ioctl(slot(op.fd), FS_IOC_GETFLAGS, &flags));
      if (out.err == 0) out.data = std::to_string(flags);
      return out;
    }
    case Call::kSetflags: {
      int flags = 0;
      const int fd = slot(op.fd);
      if (ioctl(fd, FS_IOC_GETFLAGS, &flags) != 0) return answer(-1);
      constexpr int mine = FS_APPEND_FL | FS_IMMUTABLE_FL | FS_NODUMP_FL | FS_NOATIME_FL;
      flags = (flags & ~mine) | (static_cast<int>(op.a) & mine);
      return answer(ioctl(fd, FS_IOC_SETFLAGS, &flags));
    }
    case Call::kIoctl:
      return other_ioctl(slot(op.fd), op.a);
    default:
      return run_xattr(op);
  }
}

Outcome Executor::run_xattr(const Op& op) {
  const At one = first(op);
  const char* path = one.c_str();
  const int fd = slot(op.fd);
  const char* name = op.text.c_str();
  const bool by_fd = op.fd >= 0;
  const bool of_link = op.d != 0;
  switch (op.call) {
    case Call::kSetxattr:
    case Call::kSetacl: {
      const std::string value = op.call == Call::kSetacl
                                    ? acl_value(op.c)
                                    : pattern(op.c, static_cast<std::size_t>(op.a));
      const int flags = static_cast<int>(op.b);
      if (by_fd) return answer(fsetxattr(fd, name, value.data(), value.size(), flags));
      return answer(of_link ? lsetxattr(path, name, value.data(), value.size(), flags)
                            : setxattr(path, name, value.data(), value.size(), flags));
    }
    case Call::kGetxattr: {
      std::vector<char> into(static_cast<std::size_t>(op.a) + 1);
      const auto size = static_cast<std::size_t>(op.a);
      Outcome out = answer(by_fd     ? fgetxattr(fd, name, into.data(), size)
                           : of_link ? lgetxattr(path, name, into.data(), size)
                                     : getxattr(path, name, into.data(), size));
      if (out.ret > 0 && size > 0) {
        out.data = digest(into.data(), static_cast<std::size_t>(out.ret));
      }
      return out;
    }
    case Call::kListxattr: {
      std::vector<char> into(static_cast<std::size_t>(op.a) + 1);
      const auto size = static_cast<std::size_t>(op.a);
      Outcome out = answer(by_fd     ? flistxattr(fd, into.data(), size)
                           : of_link ? llistxattr(path, into.data(), size)
                                     : listxattr(path, into.data(), size));
      if (out.ret > 0 && size > 0) {
        out.data = sorted_names(into.data(), static_cast<std::size_t>(out.ret));
      }
      return out;
    }
    default:
      if (by_fd) return answer(fremovexattr(fd, name));
      return answer(of_link ? lremovexattr(path, name) : removexattr(path, name));
  }
}

}  // namespace latchfs::fsdiff
