// What lies in one shard's records, looked at from outside: for checks, and as a value that tells
// two states of the table apart.
#pragma once

#include <cstdint>
#include <vector>

#include "latchfs/types.h"
#include "lock/records.h"
#include "store/memory/heap_arena.h"

namespace latchfs::test {

struct SeenGrant {
  FileId file;
  OwnerId owner;
  std::uint64_t begin{}, end{};
  LockMode mode{};
};
struct SeenWaiter {
  SeenGrant wanted;
  std::uint64_t token{};
};
struct SeenReady {
  std::uint64_t mount{}, token{};
  int result{};
};

struct SeenTable {
  std::vector<SeenGrant> grants;
  std::vector<SeenWaiter> waiters;  // of each file in the order of its queue
  std::vector<SeenReady> ready;
  // All that decides how the table goes on, but for the numbers of records.
  std::vector<std::uint64_t> state;

  // Appends what the shard holds. Tokens go into `state` by `number_of`.
  template <class NumberOf>
  void look(const HeapArena& arena, const lock::TableRoot& root, NumberOf&& number_of);
};

[[nodiscard]] inline bool conflicting(const SeenGrant& a, const SeenGrant& b) {
  return a.file == b.file && a.owner != b.owner && a.begin < b.end && b.begin < a.end &&
         (a.owner.space == OwnerSpace::kFlock) == (b.owner.space == OwnerSpace::kFlock) &&
         (a.mode == LockMode::kExclusive || b.mode == LockMode::kExclusive);
}

// ---- below: how

namespace detail {

template <class Rec, class Fn>
void in_order(const HeapArena& arena, lock::Ref at, lock::Ref Rec::*left, lock::Ref Rec::*right,
              Fn&& fn) {
  if (at == 0) return;
  const Rec& rec = arena.get<Rec>(at);
  in_order(arena, rec.*left, left, right, fn);
  fn(at, rec);
  in_order(arena, rec.*right, left, right, fn);
}

}  // namespace detail

template <class NumberOf>
void SeenTable::look(const HeapArena& arena, const lock::TableRoot& root, NumberOf&& number_of) {
  using lock::FileRec;
  using lock::GrantRec;
  using lock::OwnerRec;
  using lock::Ref;
  using lock::WaiterRec;
  const auto id = [](const OwnerRec& o) { return OwnerId{o.mount, o.key, o.space}; };
  const auto add = [&](auto... values) {
    (state.push_back(static_cast<std::uint64_t>(values)), ...);
  };
  detail::in_order<FileRec>(arena, root.files, &FileRec::left, &FileRec::right, [&](Ref, auto& f) {
    const FileId file{f.dev, f.ino};
    add(~0ULL, f.ino);
    std::vector<Ref> owners;
    detail::in_order<OwnerRec>(arena, f.owners, &OwnerRec::left, &OwnerRec::right,
                               [&](Ref o, const OwnerRec& rec) {
                                 owners.push_back(o);
                                 add(rec.mount, rec.key, rec.space, rec.kind, rec.fenced);
                               });
    for (Ref o = f.oldest; o != 0; o = arena.get<OwnerRec>(o).newer) {
      const OwnerRec& rec = arena.get<OwnerRec>(o);
      add(rec.mount, rec.key, rec.space);
    }
    for (const Ref tree : {f.range_grants, f.flock_grants}) {
      detail::in_order<GrantRec>(arena, tree, &GrantRec::file_left, &GrantRec::file_right,
                                 [&](Ref, const GrantRec& g) {
                                   const OwnerId owner = id(arena.get<OwnerRec>(g.owner));
                                   grants.push_back({file, owner, g.begin, g.end, g.mode});
                                   add(owner.mount, owner.key, owner.space, g.begin, g.end, g.mode);
                                 });
    }
    for (Ref w = f.wait_head; w != 0; w = arena.get<WaiterRec>(w).next) {
      const WaiterRec& rec = arena.get<WaiterRec>(w);
      const OwnerId owner = id(arena.get<OwnerRec>(rec.owner));
      waiters.push_back({{file, owner, rec.begin, rec.end, rec.mode}, rec.token});
      add(~1ULL, number_of(rec.token), rec.settle);
      // Whom it was last seen behind, by name; a record that has gone, by its number.
      bool there = false;
      for (const Ref o : owners) there |= o == rec.blocker;
      if (there) {
        const OwnerRec& by = arena.get<OwnerRec>(rec.blocker);
        add(by.mount, by.key, by.space);
      } else {
        add(~2ULL, rec.blocker);
      }
      std::uint64_t place = 0;
      std::uint64_t behind = rec.behind == 0 ? 0 : ~3ULL;
      for (Ref x = f.wait_head; x != 0; x = arena.get<WaiterRec>(x).next) {
        ++place;
        if (rec.behind == arena.get<WaiterRec>(x).seq + 1) behind = place;
      }
      add(behind);
    }
  });
  add(~4ULL);
  for (Ref w = root.ready; w != 0; w = arena.get<WaiterRec>(w).next) {
    const WaiterRec& rec = arena.get<WaiterRec>(w);
    ready.push_back({rec.begin, rec.token, rec.result});
    add(rec.begin, number_of(rec.token), rec.result);
  }
  add(root.intent.owner, root.regrant.file);
}

}  // namespace latchfs::test
