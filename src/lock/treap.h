// A treap over records in an arena: links are Refs inside the records, priorities a hash of the
// Ref and of the arena's secret, so nothing else is stored. Expected depth O(log n) whatever the
// order of keys, also when users choose it: without the secret they could make a tree of any shape.
//
// Traits: static constexpr members `left`, `right` (pointers to member); Rec; Key;
// static Key key(const Arena&, Ref); static void pull(Arena&, Ref) recomputes augmentation.
// Recursion depth is the tree's depth (about 50 at a million nodes); a tree that is deeper than any
// can be has a cycle in it, and is Damaged.
#pragma once

#include <cstdint>
#include <utility>

#include "lock/records.h"

namespace latchfs::lock {

[[nodiscard]] constexpr std::uint64_t treap_priority(Ref ref, std::uint64_t secret) {
  std::uint64_t x = (ref ^ secret) * 0x9E3779B97F4A7C15ULL;
  x ^= x >> 32;
  x = (x ^ (secret >> 7)) * 0xD6E8FEB86659FD93ULL;
  return x ^ x >> 32;
}

// Thrown by the trees and by arenas that check: a record makes no sense. Something has written
// where it must not. The step is undone, and whoever runs it decides what becomes of the table.
struct Damaged {
  const char* what;
};

// Of 2^32 random nodes the expected height is below 100.
inline constexpr int kDeepest = 400;
inline int one_deeper(int room) {
  if (room == 0) throw Damaged{"a tree that is deeper than a tree can be"};
  return room - 1;
}

template <class Arena, class Traits>
struct Treap {
  using Rec = typename Traits::Rec;
  using Key = typename Traits::Key;

  // Inserts n below root; its key must not be there yet. Returns the new root.
  static Ref insert(Arena& a, Ref root, Ref n, int room = kDeepest) {
    room = one_deeper(room);
    if (root == 0) {
      set_children(a, n, 0, 0);
      return n;
    }
    if (priority(a, n) > priority(a, root)) {
      const auto [less, more] = split(a, root, Traits::key(a, n), room);
      set_children(a, n, less, more);
      return n;
    }
    if (Traits::key(a, n) < Traits::key(a, root)) {
      a.set(rec(a, root).*Traits::left, insert(a, left(a, root), n, room));
    } else {
      a.set(rec(a, root).*Traits::right, insert(a, right(a, root), n, room));
    }
    Traits::pull(a, root);
    return root;
  }

  // Takes n, which must be there, out. Returns the new root.
  static Ref erase(Arena& a, Ref root, Ref n, int room = kDeepest) {
    room = one_deeper(room);
    if (root == n) return merge(a, left(a, n), right(a, n), room);
    if (Traits::key(a, n) < Traits::key(a, root)) {
      a.set(rec(a, root).*Traits::left, erase(a, left(a, root), n, room));
    } else {
      a.set(rec(a, root).*Traits::right, erase(a, right(a, root), n, room));
    }
    Traits::pull(a, root);
    return root;
  }

  // Recomputes the augmentation from n, whose key is unchanged, up to root.
  static void refresh(Arena& a, Ref root, Ref n, int room = kDeepest) {
    room = one_deeper(room);
    if (root != n) {
      refresh(a, Traits::key(a, n) < Traits::key(a, root) ? left(a, root) : right(a, root), n,
              room);
    }
    Traits::pull(a, root);
  }

  [[nodiscard]] static Ref find(const Arena& a, Ref root, const Key& key) {
    for (int room = kDeepest; root != 0;) {
      room = one_deeper(room);
      const Key here = Traits::key(a, root);
      if (here == key) return root;
      root = key < here ? left(a, root) : right(a, root);
    }
    return 0;
  }

  // The node with the smallest key > key (or >= key); 0 if none.
  [[nodiscard]] static Ref after(const Arena& a, Ref root, const Key& key, bool or_equal = false) {
    Ref best = 0;
    for (int room = kDeepest; root != 0;) {
      room = one_deeper(room);
      const Key here = Traits::key(a, root);
      if (key < here || (or_equal && here == key)) {
        best = root;
        root = left(a, root);
      } else {
        root = right(a, root);
      }
    }
    return best;
  }

  // The node with the greatest key <= key; 0 if none.
  [[nodiscard]] static Ref floor(const Arena& a, Ref root, const Key& key) {
    Ref best = 0;
    for (int room = kDeepest; root != 0;) {
      room = one_deeper(room);
      if (key < Traits::key(a, root)) {
        root = left(a, root);
      } else {
        best = root;
        root = right(a, root);
      }
    }
    return best;
  }

  [[nodiscard]] static Ref first(const Arena& a, Ref root) {
    int room = kDeepest;
    while (root != 0 && left(a, root) != 0) {
      room = one_deeper(room);
      root = left(a, root);
    }
    return root;
  }

 private:
  static const Rec& rec(const Arena& a, Ref n) { return a.template get<Rec>(n); }
  static Ref left(const Arena& a, Ref n) { return rec(a, n).*Traits::left; }
  static Ref right(const Arena& a, Ref n) { return rec(a, n).*Traits::right; }

  static std::uint64_t priority(const Arena& a, Ref n) { return treap_priority(n, a.secret()); }

  static void set_children(Arena& a, Ref n, Ref less, Ref more) {
    a.set(rec(a, n).*Traits::left, less);
    a.set(rec(a, n).*Traits::right, more);
    Traits::pull(a, n);
  }

  // All keys < key, and all others.
  static std::pair<Ref, Ref> split(Arena& a, Ref root, const Key& key, int room) {
    room = one_deeper(room);
    if (root == 0) return {0, 0};
    if (Traits::key(a, root) < key) {
      const auto [less, more] = split(a, right(a, root), key, room);
      a.set(rec(a, root).*Traits::right, less);
      Traits::pull(a, root);
      return {root, more};
    }
    const auto [less, more] = split(a, left(a, root), key, room);
    a.set(rec(a, root).*Traits::left, more);
    Traits::pull(a, root);
    return {less, root};
  }

  // Every key of less is below every key of more.
  static Ref merge(Arena& a, Ref less, Ref more, int room) {
    room = one_deeper(room);
    if (less == 0) return more;
    if (more == 0) return less;
    if (priority(a, less) > priority(a, more)) {
      a.set(rec(a, less).*Traits::right, merge(a, right(a, less), more, room));
      Traits::pull(a, less);
      return less;
    }
    a.set(rec(a, more).*Traits::left, merge(a, less, left(a, more), room));
    Traits::pull(a, more);
    return more;
  }
};

}  // namespace latchfs::lock
