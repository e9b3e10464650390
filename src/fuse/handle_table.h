// Numbers for open files: fh = slot in the low 32 bits, the slot's generation in the high 32.
//
// Numbers and not pointers, because they travel: a stale or invented one finds nothing (EBADF) and
// touches no memory. A number is not used again before 2^32 others of its slot. Never 0.
//
// Thread-safe; sharded, a shard's mutex is a leaf.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "base/mutex.h"

namespace latchfs::fuse {

template <class T>
class HandleTable {
 public:
  // Room for one more; set() gives it its content. The number is then known to the content itself.
  [[nodiscard]] std::uint64_t insert(std::shared_ptr<T> what) {
    const auto number = static_cast<std::uint32_t>(next_.fetch_add(1, std::memory_order_relaxed));
    const std::uint32_t shard_number = number % kShards;
    Shard& shard = shards_[shard_number];
    const MutexLock hold{shard.mu};
    std::uint32_t index{};
    if (!shard.free.empty()) {
      index = shard.free.back();
      shard.free.pop_back();
    } else {
      index = static_cast<std::uint32_t>(shard.slots.size());
      shard.slots.emplace_back();
      // So that remove() never has to allocate.
      shard.free.reserve(shard.slots.capacity());
    }
    Slot& slot = shard.slots[index];
    slot.what = std::move(what);
    return (static_cast<std::uint64_t>(slot.generation) << 32) | (index * kShards + shard_number);
  }

  // Null: no such number.
  [[nodiscard]] std::shared_ptr<T> find(std::uint64_t fh) {
    Shard& shard = shard_of(fh);
    const MutexLock hold{shard.mu};
    Slot* slot = slot_locked(shard, fh);
    return slot != nullptr ? slot->what : nullptr;
  }

  // Takes it out; null as above.
  std::shared_ptr<T> remove(std::uint64_t fh) {
    Shard& shard = shard_of(fh);
    const MutexLock hold{shard.mu};
    Slot* slot = slot_locked(shard, fh);
    if (slot == nullptr) return nullptr;
    if (++slot->generation == 0) slot->generation = 1;
    shard.free.push_back(index_of(fh));
    return std::exchange(slot->what, nullptr);
  }

  // All there are; each was there at some moment of the call.
  [[nodiscard]] std::vector<std::shared_ptr<T>> all() {
    std::vector<std::shared_ptr<T>> found;
    for (Shard& shard : shards_) {
      const MutexLock hold{shard.mu};
      for (const Slot& slot : shard.slots) {
        if (slot.what) found.push_back(slot.what);
      }
    }
    return found;
  }

  [[nodiscard]] std::size_t size() {
    std::size_t sum = 0;
    for (Shard& shard : shards_) {
      const MutexLock hold{shard.mu};
      sum += shard.slots.size() - shard.free.size();
    }
    return sum;
  }

 private:
  static constexpr std::uint32_t kShards = 16;
  struct Slot {
    std::uint32_t generation{1};
    std::shared_ptr<T> what;
  };
  struct Shard {
    Mutex mu;
    std::vector<Slot> slots GUARDED_BY(mu);
    std::vector<std::uint32_t> free GUARDED_BY(mu);
  };

  static std::uint32_t index_of(std::uint64_t fh) {
    return static_cast<std::uint32_t>(fh) / kShards;
  }
  Shard& shard_of(std::uint64_t fh) { return shards_[static_cast<std::uint32_t>(fh) % kShards]; }
  static Slot* slot_locked(Shard& shard, std::uint64_t fh) REQUIRES(shard.mu) {
    const std::uint32_t index = index_of(fh);
    if (index >= shard.slots.size()) return nullptr;
    Slot& slot = shard.slots[index];
    return slot.generation == fh >> 32 && slot.what ? &slot : nullptr;
  }

  std::array<Shard, kShards> shards_;
  std::atomic<std::uint64_t> next_{0};
};

}  // namespace latchfs::fuse
