// GETATTR, SETATTR, READLINK, STATFS, ACCESS.
#include <algorithm>

#include "base/fault_point.h"
#include "fuse/control_ops.h"
#include "fuse/file_system.h"
#include "fuse/ops.h"
#include "posix/attributes.h"
#include "posix/sys.h"

namespace latchfs::fuse {
namespace {

// The file a request speaks of: through the open file it came with, or by its node.
struct Target {
  OpenFilePtr open;
  posix::PinPtr pin;
  [[nodiscard]] int fd() const { return open ? open->fd.get() : pin->fd.get(); }
  [[nodiscard]] FileId id() const { return open ? open->id : pin->id; }
};

Result<Target> find_target(FileSystem& fs, fuse_ino_t node, const fuse_file_info* info) {
  Target target;
  if (info != nullptr) target.open = fs.files.find(info->fh);
  // (A directory's fh, or none: by node.)
  if (target.open && target.open->node == node) return target;
  target.open = nullptr;
  auto pin = fs.inodes->pin(node);
  if (!pin) return pin.error();
  target.pin = std::move(*pin);
  return target;
}

// The kernel drops a file's pages when it hears of another mtime or size (fs/fuse/inode.c
// fuse_change_attributes()). Where stamps are coarse, what another mount wrote a moment ago changed
// neither: a lock's next holder would read, and build on, what was there before. So before each
// read, which alone asks with the open file (fs/fuse/file.c fuse_cache_read_iter()), the kernel
// hears of a time off by some nanoseconds that tell one lock's holder from the next. stat(2) asks
// without it, and gets the truth.
// (Not a notification to drop the pages: it waits for reads under way, in a way that not even
// SIGKILL ends, when the reads are this daemon's to serve.)
void mark_handover(struct stat& st, std::uint32_t handovers) {
  if (handovers == 0) return;
  const long off = 1 + static_cast<long>(handovers % 997);
  st.st_mtim.tv_nsec += st.st_mtim.tv_nsec < 500'000'000 ? off : -off;
}

Result<void> reply_attr(FileSystem& fs, Reply& reply, int fd, std::uint32_t handovers = 0) {
  auto st = posix::stat_of(fd);
  if (!st) return st.error();
  fs.inodes->show(*st);
  mark_handover(*st, handovers);
  reply.attr(*st, fs.believed(*st).attr);
  return {};
}

struct timespec time_for(int to_set, int given, int now, const struct timespec& value) {
  if ((to_set & now) != 0) return {0, UTIME_NOW};
  if ((to_set & given) != 0) return value;
  return {0, UTIME_OMIT};
}

posix::AttrChange decode(const struct stat& attr, int to_set) {
  posix::AttrChange change;
  if ((to_set & FUSE_SET_ATTR_UID) != 0) change.uid = attr.st_uid;
  if ((to_set & FUSE_SET_ATTR_GID) != 0) change.gid = attr.st_gid;
  if ((to_set & FUSE_SET_ATTR_MODE) != 0) change.mode = attr.st_mode & 07777;
  if ((to_set & FUSE_SET_ATTR_SIZE) != 0) change.size = attr.st_size;
  change.times = (to_set & (FUSE_SET_ATTR_ATIME | FUSE_SET_ATTR_MTIME | FUSE_SET_ATTR_ATIME_NOW |
                            FUSE_SET_ATTR_MTIME_NOW)) != 0;
  change.atime = time_for(to_set, FUSE_SET_ATTR_ATIME, FUSE_SET_ATTR_ATIME_NOW, attr.st_atim);
  change.mtime = time_for(to_set, FUSE_SET_ATTR_MTIME, FUSE_SET_ATTR_MTIME_NOW, attr.st_mtim);
  // Nothing at all is what chown(path, -1, -1) looks like here: set-ID bits go, ctime changes.
  change.owner = change.uid || change.gid || (!change.mode && !change.size && !change.times);
  return change;
}

// Before some writes (cached ones, fallocate, copy_file_range) the kernel asks that the set-ID bits
// go (fs/inode.c file_modified()), and that looks like chown(path, -1, -1) too, which not everybody
// who may write may. They go with the write that follows.
bool before_write(const Target& target, const posix::AttrChange& change, std::error_code refused,
                  const Caller& caller) {
  return change.owner && !change.uid && !change.gid && refused == errno_code(EPERM) &&
         posix::check_access(target.fd(), W_OK, caller);
}

Result<void> apply(FileSystem& fs, Reply& reply, const Target& target,
                   const posix::AttrChange& change, const Caller& caller) {
  posix::FileRef file;
  if (target.open) {
    file.open_fd = target.open->fd.get();
    file.path_fd = file.open_fd;
    file.writable = target.open->writable();
  } else {
    file.path_fd = target.pin->fd.get();
  }
  const auto changed = posix::change_attributes(file, change, caller);
  if (!changed && !before_write(target, change, changed.error(), caller)) return changed;
  return reply_attr(fs, reply, target.fd());
}

// Leave to cut or extend the file. Extending touches [old size, new size).
Result<IoRequest> truncation(const Target& target, off_t size, const Caller& caller) {
  const auto st = posix::stat_of(target.fd());
  if (!st) return st.error();
  const auto from = static_cast<std::uint64_t>(std::min(size, st->st_size));
  const auto range = ByteRange::from_half_open(from, ByteRange::kEof);
  if (!range) return range.error();
  IoRequest io;
  io.kind = IoKind::kTruncate;
  io.file = target.id();
  io.range = *range;
  io.open = target.open;
  // libfuse drops it.
  io.owner = transport::Channel::request().lock_owner.value_or(0);
  io.caller = caller;
  return io;
}

}  // namespace

void op_getattr(fuse_req_t req, fuse_ino_t node, fuse_file_info* info) noexcept {
  answer(req, [&](Reply& reply) -> Result<void> {
    FileSystem& fs = file_system(req);
    if (control::is_control(node)) return control_ops::getattr(fs, reply, node);
    const auto target = find_target(fs, node, info);
    if (!target) return target.error();
    // Before asking: whoever was granted a lock meanwhile asks again.
    const std::uint32_t handovers = target->open && fs.page_cached() ? fs.locks.handovers(node) : 0;
    return reply_attr(fs, reply, target->fd(), handovers);
  });
}

void op_setattr(fuse_req_t req, fuse_ino_t node, struct stat* attr, int to_set,
                fuse_file_info* info) noexcept {
  answer(req, [&](Reply& reply) -> Result<void> {
    FileSystem& fs = file_system(req);
    if (control::is_control(node)) return control_ops::setattr(fs, reply, node, *attr, to_set);
    const Caller caller = caller_of(req);
    auto target = find_target(fs, node, info);
    if (!target) return target.error();
    const posix::AttrChange change = decode(*attr, to_set);
    if (!change.size) {
      const auto leave = fs.changes.admit(target->fd(), target->id(), caller, EPERM);
      if (!leave) return leave.error();
      return apply(fs, reply, *target, change, caller);
    }
    const auto leave = target->open
                           ? fs.changes.admit(*target->open, ByteRange{}, caller)
                           : fs.changes.admit(target->fd(), target->id(), ByteRange{}, caller);
    if (!leave) return leave.error();
    const auto io = truncation(*target, *change.size, caller);
    if (!io) return io.error();
    const auto pass = fs.locks.admit_write(*io);
    if (!pass) return pass.error();
    return apply(fs, reply, *target, change, caller);
  });
}

void op_readlink(fuse_req_t req, fuse_ino_t node) noexcept {
  answer(req, [&](Reply& reply) -> Result<void> {
    FileSystem& fs = file_system(req);
    if (control::is_control(node)) return errno_code(EINVAL);
    const auto pin = fs.inodes->pin(node);
    if (!pin) return pin.error();
    const auto target = posix::read_link((*pin)->fd.get(), caller_of(req));
    if (!target) return target.error();
    reply.link(target->c_str());
    return {};
  });
}

void op_statfs(fuse_req_t req, fuse_ino_t node) noexcept {
  answer(req, [&](Reply& reply) -> Result<void> {
    fault_point("fuse.statfs");
    FileSystem& fs = file_system(req);
    const bool named = node != 0 && !control::is_control(node);
    const auto pin = fs.inodes->pin(named ? node : posix::NodeIds::kRoot);
    if (!pin) return pin.error();
    const auto sv = posix::file_system_of((*pin)->fd.get());
    if (!sv) return sv.error();
    reply.statfs(*sv);
    return {};
  });
}

// Not sent while default_permissions is in force, which it always is.
void op_access(fuse_req_t req, fuse_ino_t node, int mask) noexcept {
  answer(req, [&](Reply& reply) -> Result<void> {
    FileSystem& fs = file_system(req);
    if (!control::is_control(node)) {
      const auto pin = fs.inodes->pin(node);
      if (!pin) return pin.error();
      if (auto r = posix::check_access((*pin)->fd.get(), mask, caller_of(req)); !r) return r;
    }
    reply.done();
    return {};
  });
}

}  // namespace latchfs::fuse
