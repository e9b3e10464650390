// Who waits for whom, followed from one owner on: what the question of deadlock is answered by.
//
// The graph is not stored: blockers_of(node, out) appends what an owner's waiting requests wait
// for, and returns how many requests it looked at. It must answer the same as long as the search
// lives (the store holds all shards).
//
// Nearest owners first and each once, so that the bound cuts off what is farthest away only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <unordered_set>
#include <utility>
#include <vector>

namespace latchfs::lock {

using WaitNode = std::pair<std::uint64_t, std::uint64_t>;  // OwnerId's mount and key

class WaitSearch {
 public:
  // Waiting requests followed, then "no cycle" is the answer. The kernel follows 10 owners
  // (MAX_DEADLK_ITERATIONS in fs/locks.c). All shards are held meanwhile: for one to three
  // milliseconds at these bounds (tests/bench/tablebench.cpp, `chain`).
  static constexpr std::size_t kMaxFollowed = 1024;
  // Likewise requests looked at: an owner's are found by a hash, among those of others. Not met
  // before kMaxFollowed unless thousands wait.
  static constexpr std::size_t kMaxLookedAt = 16 * 1024;

  explicit WaitSearch(WaitNode from) : reached_{from}, seen_{from} {}

  // Is `to` the one it began from, or waited for by it, however indirectly? Goes on from where the
  // last question ended.
  template <class BlockersOf>
  bool reaches(WaitNode to, BlockersOf&& blockers_of) {
    if (seen_.count(to) != 0) return true;
    while (next_ < reached_.size() && followed_ < kMaxFollowed && looked_at_ < kMaxLookedAt) {
      found_.clear();
      looked_at_ += blockers_of(reached_[next_++], found_);
      bool there = false;
      for (const WaitNode& node : found_) {
        if (followed_++ == kMaxFollowed) break;
        if (seen_.insert(node).second) reached_.push_back(node);
        there |= node == to;
      }
      if (there) return true;
    }
    return false;
  }

  [[nodiscard]] std::size_t followed() const { return followed_; }
  [[nodiscard]] std::size_t looked_at() const { return looked_at_; }

 private:
  struct Hash {
    std::size_t operator()(const WaitNode& n) const {
      const std::uint64_t h =
          (n.first * 0x9E3779B97F4A7C15ULL) ^ (n.second * 0xC2B2AE3D27D4EB4FULL);
      return static_cast<std::size_t>(h ^ (h >> 32));
    }
  };

  std::vector<WaitNode> reached_;  // in the order they were reached; followed up to next_
  std::unordered_set<WaitNode, Hash> seen_;
  std::vector<WaitNode> found_;
  std::size_t next_{};
  std::size_t followed_{}, looked_at_{};
};

}  // namespace latchfs::lock
