#include "nlm/mount_files.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include <array>
#include <cstring>

#include "base/clock.h"
#include "base/log.h"
#include "latchfs/ioctl.h"
#include "posix/credentials.h"
#include "posix/file_handle.h"
#include "posix/sys.h"

namespace latchfs::nlm {
namespace {

constexpr std::int64_t kKeptNs = 2'000'000'000;
constexpr int kFirstControlBit = 62;  // of node ids: with it or the next one, no file of SOURCE
constexpr int kInode64AndGeneration = 0x81;  // FILEID_INO64_GEN (linux/exportfs.h)

bool mount_is_gone(std::error_code error) {
  return error == errno_code(ESTALE) || error == errno_code(ENOTCONN) ||
         error == errno_code(ECONNABORTED) || error == errno_code(ENODEV);
}

// Our own trouble, or the file's: the mount answered, or was not asked.
bool says_nothing_of_the_mount(std::error_code error) {
  return error == errno_code(EINVAL) || error == errno_code(EACCES) ||
         error == errno_code(EMFILE) || error == errno_code(ENFILE) || error == errno_code(ENOMEM);
}

}  // namespace

Result<FileId> MountFiles::key_of(int fd) {
  FileKey key;
  if (::ioctl(fd, kIocFileKey, &key) != 0) {
    const std::error_code error = last_errno();
    if (error == errno_code(ENOTTY)) return errno_code(EINVAL);
    return error;
  }
  const std::string_view table{key.table, ::strnlen(key.table, sizeof key.table)};
  if (table != options_.table) {
    if (complained_.due()) {
      log::error("a mount keeps its locks in table '{}', this service in '{}': no lock is given",
                 log::printable(table), options_.table);
    }
    return errno_code(ENOTCONN);
  }
  return FileId{key.dev, key.ino};
}

Result<MountFiles::MountPtr> MountFiles::open_mount(const std::string& mountpoint) {
  auto mount = std::make_shared<Mount>();
  mount->fd = UniqueFd{::open(mountpoint.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
  struct stat st {};
  struct statvfs fs {};
  if (!mount->fd || ::fstat(mount->fd.get(), &st) != 0 || ::fstatvfs(mount->fd.get(), &fs) != 0) {
    const std::error_code error = last_errno();
    if (complained_.due()) {
      log::warn("{} is not there: {}", log::printable(mountpoint), error.message());
    }
    // Out of descriptors is our own trouble, not the mount's.
    if (error == errno_code(EMFILE) || error == errno_code(ENFILE)) return error;
    return errno_code(ENOTCONN);
  }
  if (const auto key = key_of(mount->fd.get()); !key) {
    if (key.error() == errno_code(EINVAL) && complained_.due()) {
      log::warn("{}: no latchfs is mounted there", log::printable(mountpoint));
    }
    return errno_code(ENOTCONN);
  }
  mount->device = st.st_dev;
  mount->read_only = (fs.f_flag & ST_RDONLY) != 0;
  mount->opened_at = monotonic_ns();
  return MountPtr{std::move(mount)};
}

Result<MountFiles::MountPtr> MountFiles::mount_of(const Fsid& fsid, bool anew) {
  const auto where = options_.mountpoints.find(fsid);
  if (where == options_.mountpoints.end()) return errno_code(ESTALE);
  if (!anew) {
    const MutexLock hold{mu_};
    const auto it = mounts_.find(fsid);
    if (it != mounts_.end() && monotonic_ns() - it->second->opened_at < kKeptNs) return it->second;
  }
  auto mount = open_mount(where->second);
  MountPtr old;  // closed after the mutex
  const MutexLock hold{mu_};
  MountPtr& place = mounts_[fsid];
  old = std::move(place);
  if (!mount) {
    mounts_.erase(fsid);
    return mount.error();
  }
  place = *mount;
  return mount;
}

Result<OpenFilePtr> MountFiles::open_on(const Mount& mount, const NfsHandle& handle) {
  // The control tree: nothing there is locked, and opening makes it render listings.
  if ((handle.node >> kFirstControlBit) != 0) return errno_code(EINVAL);
  const std::array<std::uint32_t, 3> words{static_cast<std::uint32_t>(handle.node >> 32),
                                           static_cast<std::uint32_t>(handle.node),
                                           handle.generation};
  const auto by_node = posix::FileHandle::make(kInode64AndGeneration, words.data(), sizeof words);
  if (!by_node) return by_node.error();
  // Named only, first: opening what is no regular file could wait, or do something.
  const auto named = by_node->open(mount.fd.get(), 1);
  if (!named) return named.error();
  const auto st = posix::stat_of(named->get());
  if (!st) return st.error();
  if (!S_ISREG(st->st_mode)) return errno_code(EINVAL);
  auto file = std::make_shared<OpenFile>();
  file->fd = UniqueFd{::openat(posix::self_fds(), posix::FdName{named->get()}.c_str(),
                               O_RDONLY | O_NONBLOCK | O_CLOEXEC)};
  if (!file->fd) return last_errno();
  const auto key = key_of(file->fd.get());
  if (!key) return key.error();
  file->id = *key;
  file->read_only = mount.read_only;
  file->fsid = handle.fsid;
  return OpenFilePtr{std::move(file)};
}

Result<OpenFilePtr> MountFiles::open(const NfsHandle& handle) {
  if (!exports(handle.fsid)) return errno_code(ESTALE);
  if (handle.root) return errno_code(EINVAL);
  posix::become_daemon();
  const auto mount = mount_of(handle.fsid, false);
  if (!mount) return mount.error();
  auto file = open_on(**mount, handle);
  if (file || says_nothing_of_the_mount(file.error())) return file;
  // The kernel says ESTALE also when the mount's daemon has died, and other things while it dies:
  // is the mount there, and is it another one now?
  const auto now = mount_of(handle.fsid, true);
  if (!now) return now.error();
  if ((*now)->device != (*mount)->device) return open_on(**now, handle);
  if (mount_is_gone(file.error())) return errno_code(ESTALE);
  if (complained_.due()) {
    log::warn("inode {} cannot be opened: {}", handle.node, file.error().message());
  }
  return file;
}

Result<void> MountFiles::may_lock(const OpenFile& file, const User& user) {
  posix::become_daemon();
  struct statx st {};
  // Of the daemon, not what the kernel remembers: so it also shows whether the mount is alive.
  if (::statx(file.fd.get(), "", AT_EMPTY_PATH | AT_STATX_FORCE_SYNC, STATX_UID, &st) != 0) {
    return mount_is_gone(last_errno()) ? errno_code(ENOTCONN) : last_errno();
  }
  if (options_.insecure_locks || st.stx_uid == user.uid) return {};
  const auto opened = posix::as_user(user.uid, user.gid, user.groups, [&]() -> long {
    return ::openat(posix::self_fds(), posix::FdName{file.fd.get()}.c_str(),
                    O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  });
  posix::become_daemon();
  if (!opened) {
    if (mount_is_gone(opened.error())) return errno_code(ENOTCONN);
    // (EOVERFLOW: ids that nobody can have here.)
    const bool refused =
        opened.error() == errno_code(EPERM) || opened.error() == errno_code(EOVERFLOW);
    return refused ? errno_code(EACCES) : opened.error();
  }
  ::close(static_cast<int>(*opened));
  return {};
}

void MountFiles::let_go() {
  std::vector<MountPtr> old;  // closed after the mutex
  const MutexLock hold{mu_};
  for (auto it = mounts_.begin(); it != mounts_.end();) {
    if (monotonic_ns() - it->second->opened_at < kKeptNs) {
      ++it;
      continue;
    }
    old.push_back(std::move(it->second));
    it = mounts_.erase(it);
  }
}

}  // namespace latchfs::nlm
