// Ending a lock, with or without the old content. The file is free when its mark is gone; the
// content comes back before that, so that nobody else meets it half done.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fault_point.h"
#include "filelock/copy.h"
#include "filelock/side_files.h"
#include "filelock/steps.h"
#include "posix/credentials.h"
#include "posix/sys.h"

namespace latchfs::filelock {
namespace {

using posix::done;

Outcome<UniqueFd> open_backup(const Ground& ground, const LockId& id) {
  const auto names = side_names(ground.name);
  if (!names) return names.failure();
  const auto side = look_at_side(ground.dir, names->backup, id);
  if (!side) return failed(side.error(), in_quotes(names->backup) + " cannot be looked at");
  if (side->state == SideState::kMissing) {
    return refused(ENOENT,
                   "there is no backup to revert to: " + in_quotes(names->backup) + " is missing");
  }
  if (side->state != SideState::kOurs) {
    return refused(EBUSY, "there is no backup to revert to: " + in_quotes(names->backup) +
                              " is not this lock's");
  }
  auto fd = reopen(side->fd.get(), O_RDONLY);
  if (!fd) return failed(fd.error(), in_quotes(names->backup) + " cannot be read");
  return std::move(*fd);
}

// The backup's own, but for the atime, which reading the backup may have changed.
Result<struct stat> old_attributes(const Ground& ground, int backup, const LockId& id) {
  auto st = posix::stat_of(backup);
  if (!st) return st;
  if (const auto metadata = read_metadata(ground.dir, ground.name, id)) {
    st->st_atim = metadata->file.atime;
  }
  return st;
}

Outcome<void> restore(const Ground& ground, int backup, const LockId& id) {
  const auto to = reopen(ground.file, O_RDWR);
  if (!to) return failed(to.error(), "it cannot be written");
  auto st = old_attributes(ground, backup, id);
  if (!st) return failed(st.error(), "its backup cannot be looked at");
  // The set-ID bits must not be in force over content or an owner they were not given for.
  if (posix::has_set_id(to->get())) {
    if (auto r = done(::fchmod(to->get(), st->st_mode & 0777)); !r) {
      return failed(r.error(), "its mode cannot be set");
    }
  }
  if (auto r = replace_content(backup, to->get(), st->st_size); !r) {
    return failed(r.error(), "its content cannot be put back");
  }
  fault_point("filelock.revert.content");
  if (auto r = copy_owner(to->get(), *st); !r) {
    if (r.error() != errno_code(EPERM)) return failed(r.error(), "its owner cannot be put back");
    st->st_mode &= ~posix::kSetId;
  }
  fault_point("filelock.revert.owner");
  if (auto r = copy_attributes(backup, to->get(), *st); !r) {
    return failed(r.error(), "its attributes cannot be put back");
  }
  fault_point("filelock.revert.attributes");
  if (auto r = done(::fsync(to->get())); !r) {
    return failed(r.error(), "its content cannot be put back");
  }
  fault_point("filelock.revert.synced");
  return {};
}

// Mode and times, if they have changed.
Result<void> put_back(int fd, const struct stat& before) {
  const auto now = posix::stat_of(fd);
  if (!now) return now.error();
  if (now->st_mode != before.st_mode) {
    if (auto r = done(::fchmod(fd, before.st_mode & 07777)); !r) return r;
  }
  if (now->st_mtim.tv_sec == before.st_mtim.tv_sec &&
      now->st_mtim.tv_nsec == before.st_mtim.tv_nsec) {
    return {};
  }
  const struct timespec times[2] = {before.st_atim, before.st_mtim};
  return done(::futimens(fd, times));
}

// What is known where the metadata is not.
Metadata metadata_from(const Mark& lock, const struct stat& backup) {
  Metadata metadata;
  metadata.id = lock.id;
  metadata.name = lock.name;
  metadata.uid = lock.uid;
  metadata.locked_at = rfc3339(lock.locked_at_ns);
  metadata.file = facts_of(backup);
  metadata.file.ino = lock.ino;
  return metadata;
}

}  // namespace

Outcome<void> do_remove(const Ground& ground, const LockId& id) {
  if (ground.file >= 0) {
    const auto mark = read_mark(ground.file);
    if (!mark) return failed(mark.error(), "its lock's mark cannot be read");
    if (*mark && (*mark)->kind == MarkKind::kLock && (*mark)->id == id) {
      if (auto r = remove_mark(ground.file); !r) {
        return failed(r.error(), "its lock's mark cannot be removed");
      }
    }
    fault_point("filelock.remove.unmarked");
    // A locked file must not come back from a loss of power without its side files.
    if (auto r = sync_inode(ground.file); !r) {
      return failed(r.error(), "its lock's mark cannot be removed");
    }
  }
  fault_point("filelock.remove.synced");
  const auto names = side_names(ground.name);
  if (!names) return names.failure();
  for (const std::string& name : {names->metadata, names->backup, temporary_name(id)}) {
    if (auto r = remove_side(ground.dir, name, id); !r) {
      return failed(r.error(), in_quotes(name) + " cannot be removed");
    }
    fault_point("filelock.remove.side");
  }
  if (auto r = done(::fsync(ground.dir)); !r) {
    return failed(r.error(), "its directory cannot be written");
  }
  return {};
}

Outcome<void> check_revert(const Ground& ground, const LockId& id, const Caller& caller) {
  const auto backup = open_backup(ground, id);
  if (!backup) return backup.failure();
  const auto st = posix::stat_of(backup->get());
  if (!st) return failed(st.error(), "its backup cannot be looked at");
  const auto to = reopen(ground.file, O_RDWR);
  if (!to) return failed(to.error(), "it cannot be written");
  const UniqueFd empty{
      ::openat(ground.dir, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, S_IRUSR | S_IWUSR)};
  if (!empty) return failed(last_errno(), "no file can be made in its directory");
  const auto before = posix::stat_of(to->get());
  if (!before) return failed(before.error(), "it cannot be looked at");
  Result<void> reserved = posix::become_caller(caller);
  if (reserved) {
    reserved = reserve_content(empty.get(), backup->get(), to->get(), st->st_size);
  }
  posix::become_daemon();
  // Allocating counts as writing.
  if (auto r = put_back(to->get(), *before); !r)
    return failed(r.error(), "its times cannot be kept");
  if (!reserved) return failed(reserved.error(), "there is no room for its old content");
  return {};
}

Outcome<void> commit_revert(const Ground& ground, const Mark& lock, Journal& journal) {
  const auto backup = open_backup(ground, lock.id);
  if (!backup) return backup.failure();
  const auto st = posix::stat_of(backup->get());
  if (!st) return failed(st.error(), "its backup cannot be looked at");
  auto metadata = read_metadata(ground.dir, ground.name, lock.id);
  Metadata reverting = metadata ? std::move(*metadata) : metadata_from(lock, *st);
  reverting.state = LockState::kReverting;
  const auto replaced = replace_metadata(ground, lock, reverting, *st);
  // Where another file has its name, the journal alone says so.
  if (!replaced && replaced.error() != errno_code(EBUSY)) return replaced.failure();
  fault_point("filelock.revert.metadata");
  if (auto r = done(::fsync(ground.dir)); !r) {
    return failed(r.error(), "its directory cannot be written");
  }
  fault_point("filelock.revert.commit");
  if (auto r = journal.commit(); !r && !replaced) {
    return failed(r.error(), "the journal cannot be written");
  }
  fault_point("filelock.revert.committed");
  return {};
}

Outcome<void> do_revert(const Ground& ground, const LockId& id) {
  if (ground.file >= 0) {
    const auto mark = read_mark(ground.file);
    if (!mark) return failed(mark.error(), "its lock's mark cannot be read");
    // Without it, all was put back and only removing it is left.
    if (*mark && (*mark)->kind == MarkKind::kLock && (*mark)->id == id) {
      const auto backup = open_backup(ground, id);
      if (!backup) return backup.failure();
      if (auto r = restore(ground, backup->get(), id); !r) return r;
    }
  }
  return do_remove(ground, id);
}

}  // namespace latchfs::filelock
