// IOCTL: inode flags and the like, whose argument is a plain value. ENOTTY for all others: what
// they point to is the caller's memory, or they act on the file system as a whole.
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <array>
#include <cstring>

#include "fuse/file_system.h"
#include "fuse/ops.h"
#include "latchfs/ioctl.h"
#include "posix/credentials.h"
#include "posix/sys.h"

namespace latchfs::fuse {
namespace {

struct Shape {
  std::size_t in{};
  std::size_t out{};
};

// FS_IOC_GETFLAGS and its kin are declared with long and carry an int (ioctl_iflags(2)).
bool find_shape(unsigned command, Shape& shape) {
  switch (command) {
    case FS_IOC_GETFLAGS:
    case FS_IOC_GETVERSION:
      shape = {0, sizeof(int)};
      return true;
    case FS_IOC_SETFLAGS:
      shape = {sizeof(int), 0};
      return true;
    case FS_IOC_FSGETXATTR:
      shape = {0, sizeof(struct fsxattr)};
      return true;
    case FS_IOC_FSSETXATTR:
      shape = {sizeof(struct fsxattr), 0};
      return true;
    default:
      return false;
  }
}

// For programs beside the daemon that hold locks in the same table (latchfs-nlm).
Result<void> tell_key(FileSystem& fs, Reply& reply, FileId file, uid_t caller) {
  posix::become_daemon();
  if (caller != 0 && caller != ::geteuid()) return errno_code(EPERM);
  FileKey key;
  key.dev = file.dev;
  key.ino = file.ino;
  key.mount = fs.service.mount_id();
  fs.config.table.copy(key.table, sizeof key.table - 1);
  reply.ioctl(0, &key, sizeof key);
  return {};
}

}  // namespace

void op_ioctl(fuse_req_t req, fuse_ino_t node, unsigned command, void* argument,
              fuse_file_info* info, unsigned flags, const void* in, size_t in_size,
              size_t out_size) noexcept {
  static_cast<void>(argument);
  answer(req, [&](Reply& reply) -> Result<void> {
    FileSystem& fs = file_system(req);
    Shape shape;
    if (control::is_control(node)) return errno_code(ENOTTY);
    const bool wants_key = command == kIocFileKey;
    if (wants_key) {
      shape = {0, sizeof(FileKey)};
    } else if (!find_shape(command, shape)) {
      return errno_code(ENOTTY);
    }
    if ((flags & FUSE_IOCTL_COMPAT) != 0 || in_size < shape.in || out_size < shape.out) {
      return errno_code(ENOTTY);
    }
    const OpenFilePtr file = (flags & FUSE_IOCTL_DIR) == 0 ? fs.files.find(info->fh) : nullptr;
    const auto dir = (flags & FUSE_IOCTL_DIR) != 0 ? fs.dirs.find(info->fh) : nullptr;
    if (!file && !dir) return errno_code(EBADF);
    const int fd = file ? file->fd.get() : dir->fd();
    if (wants_key) {
      const auto st = posix::stat_of(fd);
      if (!st) return st.error();
      return tell_key(fs, reply, posix::file_id(*st), caller_of(req).uid);
    }

    ChangePass change;
    if (shape.in != 0 && file) {
      auto leave = fs.changes.admit(fd, file->id, caller_of(req), EPERM);
      if (!leave) return leave.error();
      change = std::move(*leave);
    }
    alignas(long) std::array<char, sizeof(struct fsxattr)> buffer{};
    if (shape.in != 0) std::memcpy(buffer.data(), in, shape.in);
    const auto result = posix::as_caller(caller_of(req), posix::Groups::kOnDemand, [&]() -> long {
      return ::ioctl(fd, command, buffer.data());
    });
    if (!result) return result.error();
    // It changes ctime, of which the kernel takes no notice.
    if (shape.in != 0 && fs.config.timeouts.attr > 0) fs.forget_attributes(node);
    reply.ioctl(static_cast<int>(*result), buffer.data(), shape.out);
    return {};
  });
}

}  // namespace latchfs::fuse
