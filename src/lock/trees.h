// The four trees of a shard: files; a file's owners; a file's grants; an owner's grants.
#pragma once

#include <algorithm>
#include <cstdint>
#include <tuple>

#include "lock/records.h"
#include "lock/treap.h"

namespace latchfs::lock {

template <class Arena>
struct FileTraits {
  using Rec = FileRec;
  using Key = FileId;
  static constexpr auto left = &FileRec::left;    // NOLINT(readability-identifier-naming)
  static constexpr auto right = &FileRec::right;  // NOLINT(readability-identifier-naming)
  static Key key(const Arena& a, Ref n) {
    const auto& f = a.template get<FileRec>(n);
    return FileId{f.dev, f.ino};
  }
  static void pull(Arena&, Ref) {}
};

template <class Arena>
struct OwnerTraits {
  using Rec = OwnerRec;
  using Key = OwnerId;
  static constexpr auto left = &OwnerRec::left;    // NOLINT(readability-identifier-naming)
  static constexpr auto right = &OwnerRec::right;  // NOLINT(readability-identifier-naming)
  static Key key(const Arena& a, Ref n) {
    const auto& o = a.template get<OwnerRec>(n);
    return OwnerId{o.mount, o.key, o.space};
  }
  static void pull(Arena&, Ref) {}
};

struct GrantKey {
  std::uint64_t begin{};
  Ref owner{};
  auto operator<=>(const GrantKey&) const = default;
};

template <class Arena>
struct FileGrantTraits {
  using Rec = GrantRec;
  using Key = GrantKey;
  static constexpr auto left = &GrantRec::file_left;    // NOLINT(readability-identifier-naming)
  static constexpr auto right = &GrantRec::file_right;  // NOLINT(readability-identifier-naming)
  static Key key(const Arena& a, Ref n) {
    const auto& g = a.template get<GrantRec>(n);
    return {g.begin, g.owner};
  }
  static void pull(Arena& a, Ref n) {
    const auto& g = a.template get<GrantRec>(n);
    std::uint64_t any = g.end;
    std::uint64_t ex = g.mode == LockMode::kExclusive ? g.end : 0;
    for (const Ref child : {g.file_left, g.file_right}) {
      if (child == 0) continue;
      const auto& c = a.template get<GrantRec>(child);
      any = std::max(any, c.max_end);
      ex = std::max(ex, c.max_ex_end);
    }
    a.set(g.max_end, any);
    a.set(g.max_ex_end, ex);
  }
};

template <class Arena>
struct OwnerGrantTraits {
  using Rec = GrantRec;
  using Key = std::uint64_t;
  static constexpr auto left = &GrantRec::owner_left;    // NOLINT(readability-identifier-naming)
  static constexpr auto right = &GrantRec::owner_right;  // NOLINT(readability-identifier-naming)
  static Key key(const Arena& a, Ref n) { return a.template get<GrantRec>(n).begin; }
  static void pull(Arena&, Ref) {}
};

}  // namespace latchfs::lock
