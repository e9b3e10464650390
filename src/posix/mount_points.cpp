#include "posix/mount_points.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <string>

#include "posix/credentials.h"
#include "posix/dir_stream.h"
#include "posix/handle_by_ino.h"
#include "posix/sys.h"

namespace latchfs::posix {
namespace {

// What the directory itself says of a name that is mounted over; 0 if it has none such.
std::uint64_t listed_ino(int dir, const char* name) {
  UniqueFd fd{
      ::openat(self_fds(), FdName{dir}.c_str(), O_RDONLY | O_DIRECTORY | O_NOATIME | O_CLOEXEC)};
  if (!fd) return 0;
  DirStream stream{std::move(fd)};
  for (;;) {
    const auto item = stream.peek(32768);
    if (!item || *item == nullptr) return 0;
    if (std::strcmp((*item)->name, name) == 0) return (*item)->ino;
    stream.advance();
  }
}

}  // namespace

// proc(5), mountinfo: "ID PARENT MAJOR:MINOR ROOT POINT OPTIONS [TAGS] - TYPE SOURCE OPTIONS".
std::string mounted_type(dev_t dev, pid_t pid) {
  const std::string device = fmt::format(" {}:{} ", major(dev), minor(dev));
  std::ifstream mounts{fmt::format("/proc/{}/mountinfo", pid)};
  for (std::string line; std::getline(mounts, line);) {
    const auto dash = line.find(" - ");
    if (dash == std::string::npos || line.find(device) > dash) continue;
    return line.substr(dash + 3, line.find(' ', dash + 3) - dash - 3);
  }
  return "";
}

Result<dev_t> device_of(int fd) {
  struct statx sx {};
  if (::statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, 0, &sx) != 0) return last_errno();
  return makedev(sx.stx_dev_major, sx.stx_dev_minor);
}

void MountPoints::set_own(dev_t dev, UniqueFd covered) noexcept {
  own_ = dev;
  covered_ = std::move(covered);
}

Result<UniqueFd> MountPoints::open_child(int dir, const char* name) const {
  struct open_how how {};
  how.flags = O_PATH | O_NOFOLLOW | O_CLOEXEC;
  how.resolve = RESOLVE_NO_XDEV;
  const long fd = ::syscall(SYS_openat2, dir, name, &how, sizeof how);
  if (fd >= 0) return UniqueFd{static_cast<int>(fd)};
  if (errno != EXDEV) return last_errno();
  return enter(dir, name);
}

Result<UniqueFd> MountPoints::enter(int dir, const char* name) const {
  become_daemon();
  auto fd = opened(::openat(dir, name, O_PATH | O_NOFOLLOW | O_CLOEXEC));
  if (!fd) return fd.error();
  const auto dev = device_of(fd->get());
  if (!dev) return dev.error();
  if (own_ && *dev == *own_) return open_covered(dir, name);
  const unsigned known = devices_.find(*dev);
  if ((known == Devices::kMost || !devices_.is_held(known)) &&
      mounted_type(*dev, ::getpid()) == kLatchfsType) {
    return open_covered(dir, name);
  }
  return fd;
}

Result<UniqueFd> MountPoints::open_covered(int dir, const char* name) const {
  const auto here = stat_of(dir);
  if (!here) return here.error();
  const auto slot = devices_.slot_of(here->st_dev, dir);
  if (const auto mount = slot ? devices_.mount(*slot) : nullptr) {
    const auto handle = handle_by_ino((*mount).get(), listed_ino(dir, name));
    auto fd = handle ? handle->open(mount->get()) : Result<UniqueFd>{handle.error()};
    if (fd || is_for_now(fd.error())) return fd;
  }
  // Else only our own, if it is in this directory.
  if (covered_) {
    const UniqueFd up{::openat(covered_.get(), "..", O_PATH | O_DIRECTORY | O_CLOEXEC)};
    const auto above = up ? stat_of(up.get()) : Result<struct stat>{last_errno()};
    if (above && file_id(*above) == file_id(*here)) {
      return opened(::fcntl(covered_.get(), F_DUPFD_CLOEXEC, 0));
    }
  }
  return errno_code(ELOOP);
}

}  // namespace latchfs::posix
