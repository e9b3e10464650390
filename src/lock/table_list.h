// LockTable: reading it out in pages, and checking it. Included by table.h only.
#pragma once

#include <fmt/core.h>

namespace latchfs::lock {

template <class A>
Grant LockTable<A>::to_grant(Ref r) const {
  const GrantRec& g = grant(r);
  const OwnerRec& o = owner(g.owner);
  const FileRec& f = file(o.file);
  Grant out;
  out.file = FileId{f.dev, f.ino};
  out.owner = OwnerId{o.mount, o.key, o.space};
  if (auto range = ByteRange::from_half_open(g.begin, g.end)) out.range = *range;
  out.mode = g.mode;
  out.kind = o.kind;
  out.holder = Holder{o.pid, o.uid, o.comm, o.fh, o.backing_fd, o.client};
  out.acquired_at_ns = g.acquired_at;
  return out;
}

// The order is (dev, ino), part (0 byte ranges and operations, 1 flock), begin, owner record. A
// grant that stays keeps its place in it, so what is behind the cursor was seen and what is ahead
// was not, whatever changed between two pages.
template <class A>
bool LockTable<A>::list(const std::optional<FileId>& only, ListCursor& at, std::uint32_t limit,
                        std::vector<Grant>& out) const {
  // Steps: bounds the time under the mutex also where every grant has thousands of waiters, or
  // thousands of files hold none.
  std::int64_t steps = 200'000;
  const std::size_t enough = out.size() + limit;
  bool inside = !at.at_start;  // at names a place inside its file
  Ref f = 0;
  if (only) {
    f = Files::find(a_, root_.files, *only);
    inside = inside && at.file == *only;
  } else if (at.at_start) {
    f = Files::first(a_, root_.files);
  } else {
    f = Files::after(a_, root_.files, at.file, true);
    inside = f != 0 && FileId{file(f).dev, file(f).ino} == at.file;
  }
  for (; f != 0; f = only ? 0 : Files::after(a_, root_.files, FileId{file(f).dev, file(f).ino})) {
    const FileRec& rec = file(f);
    for (std::uint8_t part = inside ? at.part : std::uint8_t{0}; part < 2; ++part) {
      const Ref tree = part == 0 ? rec.range_grants : rec.flock_grants;
      Ref g = inside && part == at.part
                  ? FileGrants::after(a_, tree, GrantKey{at.begin, static_cast<Ref>(at.tie)})
                  : FileGrants::first(a_, tree);
      inside = inside && part != at.part;
      for (; g != 0; g = FileGrants::after(a_, tree, FileGrantTraits<A>::key(a_, g))) {
        if (out.size() == enough || steps <= 0) return true;
        Grant item = to_grant(g);
        const OwnerRec& o = owner(grant(g).owner);
        for (Ref w = rec.wait_head; w != 0 && steps > 0; w = waiter(w).next, --steps) {
          const WaiterRec& wr = waiter(w);
          const OwnerRec& wo = owner(wr.owner);
          if ((wo.space == OwnerSpace::kFlock) == (o.space == OwnerSpace::kFlock) &&
              wr.begin < grant(g).end && grant(g).begin < wr.end &&
              (wr.mode == LockMode::kExclusive || grant(g).mode == LockMode::kExclusive) &&
              !same(asker(wo), o)) {
            ++item.waiters;
          }
        }
        out.push_back(item);
        --steps;
        at.file = item.file;
        at.part = part;
        at.begin = grant(g).begin;
        at.tie = grant(g).owner;
        at.at_start = false;
      }
    }
    inside = false;
    if (--steps <= 0 && !only) {
      at = ListCursor{at.shard, FileId{rec.dev, rec.ino}, 2, 0, 0, false};
      return true;
    }
  }
  return false;
}

template <class A>
bool LockTable<A>::list_waiters(const std::optional<FileId>& only, ListCursor& at,
                                std::uint32_t limit, std::vector<Waiter>& out) const {
  const std::size_t enough = out.size() + limit;
  std::int64_t steps = 200'000;
  bool inside = !at.at_start;
  Ref f = 0;
  if (only) {
    f = Files::find(a_, root_.files, *only);
    inside = inside && at.file == *only;
  } else if (at.at_start) {
    f = Files::first(a_, root_.files);
  } else {
    f = Files::after(a_, root_.files, at.file, true);
    inside = f != 0 && FileId{file(f).dev, file(f).ino} == at.file;
  }
  for (; f != 0; f = only ? 0 : Files::after(a_, root_.files, FileId{file(f).dev, file(f).ino})) {
    const FileRec& rec = file(f);
    for (Ref w = rec.wait_head; w != 0; w = waiter(w).next) {
      const WaiterRec& wr = waiter(w);
      // A cursor with part 1 stands before its file's first waiter.
      if (inside && at.part == 0 && wr.seq <= at.begin) continue;
      if (out.size() == enough) return true;
      const OwnerRec& o = owner(wr.owner);
      Waiter item;
      item.request.file = FileId{rec.dev, rec.ino};
      item.request.owner = OwnerId{o.mount, o.key, o.space};
      if (auto range = ByteRange::from_half_open(wr.begin, wr.end)) item.request.range = *range;
      item.request.mode = wr.mode;
      item.request.kind = o.kind;
      item.request.holder = Holder{o.pid, o.uid, o.comm, o.fh, o.backing_fd, o.client};
      item.request.acquired_at_ns = wr.since;
      const Attempt found = conflict(f, asker(o), wr.begin, wr.end, wr.mode, fx_.mono);
      if (found.blocker != 0) item.blocker = to_grant(found.blocker);
      out.push_back(item);
      at = ListCursor{at.shard, item.request.file, 0, wr.seq, 0, false};
      inside = true;
    }
    inside = false;
    if (--steps <= 0 && !only) {
      at = ListCursor{at.shard, FileId{rec.dev, rec.ino}, 0, UINT32_MAX, 0, false};
      return true;
    }
  }
  return false;
}

template <class A>
bool LockTable<A>::verify(FileId& at, bool& at_start, std::string& wrong,
                          std::uint64_t most) const {
  const Ref f = Files::after(a_, root_.files, at, at_start);
  if (f == 0) return false;
  const FileRec& rec = file(f);
  at = FileId{rec.dev, rec.ino};
  at_start = false;
  const auto broken = [&](const char* what) {
    if (wrong.empty()) wrong = fmt::format("file {}:{}: {}", rec.dev, rec.ino, what);
  };
  if (!a_.template could_be<FileRec>(f)) broken("its record is none of this shard");
  if (std::uint64_t{rec.grant_count} + rec.waiter_count > most) return true;
  if (!a_.file_expected(at)) broken("a record of a file that has none");
  std::uint64_t in_trees = 0;
  for (const Ref tree : {rec.range_grants, rec.flock_grants}) {
    for (Ref g = FileGrants::first(a_, tree); g != 0;
         g = FileGrants::after(a_, tree, FileGrantTraits<A>::key(a_, g))) {
      ++in_trees;
      const GrantRec& gr = grant(g);
      if (!a_.template could_be<GrantRec>(g)) broken("a grant that is none of this shard");
      if (gr.begin >= gr.end || gr.end > ByteRange::kEof) broken("an empty or oversized grant");
      if (owner(gr.owner).file != f) broken("a grant of another file's owner");
      if (gr.max_end < gr.end) broken("an augmented end below the grant's own");
      if (in_trees > rec.grant_count) {
        broken("more grants in the trees than counted");
        return true;
      }
    }
  }
  if (in_trees != rec.grant_count) broken("grant count and trees disagree");
  std::uint64_t by_owner = 0;
  std::uint64_t waiters_by_owner = 0;
  std::uint64_t holders = 0;
  OwnerId id{};
  for (bool or_equal = true;; or_equal = false) {
    const Ref o = Owners::after(a_, rec.owners, id, or_equal);
    if (o == 0) break;
    const OwnerRec& ow = owner(o);
    if (!a_.template could_be<OwnerRec>(o)) broken("an owner that is none of this shard");
    id = OwnerId{ow.mount, ow.key, ow.space};
    const Asker me = asker(ow);
    std::uint64_t own = 0;
    std::uint64_t last_end = 0;
    LockMode last_mode{};
    for (Ref g = OwnerGrants::first(a_, ow.grants); g != 0; g = next_grant(o, g)) {
      ++own;
      const GrantRec& gr = grant(g);
      if (own > 1 && gr.begin < last_end) broken("an owner's grants overlap");
      if (own > 1 && gr.begin == last_end && gr.mode == last_mode) {
        broken("an owner's touching grants of one mode were not merged");
      }
      last_end = gr.end;
      last_mode = gr.mode;
      if (conflict(f, me, gr.begin, gr.end, gr.mode, fx_.mono).blocker != 0) {
        broken("two owners hold conflicting grants");
      }
    }
    if (own != ow.grant_count) broken("an owner's grant count and tree disagree");
    if (own != 0) ++holders;
    if (own == 0 && ow.waiter_count == 0 && ow.fenced == 0) broken("an owner without a reason");
    by_owner += own;
    waiters_by_owner += ow.waiter_count;
  }
  if (by_owner != rec.grant_count) broken("owners' grants and the file's count disagree");
  std::uint64_t listed = 0;
  for (Ref o = rec.oldest; o != 0 && listed <= holders; o = owner(o).newer) ++listed;
  if (listed != holders) broken("the list of holders is wrong");
  std::uint64_t waiting_here = 0;
  for (Ref w = rec.wait_head; w != 0 && waiting_here <= rec.waiter_count; w = waiter(w).next) {
    ++waiting_here;
    if (!a_.template could_be<WaiterRec>(w)) broken("a waiter that is none of this shard");
    const WaiterRec& wr = waiter(w);
    const OwnerRec& wo = owner(wr.owner);
    if (wr.begin < rec.hull_begin || wr.end > rec.hull_end) broken("a waiter outside the hull");
    if (conflict(f, asker(wo), wr.begin, wr.end, wr.mode, fx_.mono).blocker == 0) {
      broken("a waiter that nothing blocks");
    }
  }
  if (waiting_here != rec.waiter_count || waiters_by_owner != rec.waiter_count) {
    broken("waiter counts disagree");
  }
  return true;
}

}  // namespace latchfs::lock
