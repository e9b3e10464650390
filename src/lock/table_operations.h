// LockTable: operations that are in flight outside of the table. Included by table.h only.
//
// With nothing on its file an operation says of itself where the arena can find it, and goes ahead.
// It is taken in, as the grant it would have been, by the step that gives the file its record: so
// whatever is granted on a file is granted with all its operations in the table. (Later ones see
// the record, and ask.)
#pragma once

namespace latchfs::lock {

// f has a record, and nobody was granted a lock on it yet. Commits in between, with taking_in set,
// when there are many: who comes next goes on.
template <class A>
void LockTable<A>::take_in_operations(Ref f) {
  const FileId id{file(f).dev, file(f).ino};
  int taken = 0;
  a_.take_in_operations(id, [&](const LockService::OpRequest& op, std::int64_t started) {
    if (!take_in(f, op, started) || ++taken % kWideGrants != 0) return;
    a_.set(file(f).taking_in, std::uint8_t{1});
    commit_step();
  });
  a_.set(file(f).taking_in, std::uint8_t{0});
}

template <class A>
bool LockTable<A>::take_in(Ref f, const LockService::OpRequest& op, std::int64_t started) {
  if (Owners::find(a_, file(f).owners, op.op) != 0) return false;
  const Ref o = owner_for(f, op.op, op.holder, op.kind);
  a_.set(owner(o).alias_owner, op.owner.key);
  a_.set(owner(o).alias_description, op.description.key);
  const LockMode mode = op.kind == LockKind::kWriteOp ? LockMode::kExclusive : LockMode::kShared;
  set_range(o, op.range.begin(), op.range.end(), mode, started, 0);
  return true;
}

// So that a listing shows them. Not those on a file that has its record: that holds all that asked
// or were taken in; another one in flight has yet to look, and may find a lock.
template <class A>
void LockTable<A>::bring_in_operations(const std::optional<FileId>& only) {
  // A listing must not fail for want of memory: then it shows what there is.
  if (fx_.no_growth) return;
  for (const FileId& id : a_.files_of_operations()) {
    if (only && id != *only) continue;
    const Ref f = Files::find(a_, root_.files, id);
    if (f != 0 && file(f).taking_in == 0) continue;
    settle_file(file_for(id));  // it may have ended meanwhile
    commit_step();
  }
}

}  // namespace latchfs::lock
