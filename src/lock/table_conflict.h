// LockTable: what is in the way of a request. Included by table.h only.
#pragma once

namespace latchfs::lock {

template <class A>
bool LockTable<A>::same(const Asker& me, const OwnerRec& other) {
  if (me.mount != other.mount) return false;
  if (me.space == other.space) return me.key == other.key;
  // An operation is its process's and its description's own (as the kernel's mandatory locks
  // were: locks_mandatory_area() tried both owners).
  if (me.space == OwnerSpace::kOp) {
    return other.key == me.alias_owner || other.key == me.alias_description;
  }
  if (other.space == OwnerSpace::kOp) {
    return me.key == other.alias_owner || me.key == other.alias_description;
  }
  return false;
}

// False for what goes away by itself at once.
template <class A>
bool LockTable<A>::lasting(const OwnerRec& o, std::int64_t mono) const {
  if (o.space == OwnerSpace::kOp) return false;
  return o.closing_at == 0 || mono - o.closing_at > LockService::kClosingWindowNs;
}

// The first grant below t, by begin, that conflicts; subtrees that end too early are skipped.
template <class A>
Ref LockTable<A>::scan(Ref t, const Asker& me, std::uint64_t begin, std::uint64_t end,
                       LockMode mode, Lasting want, std::int64_t mono, int room) const {
  while (t != 0) {
    room = one_deeper(room);
    const GrantRec& g = grant(t);
    if ((mode == LockMode::kExclusive ? g.max_end : g.max_ex_end) <= begin) return 0;
    if (const Ref found = scan(g.file_left, me, begin, end, mode, want, mono, room)) return found;
    if (g.begin >= end) return 0;
    if (g.end > begin && (mode == LockMode::kExclusive || g.mode == LockMode::kExclusive)) {
      const OwnerRec& o = owner(g.owner);
      const bool both_ops = me.space == OwnerSpace::kOp && o.space == OwnerSpace::kOp;
      if (!both_ops && !same(me, o) && (want == Lasting::kAny || lasting(o, mono))) return t;
    }
    t = g.file_right;
  }
  return 0;
}

// The owner's lowest grant in the way; 0 if none, or none among its first ones.
template <class A>
Ref LockTable<A>::in_owner(Ref o, std::uint64_t begin, std::uint64_t end, LockMode mode) const {
  Ref g = first_touching(o, begin);
  for (int steps = 0; g != 0 && grant(g).begin < end && steps < 64; ++steps) {
    if (grant(g).end > begin &&
        (mode == LockMode::kExclusive || grant(g).mode == LockMode::kExclusive)) {
      return g;
    }
    g = next_grant(o, g);
  }
  return 0;
}

template <class A>
typename LockTable<A>::Attempt LockTable<A>::conflict(Ref f, const Asker& me, std::uint64_t begin,
                                                      std::uint64_t end, LockMode mode,
                                                      std::int64_t mono) const {
  if (f == 0) return {};
  const FileRec& rec = file(f);
  // Alone on the file: no need to look at possibly very many locks of one's own.
  if (rec.oldest == 0 || (rec.oldest == rec.newest && same(me, owner(rec.oldest)))) return {};
  const Ref tree = tree_of(rec, me.space);
  const Ref any = scan(tree, me, begin, end, mode, Lasting::kAny, mono);
  if (any == 0) return {};
  // The kernel names the first in its list: the owner longest there, its lowest lock. With very
  // many owners in front that are not in the way, the lowest conflict on the file will do
  // (fcntl(2) promises "one of").
  int steps = 0;
  Ref named = 0;
  for (Ref o = rec.oldest; o != 0 && steps < 64; o = owner(o).newer, ++steps) {
    const OwnerRec& other = owner(o);
    if ((other.space == OwnerSpace::kFlock) != (me.space == OwnerSpace::kFlock)) continue;
    if (other.space == OwnerSpace::kOp || same(me, other)) continue;
    const Ref g = in_owner(o, begin, end, mode);
    if (g == 0) continue;
    if (named == 0) named = g;
    if (lasting(other, mono)) return {named, false, named != g};
  }
  const Ref last = scan(tree, me, begin, end, mode, Lasting::kOnly, mono);
  if (last != 0) return {named != 0 ? named : last, false};
  return {any, true};
}

// What a waiter is queued behind: as in the kernel, what it met first and still meets; not what
// came in its way later, be it older on the file.
template <class A>
typename LockTable<A>::Attempt LockTable<A>::blocker_of(Ref w) const {
  const WaiterRec& rec = waiter(w);
  const OwnerRec& ow = owner(rec.owner);
  if (rec.blocker != 0 && a_.template could_be<OwnerRec>(rec.blocker)) {
    // The record may have gone and come back as another one since: it is what the tree says.
    const OwnerId id = OwnerTraits<A>::key(a_, rec.blocker);
    if (Owners::find(a_, file(ow.file).owners, id) == rec.blocker) {
      const Ref g = in_owner(rec.blocker, rec.begin, rec.end, rec.mode);
      if (g != 0 && !same(asker(ow), owner(rec.blocker))) return {g, false};
    }
  }
  return conflict(ow.file, asker(ow), rec.begin, rec.end, rec.mode, fx_.mono);
}

}  // namespace latchfs::lock
