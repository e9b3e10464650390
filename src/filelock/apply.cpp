// Making a lock: nothing names what is being made before it is whole and on disk, and nothing
// counts before the mark is on the file.
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "base/fault_point.h"
#include "filelock/copy.h"
#include "filelock/side_files.h"
#include "filelock/steps.h"
#include "posix/credentials.h"
#include "posix/sys.h"

namespace latchfs::filelock {
namespace {

using posix::done;

constexpr const char* kAcl = "system.posix_acl_access";

// user::r-- user:OWNER:r-- group::G mask::r-- other::O, as linux/posix_acl_xattr.h has it.
std::string acl_text(uid_t owner, mode_t mode) {
  std::string text("\2\0\0\0", 4);
  const auto add = [&](unsigned tag, unsigned bits, std::uint32_t id) {
    const std::uint32_t head = tag | (bits << 16);
    for (const std::uint32_t word : {head, id}) {
      for (unsigned shift = 0; shift < 32; shift += 8) {
        text += static_cast<char>((word >> shift) & 0xff);
      }
    }
  };
  constexpr std::uint32_t kNobody = UINT32_MAX;
  add(0x01, 4, kNobody);
  add(0x02, 4, owner);
  add(0x04, (mode & S_IRGRP) != 0 ? 4 : 0, kNobody);
  add(0x10, 4, kNobody);
  add(0x20, (mode & S_IROTH) != 0 ? 4 : 0, kNobody);
  return text;
}

// Who reads the file by its mode reads the metadata too, its owner among them, who does not own the
// metadata. What its group may is not in the mode where there is an ACL, so it is not given on; nor
// what is given to others by name.
Result<void> let_read(int fd, int file, const struct stat& st) {
  mode_t mode = st.st_mode & 0444;
  if (::getxattr(posix::FdName{file}.absolute(), kAcl, nullptr, 0) > 0) mode &= ~S_IRGRP;
  if (::fchown(fd, static_cast<uid_t>(-1), st.st_gid) != 0) mode &= ~S_IRGRP;
  if (auto r = done(::fchmod(fd, mode)); !r) return r;
  const bool by_all = (mode & (S_IRGRP | S_IROTH)) == (S_IRGRP | S_IROTH);
  if (by_all || st.st_uid == ::geteuid() || (mode & S_IRUSR) == 0) return {};
  const std::string acl = acl_text(st.st_uid, mode);
  // Where there are no ACLs he reads it by `list`.
  if (::fsetxattr(fd, kAcl, acl.data(), acl.size(), 0) != 0 && errno != EOPNOTSUPP) {
    return last_errno();
  }
  return {};
}

Outcome<UniqueFd> write_metadata(const Ground& ground, const Mark& lock, const Metadata& metadata,
                                 const struct stat& file) {
  const auto text = metadata_text(metadata);
  if (!text) return text.failure();
  auto fd = make_nameless(ground.dir, side_mark_of(lock));
  if (!fd) return fd;
  fault_point("filelock.metadata.nameless");
  for (std::size_t at = 0; at < text->size();) {
    const ssize_t n =
        ::pwrite(fd->get(), text->data() + at, text->size() - at, static_cast<off_t>(at));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return failed(last_errno(), "the lock's metadata cannot be written");
    at += static_cast<std::size_t>(n);
  }
  fault_point("filelock.metadata.written");
  if (auto r = let_read(fd->get(), ground.file, file); !r) {
    return failed(r.error(), "the lock's metadata cannot be made readable");
  }
  if (auto r = done(::fsync(fd->get())); !r) {
    return failed(r.error(), "the lock's metadata cannot be written");
  }
  fault_point("filelock.metadata.synced");
  return fd;
}

Outcome<void> fill_backup(int from, int to, const struct stat& st, const Caller& caller) {
  if (auto r = copy_owner(to, st); !r) return failed(r.error(), "its backup cannot have its owner");
  // Root's reserve of blocks is not for his copy.
  Result<void> copied = posix::become_caller(caller);
  if (copied) copied = copy_content(from, to, st.st_size);
  posix::become_daemon();
  if (!copied) return failed(copied.error(), "its backup cannot be made");
  fault_point("filelock.backup.content");
  if (auto r = copy_attributes(from, to, st); !r) {
    return failed(r.error(), "its backup cannot have its attributes");
  }
  fault_point("filelock.backup.attributes");
  if (auto r = done(::fsync(to)); !r) return failed(r.error(), "its backup cannot be made");
  return {};
}

Outcome<void> make_backup(const Ground& ground, const Mark& lock, const Caller& caller) {
  const auto names = side_names(ground.name);
  if (!names) return names.failure();
  const auto from = reopen(ground.file, O_RDONLY);
  if (!from) return failed(from.error(), "it cannot be read");
  const auto st = posix::stat_of(from->get());
  if (!st) return failed(st.error(), "it cannot be looked at");
  const auto to = make_nameless(ground.dir, side_mark_of(lock));
  if (!to) return to.failure();
  fault_point("filelock.backup.nameless");
  if (auto r = fill_backup(from->get(), to->get(), *st, caller); !r) return r;
  fault_point("filelock.backup.synced");
  return give_name(to->get(), ground.dir, names->backup, side_mark_of(lock));
}

}  // namespace

Mark side_mark_of(const Mark& lock) {
  Mark mark = lock;
  mark.kind = MarkKind::kSide;
  return mark;
}

Outcome<void> make_metadata(const Ground& ground, const Mark& lock, const Metadata& metadata,
                            const struct stat& file) {
  const auto names = side_names(ground.name);
  if (!names) return names.failure();
  const auto fd = write_metadata(ground, lock, metadata, file);
  if (!fd) return fd.failure();
  return give_name(fd->get(), ground.dir, names->metadata, side_mark_of(lock));
}

Outcome<void> replace_metadata(const Ground& ground, const Mark& lock, const Metadata& metadata,
                               const struct stat& file) {
  const auto names = side_names(ground.name);
  if (!names) return names.failure();
  const auto side = look_at_side(ground.dir, names->metadata, lock.id);
  if (!side) return failed(side.error(), in_quotes(names->metadata) + " cannot be looked at");
  if (side->state == SideState::kMissing) return make_metadata(ground, lock, metadata, file);
  if (side->state != SideState::kOurs) {
    return refused(EBUSY, in_quotes(names->metadata) + " is in the way: it is not this lock's");
  }
  const std::string temporary = temporary_name(lock.id);
  if (auto r = remove_side(ground.dir, temporary, lock.id); !r) {
    return failed(r.error(), in_quotes(temporary) + " cannot be removed");
  }
  const auto fd = write_metadata(ground, lock, metadata, file);
  if (!fd) return fd.failure();
  if (auto r = give_name(fd->get(), ground.dir, temporary, side_mark_of(lock)); !r) return r;
  fault_point("filelock.metadata.beside");
  if (::renameat(ground.dir, temporary.c_str(), ground.dir, names->metadata.c_str()) != 0) {
    const auto error = last_errno();
    (void)remove_side(ground.dir, temporary, lock.id);
    return failed(error, in_quotes(names->metadata) + " cannot be replaced");
  }
  return {};
}

Outcome<void> do_apply(const Ground& ground, const Mark& lock, const Metadata& metadata,
                       const Caller& caller) {
  const auto st = posix::stat_of(ground.file);
  if (!st) return failed(st.error(), "it cannot be looked at");
  // Rather than after copying it.
  const auto names = side_names(ground.name);
  if (!names) return names.failure();
  for (const std::string& name : {names->backup, names->metadata}) {
    if (auto r = make_way(ground.dir, name, side_mark_of(lock)); !r) return r;
  }
  fault_point("filelock.apply.begin");
  if (auto r = make_backup(ground, lock, caller); !r) return r;
  fault_point("filelock.apply.backup");
  if (auto r = make_metadata(ground, lock, metadata, *st); !r) return r;
  fault_point("filelock.apply.metadata");
  // A mark without its side files must not survive a loss of power.
  if (auto r = done(::fsync(ground.dir)); !r) {
    return failed(r.error(), "its directory cannot be written");
  }
  fault_point("filelock.apply.commit");
  if (auto r = write_mark(ground.file, lock); !r) return failed(r.error(), "it cannot be marked");
  fault_point("filelock.apply.marked");
  if (auto r = sync_inode(ground.file); !r) return failed(r.error(), "it cannot be marked");
  return {};
}

Outcome<void> undo_apply(const Ground& ground, const LockId& id) {
  if (ground.file >= 0) {
    const auto mark = read_mark(ground.file);
    if (!mark) return failed(mark.error(), "the mark cannot be read");
    if (*mark && (*mark)->kind == MarkKind::kLock && (*mark)->id == id) {
      if (auto r = remove_mark(ground.file); !r) {
        return failed(r.error(), "the mark cannot be removed");
      }
      (void)sync_inode(ground.file);
    }
  }
  fault_point("filelock.undo.mark");
  const auto names = side_names(ground.name);
  if (!names) return names.failure();
  if (auto r = remove_side(ground.dir, names->metadata, id); !r) {
    return failed(r.error(), in_quotes(names->metadata) + " cannot be removed");
  }
  fault_point("filelock.undo.metadata");
  if (auto r = remove_side(ground.dir, names->backup, id); !r) {
    return failed(r.error(), in_quotes(names->backup) + " cannot be removed");
  }
  fault_point("filelock.undo.backup");
  return {};
}

}  // namespace latchfs::filelock
