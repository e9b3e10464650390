// LockTable: the calls of processes and administrators. Included by table.h only.
#pragma once

namespace latchfs::lock {

template <class A>
typename LockTable<A>::Attempt LockTable<A>::test(const LockRequest& req, std::int64_t mono) const {
  const Asker me{req.owner.mount, req.owner.key, 0, 0, req.owner.space};
  return conflict(Files::find(a_, root_.files, req.file), me, req.range.begin(), req.range.end(),
                  req.mode, mono);
}

template <class A>
typename LockTable<A>::Attempt LockTable<A>::attempt(const LockRequest& req, std::int64_t now,
                                                     std::int64_t mono) {
  const Asker me{req.owner.mount, req.owner.key, 0, 0, req.owner.space};
  const std::uint64_t begin = req.range.begin();
  const std::uint64_t end = req.range.end();
  // Before anything is looked at: a new record brings the operations in flight with it.
  Ref f = file_for(req.file);
  Ref o = Owners::find(a_, file(f).owners, req.owner);
  bool lost = false;
  const bool of_description = req.kind == LockKind::kOfd || req.kind == LockKind::kFlock;
  if (o != 0 && owner(o).grant_count != 0 && of_description && owner(o).fh != req.holder.fh) {
    // Another open file: the kernel gave the closed one's owner value out again at once, and its
    // RELEASE is still on the way. What that one held is nobody's.
    set_range(o, 0, ByteRange::kEof, std::nullopt, now, 0);
    lost = true;
  } else if (req.owner.space == OwnerSpace::kFlock && o != 0 && owner(o).grant_count != 0) {
    // flock_lock_inode(): the old lock goes first, whatever comes of the new one.
    if (grant(owner(o).grants).mode == req.mode) {
      a_.set(owner(o).fenced, std::uint8_t{0});
      return {};
    }
    set_range(o, 0, ByteRange::kEof, std::nullopt, now, 0);
    lost = true;
  }
  Attempt found = conflict(f, me, begin, end, req.mode, mono);
  bool weakened = lost;
  if (found.blocker == 0) {
    o = owner_for(f, req.owner, req.holder, req.kind);
    a_.set(owner(o).fenced, std::uint8_t{0});
    a_.set(owner(o).closing_at, std::int64_t{0});
    weakened |= set_range(o, begin, end, req.mode, now, 0).weakened;
  }
  if (lost && found.blocker != 0) settle_owner(o);  // the blocker keeps the file
  if (weakened && file(f).waiter_count != 0) {
    grant_waiters(f, lost && found.blocker != 0 ? 0 : o, lost ? 0 : begin,
                  lost ? ByteRange::kEof : end, now, mono);
  }
  if (lost && found.blocker != 0) {
    // Granting others may have replaced the very record that was found.
    f = Files::find(a_, root_.files, req.file);
    found = conflict(f, me, begin, end, req.mode, mono);
    if (found.blocker == 0) return attempt(req, now, mono);
  }
  return found;
}

template <class A>
void LockTable<A>::enqueue(const LockRequest& req, Ref blocker, bool settle, WaiterToken token,
                           std::int64_t now) {
  const Ref f = file_for(req.file);
  const Ref o = owner_for(f, req.owner, req.holder, req.kind);
  push_waiter(f, o, req.range.begin(), req.range.end(), req.mode, blocker, settle, token, now);
}

template <class A>
void LockTable<A>::release(FileId id, OwnerId who, ByteRange range) {
  const Ref f = Files::find(a_, root_.files, id);
  const Ref o = f == 0 ? 0 : Owners::find(a_, file(f).owners, who);
  if (o == 0) return;
  const Change change = set_range(o, range.begin(), range.end(), std::nullopt, kLongAgo, 0);
  settle_and_grant(f, o, change, range.begin(), range.end());
}

template <class A>
std::optional<std::uint32_t> LockTable<A>::splits(FileId id, OwnerId who, ByteRange range) const {
  const Ref f = Files::find(a_, root_.files, id);
  const Ref o = f == 0 ? 0 : Owners::find(a_, file(f).owners, who);
  const Ref g = o == 0 ? 0 : first_touching(o, range.begin());
  if (g == 0 || grant(g).begin >= range.begin() || grant(g).end <= range.end()) return std::nullopt;
  return owner(o).uid;
}

template <class A>
void LockTable<A>::drop_owner(FileId id, OwnerId who, bool fence) {
  const Ref f = Files::find(a_, root_.files, id);
  const Ref o = f == 0 ? 0 : Owners::find(a_, file(f).owners, who);
  if (o == 0) return;
  if (fence) a_.set(owner(o).fenced, std::uint8_t{0});
  const Change change = set_range(o, 0, ByteRange::kEof, std::nullopt, kLongAgo, 0);
  settle_and_grant(f, o, change, 0, ByteRange::kEof);
}

template <class A>
void LockTable<A>::drop_if_through(FileId id, OwnerId who, std::uint64_t fh) {
  const Ref f = Files::find(a_, root_.files, id);
  const Ref o = f == 0 ? 0 : Owners::find(a_, file(f).owners, who);
  if (o != 0 && owner(o).fh == fh) drop_owner(id, who, true);
}

template <class A>
void LockTable<A>::note_closing(FileId id, OwnerId who, std::int64_t mono) {
  const Ref f = Files::find(a_, root_.files, id);
  const Ref o = f == 0 ? 0 : Owners::find(a_, file(f).owners, who);
  if (o != 0 && owner(o).grant_count != 0) a_.set(owner(o).closing_at, mono);
}

template <class A>
Broken LockTable<A>::break_range(FileId id, OwnerId who, ByteRange range, bool fence) {
  Broken broken;
  const Ref f = Files::find(a_, root_.files, id);
  const Ref o = f == 0 ? 0 : Owners::find(a_, file(f).owners, who);
  if (o == 0) return broken;
  for (Ref g = first_touching(o, range.begin()); g != 0 && grant(g).begin < range.end();
       g = next_grant(o, g)) {
    if (grant(g).end <= range.begin()) continue;
    ++broken.count;
    if (broken.grants.size() >= LockService::kMaxBrokenListed) continue;
    Grant piece = to_grant(g);
    if (auto cut = ByteRange::from_half_open(std::max(grant(g).begin, range.begin()),
                                             std::min(grant(g).end, range.end()))) {
      piece.range = *cut;
    }
    broken.grants.push_back(piece);
  }
  if (broken.count == 0) return broken;
  if (fence) a_.set(owner(o).fenced, std::uint8_t{1});
  const Change change = set_range(o, range.begin(), range.end(), std::nullopt, kLongAgo, 0);
  settle_and_grant(f, o, change, range.begin(), range.end());
  return broken;
}

template <class A>
std::pair<typename LockTable<A>::OpOutcome, typename LockTable<A>::Attempt>
LockTable<A>::attempt_op(const LockService::OpRequest& req, std::int64_t now, std::int64_t mono) {
  Ref f = Files::find(a_, root_.files, req.file);
  if (f != 0 && req.kind == LockKind::kWriteOp) {
    const OwnerId flock{req.description.mount, req.description.key, OwnerSpace::kFlock};
    for (const OwnerId& id : {req.owner, req.description, flock}) {
      if (id.key == 0 || (id == req.owner && !req.carried)) continue;
      const Ref o = Owners::find(a_, file(f).owners, id);
      if (o == 0 || owner(o).fenced == 0) continue;
      const bool of_process = id.space == OwnerSpace::kRange && owner(o).kind != LockKind::kOfd;
      if (!of_process || req.process == 0 || req.process == owner(o).pid) {
        return {OpOutcome::kFenced, {}};
      }
      a_.set(owner(o).fenced, std::uint8_t{0});
      settle_owner(o);
      f = Files::find(a_, root_.files, req.file);
      if (f == 0) break;
    }
  }
  const Asker me{req.op.mount, req.op.key, req.owner.key, req.description.key, OwnerSpace::kOp};
  const LockMode mode = req.kind == LockKind::kWriteOp ? LockMode::kExclusive : LockMode::kShared;
  const Attempt found = conflict(f, me, req.range.begin(), req.range.end(), mode, mono);
  if (found.blocker != 0) return {OpOutcome::kBlocked, found};
  f = file_for(req.file);
  const Ref o = owner_for(f, req.op, req.holder, req.kind);
  a_.set(owner(o).alias_owner, req.owner.key);
  a_.set(owner(o).alias_description, req.description.key);
  set_range(o, req.range.begin(), req.range.end(), mode, now, 0);
  return {OpOutcome::kGranted, {}};
}

template <class A>
void LockTable<A>::enqueue_op(const LockService::OpRequest& req, Ref blocker, WaiterToken token,
                              std::int64_t now) {
  const Ref f = file_for(req.file);
  const Ref o = owner_for(f, req.op, req.holder, req.kind);
  a_.set(owner(o).alias_owner, req.owner.key);
  a_.set(owner(o).alias_description, req.description.key);
  const LockMode mode = req.kind == LockKind::kWriteOp ? LockMode::kExclusive : LockMode::kShared;
  push_waiter(f, o, req.range.begin(), req.range.end(), mode, blocker, false, token, now);
}

}  // namespace latchfs::lock
