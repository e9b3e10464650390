// The table of handlers, and INIT.
#include "fuse/ops.h"

#include <fcntl.h>

#include "filelock/side_files.h"
#include "fuse/file_system.h"
#include "posix/credentials.h"

namespace latchfs::fuse {
namespace {

constexpr unsigned kMaxWrite = 1U << 20;
constexpr unsigned kMaxBackground = 256;

void op_init(void* data, fuse_conn_info* conn) noexcept {
  const auto& fs = static_cast<FileSystem&>(*static_cast<transport::Channel*>(data));
  const auto want = [conn](auto capability, bool wanted) {
    const auto bit = static_cast<unsigned>(capability);
    if (wanted) {
      conn->want |= bit & conn->capable;
    } else {
      conn->want &= ~bit;
    }
  };
  // NFS: handles by node id, "." and ".." looked up.
  want(FUSE_CAP_EXPORT_SUPPORT, true);
  want(FUSE_CAP_POSIX_LOCKS, true);
  want(FUSE_CAP_FLOCK_LOCKS, true);
  // Brings default_permissions; the kernel asks for the ACLs as xattrs.
  want(FUSE_CAP_POSIX_ACL, true);
  // The umask is applied on the backing directory, unless it has a default ACL.
  want(FUSE_CAP_DONT_MASK, true);
  want(FUSE_CAP_PARALLEL_DIROPS, true);
  want(FUSE_CAP_AUTO_INVAL_DATA, true);
  want(FUSE_CAP_READDIRPLUS, true);
  // What is told is decided here: listing_habit.h.
  want(FUSE_CAP_READDIRPLUS_AUTO, false);
  want(FUSE_CAP_ASYNC_READ, true);
  want(FUSE_CAP_ASYNC_DIO, true);
  want(FUSE_CAP_SPLICE_WRITE, true);
  // Set-ID bits go on the backing file, where the writer's own rights count.
  want(FUSE_CAP_HANDLE_KILLPRIV, true);
  // A truncation must come by itself, with its lock owner, and can be refused.
  want(FUSE_CAP_ATOMIC_O_TRUNC, false);
  // A refused write must fail where it is made.
  want(FUSE_CAP_WRITEBACK_CACHE, false);
  // Not all may read the same links: below a proc that depends on who asks.
  want(FUSE_CAP_CACHE_SYMLINKS, false);
  want(FUSE_CAP_SPLICE_READ, false);
  conn->max_write = kMaxWrite;
  // libfuse breaks the session off if INIT says another value than the mount option.
  if (fs.config.max_read != 0) conn->max_read = fs.config.max_read;
  conn->max_background = kMaxBackground;
  conn->congestion_threshold = kMaxBackground * 3 / 4;
}

fuse_lowlevel_ops make_operations() {
  fuse_lowlevel_ops ops{};
  ops.init = op_init;
  ops.lookup = op_lookup;
  ops.forget = op_forget;
  ops.forget_multi = op_forget_multi;
  ops.getattr = op_getattr;
  ops.setattr = op_setattr;
  ops.readlink = op_readlink;
  ops.statfs = op_statfs;
  ops.access = op_access;
  ops.mknod = op_mknod;
  ops.mkdir = op_mkdir;
  ops.symlink = op_symlink;
  ops.link = op_link;
  ops.unlink = op_unlink;
  ops.rmdir = op_rmdir;
  ops.rename = op_rename;
  ops.open = op_open;
  ops.create = op_create;
#ifdef LATCHFS_FUSE_TMPFILE
  ops.tmpfile = op_tmpfile;
#endif
  ops.flush = op_flush;
  ops.release = op_release;
  ops.fsync = op_fsync;
  ops.read = op_read;
  ops.write = op_write;
  ops.fallocate = op_fallocate;
  ops.lseek = op_lseek;
  ops.copy_file_range = op_copy_file_range;
  ops.opendir = op_opendir;
  ops.readdir = op_readdir;
  ops.readdirplus = op_readdirplus;
  ops.releasedir = op_releasedir;
  ops.fsyncdir = op_fsyncdir;
  ops.setxattr = op_setxattr;
  ops.getxattr = op_getxattr;
  ops.listxattr = op_listxattr;
  ops.removexattr = op_removexattr;
  ops.ioctl = op_ioctl;
  ops.getlk = op_getlk;
  ops.setlk = op_setlk;
  ops.flock = op_flock;
  return ops;
}

}  // namespace

const fuse_lowlevel_ops& operations() {
  static const fuse_lowlevel_ops ops = make_operations();
  return ops;
}

FileSystem::FileSystem(MountConfig c, transport::Wanted wanted,
                       std::unique_ptr<posix::InodeTable> table, LockService& lock_service,
                       ChangeGate& change_gate, ParkingLot& lot)
    : Channel{wanted},
      config{std::move(c)},
      service{lock_service},
      gate{change_gate},
      inodes{std::move(table)},
      view{*inodes, service, config.control_name, config.admin_gid},
      filelocks{gate, *inodes, view, {config.state_directory, config.control_name}},
      tree{service, view, filelocks,
           control::Options{config.mountpoint, config.control_name, config.node_name,
                            config.node_address, config.snapshots, config.version, config.mandatory,
                            [this] { return serving(); }}},
      locks{service, lot, config.mandatory},
      changes{gate, [this](const Caller& caller) { return view.is_admin(caller); },
              !config.mandatory} {}

bool FileSystem::may_make(std::string_view name, const Caller& caller) const {
  return !filelock::is_reserved_name(name) || changes.is_admin(caller);
}

bool FileSystem::maps_shared() {
  return passes_through() || page_cached() || (!config.mandatory && direct_mmap());
}

bool FileSystem::passes_through() {
  if (!settled()) posix::become_daemon();
  return passthrough();
}

bool FileSystem::page_cached() {
  if (config.data_mode == DataMode::kCached) return true;
  return config.data_mode == DataMode::kAuto && !direct_mmap() && !passes_through();
}

control::Serving FileSystem::serving() {
  control::Serving serving;
  serving.transport = transport();
  serving.io = passes_through() ? "passthrough" : page_cached() ? "cached" : "direct";
  return serving;
}

Timeouts FileSystem::believed(const struct stat& attr) const noexcept {
  Timeouts timeouts = believed_absence();
  if (S_ISREG(attr.st_mode) && (attr.st_mode & (S_ISUID | S_ISGID)) != 0) timeouts.attr = 0;
  return timeouts;
}

Timeouts FileSystem::believed_absence() const noexcept {
  return service.shared() ? Timeouts{} : config.timeouts;
}

transport::wire::OpenWay FileSystem::way_of(const OpenFile& file) {
  namespace wire = transport::wire;
  constexpr std::uint32_t kDirect = wire::kDirectIo | wire::kParallelDirectWrites;
  if (file.backing.id() != 0) {
    // With both, read(2) and write(2) come here and mappings go to the backing file.
    return {wire::kFilePassthrough | (file.writable() ? kDirect : 0U), file.backing.id()};
  }
  // Where passthrough is to be had, but not of this file, its pages must not be cached either: the
  // rest of this mount counts on it.
  if (!page_cached()) return {kDirect, 0};
  // A write that goes through pages is cut where a page is not all there (fs/fuse/file.c
  // fuse_fill_write_pages()), and what is appended through another mount would come in between.
  if ((file.flags & O_APPEND) != 0 && direct_mmap()) return {kDirect, 0};
  return {};
}

bool made_room(fuse_req_t req, std::error_code error) noexcept {
  if (error != errno_code(ENOSPC) && error != errno_code(EDQUOT)) return false;
  file_system(req).inodes->make_room();
  return true;
}

}  // namespace latchfs::fuse
