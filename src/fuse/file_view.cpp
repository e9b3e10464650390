#include "fuse/file_view.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>

#include "posix/attributes.h"
#include "posix/caller_status.h"
#include "posix/credentials.h"
#include "posix/mountinfo.h"
#include "posix/sys.h"

namespace latchfs::fuse {
MountFileView::MountFileView(posix::InodeTable& inodes, LockService& locks,
                             std::string control_name, std::optional<gid_t> admin_gid)
    : inodes_{inodes},
      locks_{locks},
      finder_{inodes.root()->fd.get(), inodes.root()->id},
      control_name_{std::move(control_name)},
      admin_gid_{admin_gid},
      own_{::geteuid()},
      root_{own_ == 0} {}

Result<control::FileEntry> MountFileView::lookup(std::uint64_t parent, std::string_view name,
                                                 const Caller& caller) {
  const std::string text{name};
  if (text.empty() || text == "." || text == ".." || text.find('/') != std::string::npos) {
    return errno_code(ENOENT);
  }
  if (parent == kRootNode && text == control_name_) return errno_code(ENOENT);
  const auto dir = inodes_.pin(parent);
  if (!dir) return dir.error();
  auto fd = step_as(caller, (*dir)->fd.get(), text.c_str());
  if (!fd) return fd.error();
  posix::become_daemon();
  const auto found = inodes_.adopt(std::move(*fd), parent, text);
  if (!found) return found.error();
  return control::FileEntry{found->node, found->id, found->attr, found->generation};
}

// With all groups at once, not when refused without them: nothing else has checked this caller, and
// a group may have less than the others (mode 0705, or an ACL).
Result<UniqueFd> MountFileView::step_as(const Caller& caller, int dir, const char* name) {
  Result<UniqueFd> fd = errno_code(EACCES);
  const auto done = posix::as_caller(caller, posix::Groups::kNow, [&]() -> long {
    fd = inodes_.open_child(dir, name);
    if (fd) return 0;
    errno = fd.error().value();
    return -1;
  });
  if (!done) return done.error();
  return fd;
}

Result<control::FileEntry> MountFileView::revive(std::uint64_t node, Which which) {
  const auto found = inodes_.lookup(node, which == Which::kItself ? "." : "..");
  if (!found) return found.error();
  return control::FileEntry{found->node, found->id, found->attr, found->generation};
}

void MountFileView::forget(std::uint64_t node, std::uint64_t count) noexcept {
  inodes_.forget(node, count);
}

Result<control::FileEntry> MountFileView::getattr(std::uint64_t node) {
  const auto pin = inodes_.pin(node);
  if (!pin) return pin.error();
  auto st = posix::stat_of((*pin)->fd.get());
  if (!st) return st.error();
  control::FileEntry entry{node, (*pin)->id, *st};
  inodes_.show(entry.attr);
  return entry;
}

Result<UniqueFd> MountFileView::open_directory(std::uint64_t node, const Caller& caller) {
  const auto pin = inodes_.pin(node);
  if (!pin) return pin.error();
  const auto opened = posix::as_caller(caller, posix::Groups::kNow, [&]() -> long {
    return ::openat(posix::self_fds(), posix::FdName{(*pin)->fd.get()}.c_str(),
                    O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  });
  if (!opened) return opened.error();
  return UniqueFd{static_cast<int>(*opened)};
}

Result<UniqueFd> MountFileView::walk(std::string_view path, const Caller& caller,
                                     std::string* last) {
  if (path.empty() || path.front() != '/') return errno_code(EINVAL);
  UniqueFd at;
  bool first = true;
  const bool must_be_directory = path.back() == '/';
  while (!path.empty()) {
    const std::size_t start = path.find_first_not_of('/');
    if (start == std::string_view::npos) break;
    path.remove_prefix(start);
    const std::string name{path.substr(0, path.find('/'))};
    path.remove_prefix(name.size());
    if (name == ".") continue;
    // Nobody needs ".."; it would have to stop at the root and be checked against renames.
    if (name == "..") return errno_code(EINVAL);
    if (first && name == control_name_) return errno_code(ENOENT);
    first = false;
    if (last != nullptr && path.find_first_not_of('/') == std::string_view::npos) {
      *last = name;
      break;
    }
    auto next = step_as(caller, at ? at.get() : inodes_.root()->fd.get(), name.c_str());
    // The kernel says ENOTDIR for a component below a symlink, too.
    if (!next && at && next.error() == errno_code(ENOTDIR)) {
      const auto st = posix::stat_of(at.get());
      if (st && S_ISLNK(st->st_mode)) return errno_code(ELOOP);
    }
    if (!next) return next.error();
    at = std::move(*next);
  }
  if (!at) {
    at = UniqueFd{::fcntl(inodes_.root()->fd.get(), F_DUPFD_CLOEXEC, 0)};
    if (!at) return last_errno();
  }
  if (must_be_directory || last != nullptr) {
    const auto st = posix::stat_of(at.get());
    if (!st) return st.error();
    if (!S_ISDIR(st->st_mode)) return errno_code(ENOTDIR);
  }
  return at;
}

Result<control::FileEntry> MountFileView::resolve(std::string_view path, const Caller& caller) {
  // Whether there is such a file is not for everybody to know.
  if (!can_act_as(caller) && !is_admin(caller)) return errno_code(EACCES);
  const auto fd = walk(path, caller);
  if (!fd) return fd.error();
  const auto st = posix::stat_of(fd->get());
  if (!st) return st.error();
  control::FileEntry entry{0, posix::file_id(*st), *st};
  inodes_.show(entry.attr);
  return entry;
}

Result<MountFileView::Place> MountFileView::place_of(std::string_view path, const Caller& caller) {
  if (!can_act_as(caller) && !is_admin(caller)) return errno_code(EACCES);
  Place place;
  auto directory = walk(path, caller, &place.name);
  if (!directory) return directory.error();
  if (place.name.empty() || path.back() == '/') return errno_code(EISDIR);
  auto file = step_as(caller, directory->get(), place.name.c_str());
  if (!file && file.error() != errno_code(ENOENT)) return file.error();
  place.directory = std::move(*directory);
  if (file) place.file = std::move(*file);
  return place;
}

MountFileView::Sharer MountFileView::sharer(std::uint64_t mount) {
  {
    const MutexLock hold{mu_};
    const auto it = sharers_.find(mount);
    if (it != sharers_.end()) return it->second;
  }
  const auto stats = locks_.stats();
  if (!stats) return {};
  const MutexLock hold{mu_};
  for (const MountInfo& info : stats->mounts) {
    sharers_.try_emplace(info.id, Sharer{static_cast<pid_t>(info.pid), info.mountpoint, 0});
  }
  const auto it = sharers_.find(mount);
  return it != sharers_.end() ? it->second : Sharer{};
}

dev_t MountFileView::super_block_of(std::uint64_t mount) {
  const Sharer known = sharer(mount);
  if (known.super_block != 0) return known.super_block;
  const dev_t found = posix::super_block_at(known.mountpoint);
  const MutexLock hold{mu_};
  const auto it = sharers_.find(mount);
  if (it != sharers_.end()) it->second.super_block = found;
  return found;
}

std::optional<std::vector<RemoteClient>> MountFileView::nfs_clients(const Grant& grant) {
  posix::become_daemon();
  if (!posix::NfsdClients::is_server_thread(grant.holder.pid, comm_of(grant.holder))) {
    return std::nullopt;
  }
  const dev_t super_block = super_block_of(grant.owner.mount);
  if (super_block == 0) return std::vector<RemoteClient>{};
  const auto ino = inodes_.shown_ino(static_cast<dev_t>(grant.file.dev), grant.file.ino);
  return nfsd_clients_.with_locks_on(super_block, ino, grant.acquired_at_ns);
}

control::Located MountFileView::locate(const Grant& grant) {
  posix::become_daemon();
  posix::FoundPath found;
  if (grant.holder.backing_fd >= 0) {
    const bool own = grant.owner.mount == locks_.mount_id();
    const pid_t pid = own ? ::getpid() : sharer(grant.owner.mount).daemon;
    if (pid != 0) found = finder_.find(pid, grant.holder.backing_fd, grant.file);
  } else if (const auto pin = inodes_.pin_of(grant.file)) {
    // Held by who has no descriptor of the backing file (a service): by one of our own.
    found = finder_.find(::getpid(), (*pin)->fd.get(), grant.file);
  }
  // Below the entry that the control tree hides there is nothing of this mount's.
  const std::string hidden = "/" + control_name_;
  if (found.path == hidden || found.path.rfind(hidden + "/", 0) == 0) return {"", true};
  return {std::move(found.path), found.outside};
}

bool MountFileView::may_read(std::string_view path, FileId id, const Caller& caller) {
  if (!can_act_as(caller)) return false;
  const auto fd = walk(path, caller);
  if (!fd) return false;
  const auto st = posix::stat_of(fd->get());
  if (!st || posix::file_id(*st) != id) return false;
  return posix::check_access(fd->get(), R_OK, caller).ok();
}

bool MountFileView::is_admin(const Caller& caller) {
  if (caller.uid == 0) {
    // What an NFSv4.2 client has the server copy is written by a thread that is root, whoever
    // asked.
    posix::become_daemon();
    return posix::kernel_thread_name(caller.pid) != "copy thread";
  }
  if (!admin_gid_) return false;
  if (caller.gid == *admin_gid_) return true;
  posix::become_daemon();
  const auto status = posix::status_of(caller);
  return status && std::find(status->groups.begin(), status->groups.end(), *admin_gid_) !=
                       status->groups.end();
}

bool MountFileView::hides_users(const Caller& caller) {
  posix::become_daemon();
  // Of root's: anybody's own program of that name would not do.
  return posix::program_of(caller.pid) == "ganesha.nfsd" && posix::real_uid_of(caller.pid) == 0U;
}

bool MountFileView::shares_files(const Caller& caller) {
  posix::become_daemon();
  return posix::NfsdClients::is_server_thread(caller.pid);
}

}  // namespace latchfs::fuse
