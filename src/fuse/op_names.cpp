// MKNOD, MKDIR, SYMLINK, LINK, UNLINK, RMDIR, RENAME: names come and go.
#include <fcntl.h>
#include <linux/fs.h>

#include <utility>
#include <vector>

#include "fuse/file_system.h"
#include "fuse/ops.h"
#include "posix/credentials.h"
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
    if (!fs.may_make(name, caller_of(req))) return errno_code(EACCES);
    if (Result<void> made = make((*dir)->fd.get(), caller_of(req)); !made) return made;
    const auto found = fs.inodes->lookup(parent, name);
    if (!found) return found.error();
    if (!reply.entry(*found, fs.believed(found->attr))) fs.inodes->forget(found->node, 1);
    return {};
  });
}

// What has a name now, held so that it can be asked whether it may lose it, and said afterwards
// whether it was its last. Nothing if nothing has it.
Result<UniqueFd> hold(int dir, const char* name) {
  constexpr int kFlags = O_PATH | O_NOFOLLOW | O_CLOEXEC;
  auto held = posix::opened(::openat(dir, name, kFlags));
  if (!held && held.error() == errno_code(EACCES)) {
    posix::become_daemon();  // this thread was somebody else for the request before
    held = posix::opened(::openat(dir, name, kFlags));
  }
  if (!held && held.error() == errno_code(ENOENT)) return UniqueFd{};
  return held;
}

// To be asked whether it may lose or get a name. Filelocks are on regular files.
Result<void> add(const UniqueFd& held, std::vector<ChangeEdge::Named>& all) {
  if (!held) return {};
  const auto st = posix::stat_of(held.get());
  if (!st) return st.error();
  if (S_ISREG(st->st_mode)) all.push_back({held.get(), posix::file_id(*st)});
  return {};
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
    FileSystem& fs = file_system(req);
    const auto file = fs.inodes->pin(node);
    if (!file) return file.error();
    const auto leave = fs.changes.admit((*file)->fd.get(), (*file)->id, caller, EACCES);
    if (!leave) return leave.error();
    return posix::make_link((*file)->fd.get(), dir, name, caller);
  });
}

void op_unlink(fuse_req_t req, fuse_ino_t parent, const char* name) noexcept {
  answer(req, [&](Reply& reply) -> Result<void> {
    FileSystem& fs = file_system(req);
    const auto dir = find_dir(fs, parent);
    if (!dir) return dir.error();
    if (fs.is_control_name(parent, name)) return errno_code(EPERM);
    UniqueFd victim;
    const auto find = [&]() -> Result<std::vector<ChangeEdge::Named>> {
      auto held = hold((*dir)->fd.get(), name);
      if (!held) return held.error();
      victim = std::move(*held);
      std::vector<ChangeEdge::Named> all;
      if (auto r = add(victim, all); !r) return r.error();
      return all;
    };
    const auto leave = fs.changes.admit_names((*dir)->id, find, caller_of(req));
    if (!leave) return leave.error();
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
    auto victim = hold((*dir)->fd.get(), name);
    if (auto r = posix::remove_directory((*dir)->fd.get(), name, caller_of(req)); !r) return r;
    if (victim) note_if_removed(fs, std::move(*victim));
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
    const Caller caller = caller_of(req);
    const bool makes_side_name = !fs.may_make(new_name, caller) ||
                                 ((flags & RENAME_EXCHANGE) != 0 && !fs.may_make(name, caller));
    if (makes_side_name) return errno_code(EACCES);
    UniqueFd moved;
    UniqueFd target;
    const auto find = [&]() -> Result<std::vector<ChangeEdge::Named>> {
      auto one = hold(from_fd, name);
      if (!one) return one.error();
      auto other =
          (flags & RENAME_NOREPLACE) != 0 ? Result<UniqueFd>{UniqueFd{}} : hold(to_fd, new_name);
      if (!other) return other.error();
      moved = std::move(*one);
      target = std::move(*other);
      std::vector<ChangeEdge::Named> all;
      if (auto r = add(moved, all); !r) return r.error();
      if (auto r = add(target, all); !r) return r.error();
      return all;
    };
    // (Two directories of one rename are on one device.)
    const auto leave = fs.changes.admit_names((*to)->id, find, caller);
    if (!leave) return leave.error();
    if (auto r = posix::rename_entry(from_fd, name, to_fd, new_name, flags, caller); !r) {
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
