// The naive model of locking that the stores are compared with: one cell a byte, over a small file.
// Knows what fs/locks.c promises and nothing of how latchfs does it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "latchfs/types.h"

namespace latchfs::test {

class ByteModel {
 public:
  static constexpr std::uint64_t kBytes = 48;  // cell kBytes stands for all bytes behind

  struct Cells {
    std::vector<std::optional<LockMode>> at =
        std::vector<std::optional<LockMode>>(kBytes + 1, std::nullopt);
    [[nodiscard]] bool empty() const {
      return std::none_of(at.begin(), at.end(), [](const auto& c) { return c.has_value(); });
    }
  };
  struct Wait {
    int id;
    OwnerId owner;
    ByteRange range;
    LockMode mode;
  };

  [[nodiscard]] bool conflicts(OwnerId owner, ByteRange range, LockMode mode) const {
    for (const auto& [other, cells] : held_) {
      if (other == owner ||
          (other.space == OwnerSpace::kFlock) != (owner.space == OwnerSpace::kFlock)) {
        continue;
      }
      for (std::uint64_t i = first(range); i < last(range); ++i) {
        if (cells.at[i] && (mode == LockMode::kExclusive || *cells.at[i] == LockMode::kExclusive)) {
          return true;
        }
      }
    }
    return false;
  }

  // The ids of waiters that were granted because of it, in order.
  std::vector<int> set(OwnerId owner, ByteRange range, std::optional<LockMode> mode) {
    auto& cells = held_[owner];
    for (std::uint64_t i = first(range); i < last(range); ++i) cells.at[i] = mode;
    if (cells.empty()) held_.erase(owner);
    return grant_waiters();
  }

  void wait(const Wait& w) { waits_.push_back(w); }
  bool cancel(int id) {
    const auto it =
        std::find_if(waits_.begin(), waits_.end(), [id](const Wait& w) { return w.id == id; });
    if (it == waits_.end()) return false;
    waits_.erase(it);
    return true;
  }
  [[nodiscard]] const std::vector<Wait>& waits() const { return waits_; }
  [[nodiscard]] bool waits_for_any(OwnerId owner) const {
    return std::any_of(waits_.begin(), waits_.end(),
                       [&](const Wait& w) { return w.owner == owner; });
  }

  // "owner begin end mode" a run, sorted: comparable with a listing.
  [[nodiscard]] std::vector<std::string> render() const {
    std::vector<std::string> out;
    for (const auto& [owner, cells] : held_) {
      for (std::uint64_t i = 0; i <= kBytes;) {
        std::uint64_t j = i + 1;
        while (j <= kBytes && cells.at[j] == cells.at[i]) ++j;
        if (cells.at[i]) {
          out.push_back(describe(owner, i, j == kBytes + 1 ? ByteRange::kEof : j, *cells.at[i]));
        }
        i = j;
      }
    }
    std::sort(out.begin(), out.end());
    return out;
  }
  static std::string describe(OwnerId owner, std::uint64_t begin, std::uint64_t end,
                              LockMode mode) {
    return to_string(owner) + " " + std::to_string(begin) + " " + std::to_string(end) +
           (mode == LockMode::kExclusive ? " EX" : " SH");
  }

 private:
  static std::uint64_t first(ByteRange r) { return std::min(r.begin(), kBytes); }
  static std::uint64_t last(ByteRange r) {
    return r.end() == ByteRange::kEof ? kBytes + 1 : std::min(r.end(), kBytes);
  }

  std::vector<int> grant_waiters() {
    std::vector<int> granted;
    for (std::size_t i = 0; i < waits_.size();) {
      const Wait w = waits_[i];
      if (conflicts(w.owner, w.range, w.mode)) {
        ++i;
        continue;
      }
      auto& cells = held_[w.owner];
      for (std::uint64_t b = first(w.range); b < last(w.range); ++b) cells.at[b] = w.mode;
      waits_.erase(waits_.begin() + static_cast<std::ptrdiff_t>(i));
      granted.push_back(w.id);
      i = 0;  // a granted downgrade may have made room for an earlier one
    }
    return granted;
  }

  std::map<OwnerId, Cells> held_;
  std::vector<Wait> waits_;
};

}  // namespace latchfs::test
