#include <fcntl.h>
#include <sys/stat.h>

#include "base/clock.h"
#include "base/fault_point.h"
#include "filelock/desk.h"
#include "filelock/steps.h"
#include "posix/credentials.h"
#include "posix/sys.h"

namespace latchfs::filelock {
namespace {

Failure not_locked() { return refused(ENOENT, "it is not locked"); }

posix::FileHandle handle_of(int fd) {
  const auto handle = posix::FileHandle::of(fd);
  return handle ? *handle : posix::FileHandle{};
}

}  // namespace

Outcome<Status> Session::status() const {
  posix::become_daemon();
  return status_of({dir_.get(), name_, file_.get()});
}

Outcome<Status> Session::locked_status() const {
  auto status = this->status();
  if (!status) return status;
  switch (status->condition) {
    case Condition::kUnlocked:
    case Condition::kOrphan:
      return not_locked();
    case Condition::kOtherName:
      return refused(EBUSY, status->words);
    case Condition::kSideFile:
      return refused(EINVAL, status->words);
    case Condition::kLocked:
    case Condition::kReverting:
    case Condition::kIncomplete:
    case Condition::kDamagedMark:
      break;
  }
  return status;
}

Outcome<void> Session::begin_op(Op op, const LockId& id, const std::string& name) {
  const auto file = posix::stat_of(file_.get());
  if (!file) return failed(file.error(), "it cannot be looked at");
  const auto dir = posix::stat_of(dir_.get());
  if (!dir) return failed(dir.error(), "its directory cannot be looked at");
  JournalEntry entry;
  entry.op = op;
  entry.id = id;
  entry.file = posix::file_id(*file);
  entry.file_handle = handle_of(file_.get());
  entry.dir = posix::file_id(*dir);
  entry.dir_handle = handle_of(dir_.get());
  entry.name = name;
  // After a loss of power, what an apply or a remove had not completed is known by its marks.
  if (auto r = journal_.write(entry, op == Op::kRevert); !r) {
    return failed(r.error(), "the journal cannot be written");
  }
  fault_point("filelock.journal.written");
  return {};
}

Outcome<void> Session::end_op(Outcome<void> outcome) {
  fault_point("filelock.journal.clear");
  if (auto r = journal_.clear(); !r && outcome) {
    log::warn("{}: the journal of a filelock cannot be cleared: {}", in_quotes(name_),
              r.error().message());
  }
  fault_point("filelock.journal.cleared");
  return outcome;
}

Outcome<Mark> Session::apply(const LockInfo& info, const Caller& caller) {
  auto status = this->status();
  if (!status) return status.failure();
  if (status->condition == Condition::kSideFile) return refused(EINVAL, status->words);
  if (status->mark) {
    return refused(EBUSY, status->words.empty() ? "it is locked already" : status->words);
  }
  const auto st = posix::stat_of(file_.get());
  if (!st) return failed(st.error(), "it cannot be looked at");
  if (!S_ISREG(st->st_mode)) return refused(EINVAL, "it is not a regular file");
  if (const auto names = side_names(name_); !names) return names.failure();
  const auto id = LockId::fresh();
  if (!id) return failed(id.error(), "there is no randomness");
  const Mark mark{MarkKind::kLock, *id, info.uid, realtime_ns(), st->st_ino, name_};
  const Metadata metadata{*id,      LockState::kLocked,         name_,     info.path,    info.user,
                          info.uid, rfc3339(mark.locked_at_ns), info.tags, facts_of(*st)};
  // Before the file is copied.
  if (const auto text = metadata_text(metadata); !text) return text.failure();

  if (auto r = begin_op(Op::kApply, *id, name_); !r) return r.failure();
  const Ground ground{dir_.get(), file_.get(), name_};
  const auto applied = do_apply(ground, mark, metadata, caller);
  if (!applied) {
    if (const auto undone = undo_apply(ground, *id); !undone) {
      // The journal stays for whoever comes next.
      log::error("{}: a filelock that failed cannot be undone now: {}", in_quotes(name_),
                 undone.failure().words);
      return applied.failure();
    }
  }
  if (auto r = end_op(applied); !r) return r.failure();
  return mark;
}

Outcome<void> Session::retag(const LockInfo& info) {
  const auto status = locked_status();
  if (!status) return status.failure();
  if (status->condition == Condition::kDamagedMark || status->condition == Condition::kReverting) {
    return refused(EBUSY, status->words);
  }
  const auto st = posix::stat_of(file_.get());
  if (!st) return failed(st.error(), "it cannot be looked at");
  const Mark& mark = *status->mark;
  Metadata metadata{mark.id,  LockState::kLocked,         mark.name, info.path,    info.user,
                    mark.uid, rfc3339(mark.locked_at_ns), info.tags, facts_of(*st)};
  if (status->info) metadata.file = status->info->file;
  if (const auto text = metadata_text(metadata); !text) return text.failure();

  if (auto r = begin_op(Op::kRetag, mark.id, status->side_name); !r) return r;
  const Ground ground{dir_.get(), file_.get(), status->side_name};
  auto replaced = replace_metadata(ground, mark, metadata, *st);
  fault_point("filelock.retag.replaced");
  if (replaced) {
    if (auto r = posix::done(::fsync(dir_.get())); !r) {
      replaced = failed(r.error(), "its directory cannot be written");
    }
  }
  return end_op(std::move(replaced));
}

Outcome<void> Session::remove() {
  const auto status = locked_status();
  if (!status) return status.failure();
  if (status->condition == Condition::kDamagedMark) return remove_damaged(*status);
  if (status->condition == Condition::kReverting && status->backup == SideState::kOurs) {
    return revert(*status, Caller{});
  }
  if (auto r = begin_op(Op::kRemove, status->mark->id, status->side_name); !r) return r;
  const auto removed = do_remove({dir_.get(), file_.get(), status->side_name}, status->mark->id);
  if (!removed) return removed.failure();  // the journal stays: whoever comes next goes on
  return end_op(removed);
}

// The id is not known: what was made for this inode goes.
Outcome<void> Session::remove_damaged(const Status& status) {
  const auto st = posix::stat_of(file_.get());
  if (!st) return failed(st.error(), "it cannot be looked at");
  if (auto r = remove_mark(file_.get()); !r) {
    return failed(r.error(), "its lock's mark cannot be removed");
  }
  fault_point("filelock.remove.unmarked");
  if (auto r = sync_inode(file_.get()); !r) {
    return failed(r.error(), "its lock's mark cannot be removed");
  }
  const auto names = side_names(status.side_name);
  if (!names) return {};
  for (const std::string& name : {names->metadata, names->backup}) {
    const auto side = look_at_side(dir_.get(), name, LockId{});
    if (!side) return failed(side.error(), in_quotes(name) + " cannot be looked at");
    if (side->state != SideState::kOtherLock || side->mark->ino != st->st_ino) continue;
    if (auto r = unlink_side(dir_.get(), name, *side); !r) {
      return failed(r.error(), in_quotes(name) + " cannot be removed");
    }
  }
  return {};
}

Outcome<void> Session::revert_and_remove(const Caller& caller) {
  const auto status = locked_status();
  if (!status) return status.failure();
  if (status->condition == Condition::kDamagedMark) return refused(EBUSY, status->words);
  return revert(*status, caller);
}

Outcome<void> Session::revert(const Status& status, const Caller& caller) {
  const LockId& id = status.mark->id;
  const Ground ground{dir_.get(), file_.get(), status.side_name};
  if (auto r = check_revert(ground, id, caller); !r) return r;
  if (auto r = begin_op(Op::kRevert, id, status.side_name); !r) return r;
  if (auto committed = commit_revert(ground, *status.mark, journal_); !committed) {
    return end_op(std::move(committed));
  }
  const auto reverted = do_revert(ground, id);
  if (!reverted) return reverted.failure();  // as above
  return end_op(reverted);
}

}  // namespace latchfs::filelock
