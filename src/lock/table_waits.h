// LockTable: waiters, in order of arrival. Included by table.h only.
//
// A waiter waits for grants only, never for another waiter: so no wait exists that the kernel's
// own locks would not have, and the deadlock search follows grants. Order of arrival decides among
// waiters; compatible ones are granted together.
#pragma once

namespace latchfs::lock {

template <class A>
const Ref& LockTable<A>::bucket(std::uint64_t mount, std::uint64_t key) const {
  const std::uint64_t h = (mount * 0x9E3779B97F4A7C15ULL) ^ (key * 0xC2B2AE3D27D4EB4FULL);
  return root_.waiting[(h >> 40) % kWaiterBuckets];
}

template <class A>
void LockTable<A>::push_waiter(Ref f, Ref o, std::uint64_t begin, std::uint64_t end, LockMode mode,
                               Ref blocker, bool settle, WaiterToken token, std::int64_t now) {
  const Ref w = a_.template alloc<WaiterRec>();
  const WaiterRec& rec = waiter(w);
  const FileRec& fr = file(f);
  a_.set(rec.begin, begin);
  a_.set(rec.end, end);
  a_.set(rec.mode, mode);
  a_.set(rec.token, token.raw);
  a_.set(rec.since, now);
  a_.set(rec.owner, o);
  a_.set(rec.blocker, blocker == 0 ? Ref{0} : grant(blocker).owner);
  a_.set(rec.settle, static_cast<std::uint8_t>(settle ? 1 : 0));
  a_.set(rec.seq, fr.next_seq);
  bump(fr.next_seq, 1);
  a_.set(rec.prev, fr.wait_tail);
  if (fr.wait_tail != 0) {
    a_.set(waiter(fr.wait_tail).next, w);
  } else {
    a_.set(fr.wait_head, w);
    a_.set(fr.hull_begin, begin);
    a_.set(fr.hull_end, end);
  }
  a_.set(fr.wait_tail, w);
  a_.set(fr.hull_begin, std::min(fr.hull_begin, begin));
  a_.set(fr.hull_end, std::max(fr.hull_end, end));
  line_up(w);
  const OwnerRec& ow = owner(o);
  if (ow.space == OwnerSpace::kRange) {
    const Ref& head = bucket(ow.mount, ow.key);
    a_.set(rec.same_bucket, head);
    a_.set(head, w);
    bump(root_.range_waiters, 1);
  }
  bump(ow.waiter_count, 1);
  bump(fr.waiter_count, 1);
  if (ow.space == OwnerSpace::kFlock) bump(fr.flock_waiter_count, 1);
  bump(root_.waiter_count, 1);
  count_uid(ow.uid, 1);
  fx_.changed = true;
}

// Out of the queue, the hash and the counts; the record stays the caller's.
template <class A>
void LockTable<A>::take_from_queue(Ref w, bool granted) {
  const WaiterRec& rec = waiter(w);
  const OwnerRec& ow = owner(rec.owner);
  const FileRec& f = file(ow.file);
  a_.set(rec.prev != 0 ? waiter(rec.prev).next : f.wait_head, rec.next);
  a_.set(rec.next != 0 ? waiter(rec.next).prev : f.wait_tail, rec.prev);
  if (ow.space == OwnerSpace::kRange) {
    const Ref* at = &bucket(ow.mount, ow.key);
    while (*at != 0 && *at != w) at = &waiter(*at).same_bucket;
    if (*at == w) a_.set(*at, rec.same_bucket);
    bump(root_.range_waiters, -1);
  }
  bump(ow.waiter_count, -1);
  bump(f.waiter_count, -1);
  if (ow.space == OwnerSpace::kFlock) bump(f.flock_waiter_count, -1);
  bump(root_.waiter_count, -1);
  count_uid(ow.uid, -1);
  fx_.changed = true;
  leave_tree(w, granted);
}

// Ends a wait: this mount's are told by the caller of the table, others' go to the ready list for
// their daemon to fetch. The owner record may be left with nothing: the caller settles it.
template <class A>
void LockTable<A>::finish(Ref w, int err) {
  const WaiterRec& rec = waiter(w);
  const OwnerRec& ow = owner(rec.owner);
  take_from_queue(w, err == 0);
  if (ow.mount == self_) {
    fx_.finished.push_back({WaiterToken{rec.token}, err});
    a_.template free<WaiterRec>(w);
    return;
  }
  a_.set(rec.state, WaiterState::kReady);
  a_.set(rec.result, static_cast<std::uint8_t>(err));
  // From here on the record stands for itself: begin holds the mount, the owner may go.
  a_.set(rec.begin, ow.mount);
  a_.set(rec.owner, Ref{0});
  a_.set(rec.prev, Ref{0});
  a_.set(rec.next, root_.ready);
  a_.set(root_.ready, w);
  fx_.ring.push_back(rec.begin);
}

// Among the waiters of one lock the kernel keeps a tree: a request that conflicts with one already
// waiting queues behind that, and moves when that does (fs/locks.c __locks_insert_block(),
// locks_move_blocks(), __locks_wake_up_blocks()). Who is granted when does not depend on it, but
// what the deadlock search sees does. Long queues do without: walking them costs too much.
template <class A>
bool LockTable<A>::in_tree(Ref f) const {
  return file(f).waiter_count <= kTreeWaiters;
}

// The waiter that `w` queues behind, by what it is blocked by; 0 if none.
template <class A>
Ref LockTable<A>::leader(Ref w) const {
  const WaiterRec& rec = waiter(w);
  const OwnerRec& ow = owner(rec.owner);
  if (!in_tree(ow.file) || ow.space != OwnerSpace::kRange || rec.settle != 0) return 0;
  Ref found = 0;
  for (Ref x = file(ow.file).wait_head; x != 0 && x != w; x = waiter(x).next) {
    const WaiterRec& other = waiter(x);
    const std::uint32_t behind = found != 0 ? waiter(found).seq + 1 : 0;
    if (other.blocker != rec.blocker || other.behind != behind || other.owner == rec.owner ||
        owner(other.owner).space != OwnerSpace::kRange || other.settle != 0) {
      continue;
    }
    if (other.begin < rec.end && other.end > rec.begin &&
        (other.mode == LockMode::kExclusive || rec.mode == LockMode::kExclusive)) {
      found = x;
    }
  }
  return found;
}

template <class A>
void LockTable<A>::line_up(Ref w) {
  const Ref ahead = leader(w);
  a_.set(waiter(w).behind, ahead != 0 ? waiter(ahead).seq + 1 : 0U);
}

// `w`, still blocked, looks anew at what is in its way, and so do those behind it.
template <class A>
void LockTable<A>::retry(Ref w, std::uint32_t room) {
  if (room == 0) throw Damaged{"a queue of waiters that never ends"};
  const WaiterRec& rec = waiter(w);
  const OwnerRec& ow = owner(rec.owner);
  const Attempt found = conflict(ow.file, asker(ow), rec.begin, rec.end, rec.mode, fx_.mono);
  if (found.blocker == 0) return;
  a_.set(rec.blocker, grant(found.blocker).owner);
  line_up(w);
  if (ow.kind == LockKind::kPosix) {
    const FileRec& f = file(ow.file);
    fx_.recheck.push_back({FileId{f.dev, f.ino}, ow.mount, WaiterToken{rec.token}});
  }
  if (!in_tree(ow.file)) return;
  for (Ref x = rec.next; x != 0; x = waiter(x).next) {
    if (waiter(x).behind == rec.seq + 1) retry(x, room - 1);
  }
}

// `w` has left the queue. Granted: those behind it wait for its lock now. Else they look anew.
template <class A>
void LockTable<A>::leave_tree(Ref w, bool granted) {
  const WaiterRec& rec = waiter(w);
  if (!in_tree(owner(rec.owner).file)) return;
  for (Ref x = rec.next; x != 0; x = waiter(x).next) {
    if (waiter(x).behind != rec.seq + 1) continue;
    if (granted) {
      a_.set(waiter(x).behind, 0U);
      a_.set(waiter(x).blocker, rec.owner);
    } else {
      retry(x);
    }
  }
}

// Whether the kernel would now let `w` try again: the very lock that it waits for was cut or went,
// with others of its owner still in the way. It then looks for all that is, and for a deadlock,
// which an OFD request, never checked itself, may have closed meanwhile.
// What is left of the owner's locks in w's range tells: w waited for the lowest.
template <class A>
bool LockTable<A>::retried(const WaiterRec& w, Ref by, std::uint64_t begin) const {
  if (by == 0 || w.blocker != by || w.behind != 0) return false;
  const Ref g = in_owner(by, w.begin, w.end, w.mode);
  return g != 0 && (begin < grant(g).begin || begin == grant(g).end);
}

template <class A>
void LockTable<A>::grant_waiters(Ref f, Ref by, std::uint64_t begin, std::uint64_t end,
                                 std::int64_t now, std::int64_t mono) {
  int granted = 0;
  int changed = 0;  // otherwise
  bool announced = false;
  // What is done so far comes true, the rest stays announced.
  const auto commit_some = [&] {
    announced = true;
    a_.set(root_.regrant, Regrant{f, 0, begin, end});
    commit_step();
  };
  for (Ref w = file(f).wait_head; w != 0;) {
    const WaiterRec& rec = waiter(w);
    const Ref next = rec.next;
    if (rec.begin >= end || rec.end <= begin) {
      w = next;
      continue;
    }
    const Ref o = rec.owner;
    const OwnerRec& ow = owner(o);
    const Attempt found = conflict(f, asker(ow), rec.begin, rec.end, rec.mode, mono);
    if (found.blocker == 0) {
      if (!a_.template can_take<GrantRec>(4)) {
        if (!fx_.no_growth) throw NeedCells{};
        finish(w, ENOLCK);
        settle_owner(o);
        if (++changed % kWideWaiters == 0) commit_some();
        w = next;
        continue;
      }
      if (++granted % kWideGrants == 0) commit_some();
      const std::uint64_t got_begin = rec.begin;
      const std::uint64_t got_end = rec.end;
      a_.set(ow.fenced, std::uint8_t{0});
      a_.set(ow.closing_at, std::int64_t{0});
      const Change change = set_range(o, got_begin, got_end, rec.mode, now, w);
      finish(w, 0);
      // A waiting downgrade or split may make room for those passed over: look again from the
      // front, over its range too.
      if (change.weakened) {
        by = o;
        begin = std::min(begin, got_begin);
        end = std::max(end, got_end);
        w = file(f).wait_head;
      } else {
        w = next;
      }
      continue;
    }
    if (rec.settle != 0 && !found.transient) {
      finish(w, EAGAIN);
      settle_owner(o);  // the file stays: the blocker holds it
      if (++changed % kWideWaiters == 0) commit_some();
      w = next;
      continue;
    }
    const GrantRec& wall = grant(found.blocker);
    const bool moved = rec.blocker != wall.owner && blocker_of(w).blocker == found.blocker;
    if (moved || retried(rec, by, begin)) {
      retry(w);
      if (++changed % kWideWaiters == 0) commit_some();
    }
    // An exclusive grant over all that anybody here waits for, by an owner that waits for nothing
    // here: nobody of its kind behind can be granted. Keeps a long queue for one lock cheap.
    if (!in_tree(f) && wall.mode == LockMode::kExclusive && wall.begin <= file(f).hull_begin &&
        wall.end >= file(f).hull_end && owner(wall.owner).waiter_count == 0 &&
        owner(wall.owner).space != OwnerSpace::kOp && !found.transient) {
      const bool flock = ow.space == OwnerSpace::kFlock;
      const std::uint32_t flocks = file(f).flock_waiter_count;
      if (flock ? flocks == file(f).waiter_count : flocks == 0) break;
    }
    w = next;
  }
  if (announced) a_.set(root_.regrant, Regrant{});
}

// In this order: granting may commit, and a death after that must not find an owner with nothing.
template <class A>
void LockTable<A>::settle_and_grant(Ref f, Ref o, const Change& change, std::uint64_t begin,
                                    std::uint64_t end) {
  const bool somebody_waits = change.weakened && file(f).waiter_count != 0;
  const Ref by = owner(o).grant_count != 0 ? o : 0;
  settle_owner(o);
  if (somebody_waits) grant_waiters(f, by, begin, end, fx_.now, fx_.mono);
}

template <class A>
Ref LockTable<A>::find_waiter(FileId id, std::uint64_t mount, WaiterToken token) const {
  const Ref f = Files::find(a_, root_.files, id);
  if (f == 0) return 0;
  for (Ref w = file(f).wait_head; w != 0; w = waiter(w).next) {
    if (waiter(w).token == token.raw && owner(waiter(w).owner).mount == mount) return w;
  }
  return 0;
}

template <class A>
bool LockTable<A>::cancel(FileId id, std::uint64_t mount, WaiterToken token) {
  const Ref w = find_waiter(id, mount, token);
  if (w == 0) return false;
  const Ref o = waiter(w).owner;
  take_from_queue(w, false);
  a_.template free<WaiterRec>(w);
  settle_owner(o);
  return true;
}

template <class A>
bool LockTable<A>::refuse(FileId id, std::uint64_t mount, WaiterToken token, int err) {
  const Ref w = find_waiter(id, mount, token);
  if (w == 0) return false;
  const Ref o = waiter(w).owner;
  finish(w, err);
  settle_owner(o);
  return true;
}

template <class A>
bool LockTable<A>::collect_ready(int at_most) {
  const Ref* at = &root_.ready;
  while (*at != 0) {
    const Ref w = *at;
    const WaiterRec& rec = waiter(w);
    if (rec.begin != self_) {
      at = &rec.next;
      continue;
    }
    if (at_most-- == 0) return true;
    fx_.finished.push_back({WaiterToken{rec.token}, rec.result});
    a_.set(*at, rec.next);
    a_.template free<WaiterRec>(w);
  }
  return false;
}

template <class A>
bool LockTable<A>::reap(std::uint64_t mount, FileId& at, bool& at_start) {
  if (at_start) {
    int freed = 0;
    for (const Ref* link = &root_.ready; *link != 0;) {
      const Ref w = *link;
      if (waiter(w).begin != mount) {
        link = &waiter(w).next;
        continue;
      }
      a_.set(*link, waiter(w).next);
      a_.template free<WaiterRec>(w);
      if (++freed % kWideWaiters == 0) commit_step();
    }
    commit_step();
  }
  // Few enough for those who wait for the shard, however much each takes. Then the same file again.
  constexpr int kAtOnce = 64;
  int dropped = 0;
  for (int files = 0; files < kAtOnce; ++files) {
    const Ref f = Files::after(a_, root_.files, at, at_start);
    if (f == 0) return false;
    at = FileId{file(f).dev, file(f).ino};
    at_start = true;
    // Its waiters first, so that none of them is granted what its other locks leave.
    for (Ref w = file(f).wait_head; w != 0;) {
      const Ref next = waiter(w).next;
      const Ref o = waiter(w).owner;
      if (owner(o).mount == mount) {
        take_from_queue(w, false);
        a_.template free<WaiterRec>(w);
        settle_owner(o);  // the file stays while there is a next one
        commit_step();
        if (++dropped == kAtOnce) return true;
      }
      w = next;
    }
    // Owners are in order of mount, key, space: those of one mount lie together, spaces mixed.
    OwnerId id{mount, 0, OwnerSpace{}};
    for (bool or_equal = true;; or_equal = false) {
      if (Files::find(a_, root_.files, at) != f) break;  // settled with its last owner
      const Ref o = Owners::after(a_, file(f).owners, id, or_equal);
      if (o == 0 || owner(o).mount != mount) break;
      id = OwnerId{mount, owner(o).key, owner(o).space};
      drop_owner(at, id, true);
      commit_step();
      if (++dropped == kAtOnce) return true;
    }
    at_start = false;
    // The dead one may have pointed a waiter at another blocker and not have asked whether that
    // closes a cycle.
    if (Files::find(a_, root_.files, at) != f) continue;
    for (Ref w = file(f).wait_head; w != 0; w = waiter(w).next) {
      const OwnerRec& ow = owner(waiter(w).owner);
      if (ow.kind == LockKind::kPosix) {
        fx_.recheck.push_back({at, ow.mount, WaiterToken{waiter(w).token}});
      }
    }
  }
  return true;
}

template <class A>
void LockTable<A>::recover() {
  if (root_.intent.owner != 0) {
    const Intent intent = root_.intent;
    const Ref o = intent.owner;
    const Ref f = owner(o).file;
    set_range(o, intent.begin, intent.end,
              intent.unlock != 0 ? std::nullopt : std::optional{intent.mode}, fx_.now,
              intent.waiter);
    if (intent.waiter != 0) finish(intent.waiter, 0);
    a_.set(root_.intent, Intent{});
    settle_and_grant(f, o, Change{true, true}, intent.begin, intent.end);
    commit_step();
  }
  if (root_.regrant.file != 0) {
    const Regrant regrant = root_.regrant;
    grant_waiters(regrant.file, 0, regrant.begin, regrant.end, fx_.now, fx_.mono);
    a_.set(root_.regrant, Regrant{});
    commit_step();
  }
}

template <class A>
void LockTable<A>::posix_blockers_of(std::uint64_t mount, std::uint64_t key,
                                     std::vector<WaitNode>& out) const {
  for (Ref w = bucket(mount, key); w != 0; w = waiter(w).same_bucket) {
    if (out.size() >= WaitSearch::kMaxFollowed) return;
    ++fx_.looked_at;
    const WaiterRec& rec = waiter(w);
    const OwnerRec& ow = owner(rec.owner);
    if (ow.mount != mount || ow.key != key || rec.settle != 0) continue;
    const Attempt found = blocker_of(w);
    if (found.blocker == 0) continue;
    const OwnerRec& by = owner(grant(found.blocker).owner);
    // The kernel enters in its search what queued right behind a POSIX owner's lock or request, and
    // follows it to the lock at the end (__locks_insert_block(), what_owner_is_waiting_for()).
    LockKind ahead = by.kind;
    if (rec.behind != 0 && in_tree(ow.file)) {
      for (Ref x = file(ow.file).wait_head; x != 0 && x != w; x = waiter(x).next) {
        if (waiter(x).seq + 1 == rec.behind) ahead = owner(waiter(x).owner).kind;
      }
    }
    if (ahead == LockKind::kPosix) out.emplace_back(by.mount, by.key);
  }
}

template <class A>
std::vector<std::optional<typename LockTable<A>::Waiting>> LockTable<A>::waiting(
    FileId id, std::span<const Effects::Recheck> items) const {
  std::vector<std::optional<Waiting>> found(items.size());
  std::map<std::pair<std::uint64_t, std::uint64_t>, std::size_t> wanted;
  for (std::size_t i = 0; i < items.size(); ++i) wanted[{items[i].mount, items[i].token.raw}] = i;
  const Ref f = Files::find(a_, root_.files, id);
  for (Ref w = f == 0 ? 0 : file(f).wait_head; w != 0 && !wanted.empty(); w = waiter(w).next) {
    const OwnerRec& ow = owner(waiter(w).owner);
    const auto it = wanted.find({ow.mount, waiter(w).token});
    if (it == wanted.end()) continue;
    found[it->second] = Waiting{OwnerId{ow.mount, ow.key, ow.space}, blocker_of(w).blocker};
    wanted.erase(it);
  }
  return found;
}

}  // namespace latchfs::lock
