// MKNOD, MKDIR, SYMLINK, LINK, UNLINK, RMDIR, RENAME: names come and go.
#include <fcntl.h>
#include <linux/fs.h>

#include "fuse/file_system.h"
#include "fuse/ops.h"
#include "posix/names.h"
#include "posix/sys.h"

namespace latchfs::fuse {
namespace {

// A directory of the mount to change. EPERM in the control tree, where names are not made.
Result<posix::PinPtr> find_dir(FileSystem& fs, fuse_ino_t node) {
  if (control::is_control(node)) return errno_code(EPERM);
  return fs.inodes->pin(node);
}

// Makes a name with `make(directory)` and answers with what has it then.
template <class Make>
void answer_new(fuse_req_t req, fuse_ino_t parent, const char* name, Make&& make) noexcept {
  answer(req, [&](Reply& reply) -> Result<void> {
    FileSystem& fs = file_system(req);
    const auto dir = find_dir(fs, parent);
    if (!dir) return dir.error();
    if (fs.is_control_name(parent, name)) return errno_code(EEXIST);
    if (Result<void> made = make((*dir)->fd.get(), caller_of(req)); !made) return made;
    const auto found = fs.inodes->lookup(parent, name);
    if (!found) return found.error();
    if (!reply.entry(*found, fs.believed(found->attr))) fs.inodes->forget(found->node, 1);
    return {};
  });
}

// What has a name now, held so that it can be said afterwards whether the name was its last.
UniqueFd hold(int dir, const char* name) {
  return UniqueFd{::openat(dir, name, O_PATH | O_NOFOLLOW | O_CLOEXEC)};
}

void note_if_removed(FileSystem& fs, UniqueFd held) {
  if (!held) return;
  const auto st = posix::stat_of(held.get());
  if (st && st->st_nlink == 0) fs.inodes->removed(std::move(held), *st);
}

// Only where files are found by name.
void note_renamed(FileSystem& fs, const UniqueFd& held, fuse_ino_t parent, const char* name) {
  if (!held) return;
  const auto st = posix::stat_of(held.get());
  if (st && !fs.inodes->has_handles(st->st_dev)) {
    fs.inodes->renamed(fs.inodes->known(*st), parent, name);
  }
}

}  // namespace

void op_mknod(fuse_req_t req, fuse_ino_t parent, const char* name, mode_t mode,
              dev_t rdev) noexcept {
  answer_new(req, parent, name, [&](int dir, const Caller& caller) {
    return posix::make_node(dir, name, mode, rdev, caller);
  });
}

void op_mkdir(fuse_req_t req, fuse_ino_t parent, const char* name, mode_t mode) noexcept {
  answer_new(req, parent, name, [&](int dir, const Caller& caller) {
    return posix::make_directory(dir, name, mode, caller);
  });
}

void op_symlink(fuse_req_t req, const char* target, fuse_ino_t parent, const char* name) noexcept {
  answer_new(req, parent, name, [&](int dir, const Caller& caller) {
    return posix::make_symlink(dir, name, target, caller);
  });
}

void op_link(fuse_req_t req, fuse_ino_t node, fuse_ino_t parent, const char* name) noexcept {
  answer_new(req, parent, name, [&](int dir, const Caller& caller) -> Result<void> {
    if (control::is_control(node)) return errno_code(EPERM);
    const auto file = file_system(req).inodes->pin(node);
    if (!file) return file.error();
    return posix::make_link((*file)->fd.get(), dir, name, caller);
  });
}

void op_unlink(fuse_req_t req, fuse_ino_t parent, const char* name) noexcept {
  answer(req, [&](Reply& reply) -> Result<void> {
    FileSystem& fs = file_system(req);
    const auto dir = find_dir(fs, parent);
    if (!dir) return dir.error();
    if (fs.is_control_name(parent, name)) return errno_code(EPERM);
    UniqueFd victim = hold((*dir)->fd.get(), name);
    if (auto r = posix::remove_file((*dir)->fd.get(), name, caller_of(req)); !r) return r;
    note_if_removed(fs, std::move(victim));
    reply.done();
    return {};
  });
}

void op_rmdir(fuse_req_t req, fuse_ino_t parent, const char* name) noexcept {
  answer(req, [&](Reply& reply) -> Result<void> {
    FileSystem& fs = file_system(req);
    const auto dir = find_dir(fs, parent);
    if (!dir) return dir.error();
    if (fs.is_control_name(parent, name)) return errno_code(EBUSY);
    UniqueFd victim = hold((*dir)->fd.get(), name);
    if (auto r = posix::remove_directory((*dir)->fd.get(), name, caller_of(req)); !r) return r;
    note_if_removed(fs, std::move(victim));
    reply.done();
    return {};
  });
}

void op_rename(fuse_req_t req, fuse_ino_t parent, const char* name, fuse_ino_t new_parent,
               const char* new_name, unsigned flags) noexcept {
  answer(req, [&](Reply& reply) -> Result<void> {
    FileSystem& fs = file_system(req);
    const auto from = find_dir(fs, parent);
    if (!from) return from.error();
    const auto to = find_dir(fs, new_parent);
    if (!to) return to.error();
    if (fs.is_control_name(parent, name) || fs.is_control_name(new_parent, new_name)) {
      return errno_code(EBUSY);
    }
    const int from_fd = (*from)->fd.get();
    const int to_fd = (*to)->fd.get();
    const UniqueFd moved = fs.inodes->has_handles(static_cast<dev_t>((*from)->id.dev))
                               ? UniqueFd{}
                               : hold(from_fd, name);
    UniqueFd target = (flags & RENAME_NOREPLACE) != 0 ? UniqueFd{} : hold(to_fd, new_name);
    if (auto r = posix::rename_entry(from_fd, name, to_fd, new_name, flags, caller_of(req)); !r) {
      return r;
    }
    note_renamed(fs, moved, new_parent, new_name);
    if ((flags & RENAME_EXCHANGE) != 0) {
      note_renamed(fs, target, parent, name);
    } else {
      note_if_removed(fs, std::move(target));
    }
    reply.done();
    return {};
  });
}

}  // namespace latchfs::fuse
