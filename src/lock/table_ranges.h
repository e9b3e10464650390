// LockTable: an owner's own grants on one file. Included by table.h only.
//
// After fs/locks.c posix_lock_inode(): equal modes that touch merge, another mode is cut, split or
// replaced; what is outside the range stays.
#pragma once

namespace latchfs::lock {

template <class A>
Ref LockTable<A>::file_for(FileId id) {
  Ref f = Files::find(a_, root_.files, id);
  if (f != 0) {
    if (file(f).taking_in != 0) take_in_operations(f);
    return f;
  }
  f = a_.template alloc<FileRec>();
  a_.set(file(f).dev, id.dev);
  a_.set(file(f).ino, id.ino);
  a_.set(root_.files, Files::insert(a_, root_.files, f));
  bump(root_.file_count, 1);
  a_.file_appears(id);
  take_in_operations(f);
  return f;
}

template <class A>
Ref LockTable<A>::owner_for(Ref f, const OwnerId& id, const Holder& holder, LockKind kind) {
  Ref o = Owners::find(a_, file(f).owners, id);
  if (o == 0) {
    o = a_.template alloc<OwnerRec>();
    a_.set(owner(o).mount, id.mount);
    a_.set(owner(o).key, id.key);
    a_.set(owner(o).space, id.space);
    a_.set(owner(o).file, f);
    a_.set(owner(o).backing_fd, std::int32_t{-1});
    a_.set(file(f).owners, Owners::insert(a_, file(f).owners, o));
    bump(root_.owner_count, 1);
    a_.set(owner(o).uid, holder.uid);
  }
  // The newest call tells best who it is (a process that has exec'ed); an unlock names nobody.
  // What is counted or hashed by uid and kind must be taken back by the same ones.
  const OwnerRec& rec = owner(o);
  if (rec.grant_count == 0 && rec.waiter_count == 0) a_.set(rec.uid, holder.uid);
  if (rec.waiter_count == 0) a_.set(rec.kind, kind);
  if (holder.pid != 0) a_.set(rec.pid, holder.pid);
  if (holder.comm[0] != '\0') a_.set(rec.comm, holder.comm);
  a_.set(rec.fh, holder.fh);
  a_.set(rec.backing_fd, holder.backing_fd);
  if (rec.client != holder.client) a_.set(rec.client, holder.client);
  return o;
}

template <class A>
void LockTable<A>::settle_owner(Ref o) {
  const OwnerRec& rec = owner(o);
  const Ref f = rec.file;
  if (rec.grant_count == 0 && rec.waiter_count == 0 && rec.fenced == 0) {
    a_.set(file(f).owners, Owners::erase(a_, file(f).owners, o));
    a_.template free<OwnerRec>(o);
    bump(root_.owner_count, -1);
  }
  settle_file(f);
}

template <class A>
void LockTable<A>::settle_file(Ref f) {
  if (file(f).owners != 0) return;
  const FileId id{file(f).dev, file(f).ino};
  a_.set(root_.files, Files::erase(a_, root_.files, f));
  a_.template free<FileRec>(f);
  bump(root_.file_count, -1);
  a_.file_goes(id);
}

template <class A>
void LockTable<A>::count_uid(std::uint32_t uid, std::int64_t by) {
  for (auto& [who, delta] : fx_.uid_delta) {
    if (who == uid) {
      delta += by;
      return;
    }
  }
  fx_.uid_delta.emplace_back(uid, by);
}

template <class A>
void LockTable<A>::link_grant(Ref o, Ref g) {
  const OwnerRec& rec = owner(o);
  const FileRec& f = file(rec.file);
  const Ref& tree = tree_of(f, rec.space);
  a_.set(tree, FileGrants::insert(a_, tree, g));
  a_.set(rec.grants, OwnerGrants::insert(a_, rec.grants, g));
  if (rec.grant_count == 0 && rec.older == 0 && f.oldest != o) {
    // The kernel keeps an owner's locks together, new owners at the end of the list.
    a_.set(rec.older, f.newest);
    if (f.newest != 0) a_.set(owner(f.newest).newer, o);
    a_.set(f.newest, o);
    if (f.oldest == 0) a_.set(f.oldest, o);
  }
  bump(rec.grant_count, 1);
  bump(f.grant_count, 1);
  if (rec.space == OwnerSpace::kOp) bump(f.op_count, 1);
  bump(root_.grant_count, 1);
  count_uid(rec.uid, 1);
  fx_.changed = true;
}

// Leaves the owner in the list of holders: set_piece() takes it out when nothing came instead.
template <class A>
void LockTable<A>::unlink_grant(Ref o, Ref g) {
  const OwnerRec& rec = owner(o);
  const FileRec& f = file(rec.file);
  const Ref& tree = tree_of(f, rec.space);
  a_.set(tree, FileGrants::erase(a_, tree, g));
  a_.set(rec.grants, OwnerGrants::erase(a_, rec.grants, g));
  bump(rec.grant_count, -1);
  bump(f.grant_count, -1);
  if (rec.space == OwnerSpace::kOp) bump(f.op_count, -1);
  bump(root_.grant_count, -1);
  count_uid(rec.uid, -1);
  fx_.changed = true;
}

template <class A>
void LockTable<A>::set_grant_end(Ref o, Ref g, std::uint64_t end) {
  a_.set(grant(g).end, end);
  FileGrants::refresh(a_, tree_of(file(owner(o).file), owner(o).space), g);
  fx_.changed = true;
}

// The owner's first grant that ends at or after begin: overlaps it or touches it from below.
template <class A>
Ref LockTable<A>::first_touching(Ref o, std::uint64_t begin) const {
  const Ref root = owner(o).grants;
  if (begin == 0) return OwnerGrants::first(a_, root);
  const Ref g = OwnerGrants::floor(a_, root, begin - 1);
  if (g != 0 && grant(g).end >= begin) return g;
  return OwnerGrants::after(a_, root, begin - 1);
}

template <class A>
typename LockTable<A>::Change LockTable<A>::set_piece(Ref o, std::uint64_t begin, std::uint64_t end,
                                                      std::optional<LockMode> mode,
                                                      std::int64_t now) {
  Change change;
  std::uint64_t new_begin = begin;
  std::uint64_t new_end = end;
  std::int64_t at = now;
  Ref keep = 0;  // an equal-mode grant with the right begin: grows instead of being replaced
  for (Ref g = first_touching(o, begin); g != 0 && grant(g).begin <= end;) {
    const GrantRec& rec = grant(g);
    const bool overlaps = rec.begin < end && begin < rec.end;
    if (mode && rec.mode == *mode) {
      if (rec.begin <= begin && rec.end >= end) return change;  // nothing new
      at = std::min(at, rec.acquired_at);
      const Ref next = next_grant(o, g);
      new_end = std::max(new_end, rec.end);
      if (rec.begin <= begin) {
        new_begin = rec.begin;
        keep = g;
      } else {
        unlink_grant(o, g);
        a_.template free<GrantRec>(g);
      }
      g = next;
      continue;
    }
    if (!overlaps) {
      g = next_grant(o, g);
      continue;
    }
    change.any = true;
    if (rec.mode == LockMode::kExclusive || !mode) change.weakened = true;
    const std::uint64_t old_end = rec.end;
    const LockMode old_mode = rec.mode;
    const std::int64_t old_at = rec.acquired_at;
    const bool head_stays = rec.begin < begin;
    const Ref next = next_grant(o, g);
    if (head_stays) {
      set_grant_end(o, g, begin);
    } else {
      unlink_grant(o, g);
      a_.template free<GrantRec>(g);
    }
    if (old_end > end) {
      const Ref tail = a_.template alloc<GrantRec>();
      a_.set(grant(tail).begin, end);
      a_.set(grant(tail).end, old_end);
      a_.set(grant(tail).mode, old_mode);
      a_.set(grant(tail).acquired_at, old_at);
      a_.set(grant(tail).owner, o);
      link_grant(o, tail);
    }
    g = next;
  }
  if (mode) {
    change.any = true;
    if (keep != 0) {
      set_grant_end(o, keep, new_end);
    } else {
      const Ref g = a_.template alloc<GrantRec>();
      a_.set(grant(g).begin, new_begin);
      a_.set(grant(g).end, new_end);
      a_.set(grant(g).mode, *mode);
      a_.set(grant(g).acquired_at, at);
      a_.set(grant(g).owner, o);
      link_grant(o, g);
    }
  }
  const OwnerRec& rec = owner(o);
  if (rec.grant_count == 0) {
    const FileRec& f = file(rec.file);
    if (f.oldest == o || rec.older != 0) {  // it was in the list of holders
      a_.set(rec.older != 0 ? owner(rec.older).newer : f.oldest, rec.newer);
      a_.set(rec.newer != 0 ? owner(rec.newer).older : f.newest, rec.older);
      a_.set(rec.older, Ref{0});
      a_.set(rec.newer, Ref{0});
    }
  }
  return change;
}

template <class A>
typename LockTable<A>::Change LockTable<A>::set_range(Ref o, std::uint64_t begin, std::uint64_t end,
                                                      std::optional<LockMode> mode,
                                                      std::int64_t now, Ref granting) {
  Change all;
  bool announced = false;
  for (std::uint64_t from = begin; from < end;) {
    // Where does the next bounded piece end?
    int touched = 0;
    std::uint64_t stop = end;
    for (Ref g = first_touching(o, from); g != 0 && grant(g).begin < end; g = next_grant(o, g)) {
      if (++touched == kWideGrants) {
        stop = std::max(std::min(end, grant(g).end), from + 1);
        break;
      }
    }
    if (stop < end && !announced) {
      announced = true;
      // A piece gives back more grants than it takes; with these it cannot run short half-way. What
      // is only given back takes none (one that is split is not wide), and must be possible in a
      // table that is full.
      if (mode) a_.template reserve<GrantRec>(4);
      a_.set(root_.intent, Intent{o,
                                  granting,
                                  begin,
                                  end,
                                  static_cast<std::uint8_t>(mode ? 0 : 1),
                                  mode.value_or(LockMode::kShared),
                                  {}});
      commit_step();
    }
    const Change piece = set_piece(o, from, stop, mode, now);
    all.weakened |= piece.weakened;
    all.any |= piece.any;
    from = stop;
    if (from < end) commit_step();
  }
  // Taken back in the caller's last step, which commits what follows from it too.
  if (announced) a_.set(root_.intent, Intent{});
  return all;
}

}  // namespace latchfs::lock
