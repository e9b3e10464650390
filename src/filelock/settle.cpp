// What a daemon that died had begun.
#include "base/fault_point.h"
#include "base/log.h"
#include "filelock/side_files.h"
#include "filelock/steps.h"

namespace latchfs::filelock {
namespace {

// The mark on the file is this lock's.
Result<bool> is_in_force(const Ground& ground, const LockId& id) {
  if (ground.file < 0) return false;
  const auto mark = read_mark(ground.file);
  if (!mark) return mark.error();
  return *mark && (*mark)->kind == MarkKind::kLock && (*mark)->id == id;
}

Outcome<void> remove_temporary(const Ground& ground, const LockId& id) {
  if (auto r = remove_side(ground.dir, temporary_name(id), id); !r) {
    return failed(r.error(), in_quotes(temporary_name(id)) + " cannot be removed");
  }
  return {};
}

Outcome<void> settle_apply(const JournalEntry& entry, const Ground& ground) {
  const auto in_force = is_in_force(ground, entry.id);
  if (!in_force) return failed(in_force.error(), "its lock's mark cannot be read");
  if (!*in_force) return undo_apply(ground, entry.id);
  if (auto r = sync_inode(ground.file); !r) return failed(r.error(), "it cannot be written");
  return {};
}

Outcome<void> settle_revert(const JournalEntry& entry, const Ground& ground) {
  const auto in_force = is_in_force(ground, entry.id);
  if (!in_force) return failed(in_force.error(), "its lock's mark cannot be read");
  // All was put back, and somebody died while removing what is left, the metadata first.
  if (!*in_force) return do_remove(ground, entry.id);
  bool committed = entry.committed;
  if (!committed) {
    const auto metadata = read_metadata(ground.dir, ground.name, entry.id);
    committed = metadata && metadata->state == LockState::kReverting;
  }
  if (!committed) {
    return remove_temporary(ground, entry.id);
  }
  auto reverted = do_revert(ground, entry.id);
  const bool hopeless =
      reverted.error() == errno_code(ENOENT) || reverted.error() == errno_code(EBUSY);
  if (!reverted && hopeless) {
    log::error("{}: reverting it was begun and cannot be completed, it stays locked: {}",
               in_quotes(ground.name), reverted.failure().words);
    return remove_temporary(ground, entry.id);
  }
  return reverted;
}

}  // namespace

Outcome<void> settle(const JournalEntry& entry, const Ground& ground) {
  fault_point("filelock.settle");
  switch (entry.op) {
    case Op::kApply:
      return settle_apply(entry, ground);
    case Op::kRetag:
      return remove_temporary(ground, entry.id);
    case Op::kRemove:
      return do_remove(ground, entry.id);
    case Op::kRevert:
      return settle_revert(entry, ground);
  }
  return {};
}

}  // namespace latchfs::filelock
