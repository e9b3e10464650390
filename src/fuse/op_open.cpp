// OPEN, CREATE, TMPFILE, FLUSH, RELEASE, FSYNC: the life of an open file description.
#include <fcntl.h>

#include "fuse/control_ops.h"
#include "fuse/file_system.h"
#include "fuse/ops.h"
#include "posix/attributes.h"
#include "posix/credentials.h"
#include "posix/file_io.h"
#include "posix/names.h"
#include "posix/sys.h"

namespace latchfs::fuse {
namespace {

// Enters a backing file into the table.
Result<OpenFilePtr> enter(FileSystem& fs, UniqueFd fd, FileId id, std::uint64_t node,
                          const Caller& opener, int flags) {
  auto file = std::make_shared<OpenFile>();
  file->fd = std::move(fd);
  file->id = id;
  file->node = node;
  file->sequence = fs.opens.fetch_add(1, std::memory_order_relaxed) + 1;
  file->flags = flags;
  file->opener = opener;
  if (!fs.inodes->has_handles(static_cast<dev_t>(id.dev))) {
    auto pin = fs.inodes->pin(node);
    if (!pin) return pin.error();
    file->pin = std::move(*pin);
  }
  if (file->readable() && file->writable() && fs.maps_shared()) {
    file->stores.ticket =
        fs.gate.enter_storer(id, {opener.uid, opener.gid, static_cast<std::uint32_t>(opener.pid)});
    file->stores.gate = &fs.gate;
  }
  if (fs.passes_through()) file->backing = fs.backing.enter(node, file->fd.get());
  file->fh = fs.files.insert(file);
  return file;
}

// The kernel did not take an open file: nobody will release it.
void drop(FileSystem& fs, std::uint64_t fh) {
  if (const OpenFilePtr file = fs.files.remove(fh)) fs.locks.on_release(*file, std::nullopt);
}

Result<void> finish_create(FileSystem& fs, Reply& reply, UniqueFd fd, std::uint64_t parent,
                           const char* name, const Caller& caller, int flags) {
  posix::become_daemon();
  const auto found = fs.inodes->adopt_open(fd.get(), parent, name);
  if (!found) return found.error();
  const auto file = enter(fs, std::move(fd), found->id, found->node, caller, flags);
  if (!file) {
    fs.inodes->forget(found->node, 1);
    return file.error();
  }
  if (!reply.create(*found, fs.believed(found->attr), (*file)->fh, fs.way_of(**file))) {
    drop(fs, (*file)->fh);
    fs.inodes->forget(found->node, 1);
  }
  return {};
}

// O_TRUNC on a file that came to be between the kernel's lookup and the creation.
Result<void> empty_found_file(int fd, int flags, const Caller& caller) {
  posix::FileRef file;
  file.path_fd = file.open_fd = fd;
  file.writable = (flags & O_ACCMODE) != O_RDONLY;
  posix::AttrChange change;
  change.size = 0;
  return posix::change_attributes(file, change, caller);
}

}  // namespace

void op_open(fuse_req_t req, fuse_ino_t node, fuse_file_info* info) noexcept {
  answer(req, [&](Reply& reply) -> Result<void> {
    FileSystem& fs = file_system(req);
    if (control::is_control(node)) return control_ops::open(fs, reply, node, *info);
    const auto pin = fs.inodes->pin(node);
    if (!pin) return pin.error();
    // The kernel opens nothing else here; a device or FIFO must not be opened by the daemon.
    if ((*pin)->type != S_IFREG) return errno_code((*pin)->type == S_IFDIR ? EISDIR : ENXIO);
    const Caller caller = caller_of(req);
    // In flight until it is in the table of open files: whoever locks the file then finds it there.
    ChangePass change;
    if ((info->flags & O_ACCMODE) != O_RDONLY) {
      auto pass = fs.changes.admit((*pin)->fd.get(), (*pin)->id, caller, EACCES);
      if (!pass) return pass.error();
      change = std::move(*pass);
    }
    auto fd = posix::open_file((*pin)->fd.get(), info->flags, caller);
    if (!fd) return fd.error();
    const auto st = posix::stat_of(fd->get());
    if (!st) return st.error();
    const auto file = enter(fs, std::move(*fd), posix::file_id(*st), node, caller, info->flags);
    if (!file) return file.error();
    if (!reply.open((*file)->fh, fs.way_of(**file))) drop(fs, (*file)->fh);
    return {};
  });
}

void op_create(fuse_req_t req, fuse_ino_t parent, const char* name, mode_t mode,
               fuse_file_info* info) noexcept {
  answer(req, [&](Reply& reply) -> Result<void> {
    FileSystem& fs = file_system(req);
    if (control::is_control(parent)) return errno_code(EPERM);
    if (fs.is_control_name(parent, name)) return errno_code(EEXIST);
    const auto dir = fs.inodes->pin(parent);
    if (!dir) return dir.error();
    const Caller caller = caller_of(req);
    if (!fs.may_make(name, caller)) return errno_code(EACCES);
    auto made = posix::create_file((*dir)->fd.get(), name, info->flags, mode, caller);
    if (!made) return made.error();
    // In flight until it is in the table of open files, as in op_open(); one that was just made may
    // be locked by now as well.
    const auto st = posix::stat_of(made->fd.get());
    if (!st) return st.error();
    ChangePass change;
    const bool cuts = !made->fresh && (info->flags & O_TRUNC) != 0;
    if ((info->flags & O_ACCMODE) != O_RDONLY || cuts) {
      auto leave = fs.changes.admit(made->fd.get(), posix::file_id(*st), ByteRange{}, caller);
      if (!leave) return leave.error();
      change = std::move(*leave);
    }
    if (!cuts) {
      return finish_create(fs, reply, std::move(made->fd), parent, name, caller, info->flags);
    }
    IoRequest io;
    io.kind = IoKind::kTruncate;
    io.file = posix::file_id(*st);
    io.caller = caller;
    const auto pass = fs.locks.admit_write(io);
    if (!pass) return pass.error();
    if (auto r = empty_found_file(made->fd.get(), info->flags, caller); !r) return r;
    return finish_create(fs, reply, std::move(made->fd), parent, name, caller, info->flags);
  });
}

void op_tmpfile(fuse_req_t req, fuse_ino_t parent, mode_t mode, fuse_file_info* info) noexcept {
  answer(req, [&](Reply& reply) -> Result<void> {
    FileSystem& fs = file_system(req);
    if (control::is_control(parent)) return errno_code(EPERM);
    const auto dir = fs.inodes->pin(parent);
    if (!dir) return dir.error();
    const Caller caller = caller_of(req);
    auto fd = posix::create_nameless((*dir)->fd.get(), info->flags, mode, caller);
    if (!fd) return fd.error();
    return finish_create(fs, reply, std::move(*fd), parent, "", caller, info->flags);
  });
}

void op_flush(fuse_req_t req, fuse_ino_t node, fuse_file_info* info) noexcept {
  answer(req, [&](Reply& reply) -> Result<void> {
    FileSystem& fs = file_system(req);
    if (control::is_control(node)) return control_ops::flush(fs, reply, info->fh);
    const OpenFilePtr file = fs.files.find(info->fh);
    if (!file) return errno_code(EBADF);
    fs.locks.on_flush(*file, info->lock_owner, caller_of(req));
    if (file->writable()) {
      if (auto r = posix::flush_file(file->fd.get()); !r) return r;
      // What was stored into a mapping of the backing file changed times that the kernel believes
      // to know. Before close(2) returns: who closed a file looks at it next. A mapping takes the
      // right to read (mmap(2), EACCES).
      if (file->backing.id() != 0 && file->readable() && fs.config.timeouts.attr > 0)
        fs.forget_attributes(node);
    }
    reply.done();
    return {};
  });
}

void op_release(fuse_req_t req, fuse_ino_t node, fuse_file_info* info) noexcept {
  answer(req, [&](Reply& reply) -> Result<void> {
    FileSystem& fs = file_system(req);
    if (control::is_control(node)) return control_ops::release(fs, reply, info->fh);
    const OpenFilePtr file = fs.files.remove(info->fh);
    if (!file) return errno_code(EBADF);
    fs.locks.on_release(*file,
                        info->flock_release != 0 ? std::optional{info->lock_owner} : std::nullopt);
    reply.done();
    return {};
  });
}

void op_fsync(fuse_req_t req, fuse_ino_t node, int data_only, fuse_file_info* info) noexcept {
  answer(req, [&](Reply& reply) -> Result<void> {
    FileSystem& fs = file_system(req);
    if (!control::is_control(node)) {
      const OpenFilePtr file = fs.files.find(info->fh);
      if (!file) return errno_code(EBADF);
      if (auto r = posix::sync_file(file->fd.get(), data_only != 0); !r) return r;
    }
    reply.done();
    return {};
  });
}

}  // namespace latchfs::fuse
