// Stores that are broken on purpose, to see that the single-stepping crash test finds it: the rules
// of src/lock over an arena that does not do what store/shm/shm_arena.h does.
#pragma once

#include <cstdint>
#include <cstring>
#include <system_error>

#include "base/clock.h"
#include "store/shm/shm_backend.h"

namespace latchfs::test {

enum class Breakage : std::uint8_t {
  kNone,        // none: what is found otherwise is not this file's own doing
  kNoLog,       // fields are stored without their old values being logged
  kRefs,        // only those of four bytes: links and counts
  kLogLate,     // the old value is logged, but after the store
  kCountFirst,  // the log's count is raised before the entry is written
};

template <Breakage kHow>
class BrokenArena : public shm::ShmArena {
 public:
  BrokenArena(const shm::Region& region, std::uint32_t shard)
      : ShmArena{region, shard}, base_{region.base()}, shard_{region.shard(shard)} {}

  // As ShmArena::set(), which alloc() and free() use still.
  template <class T, class V>
  void set(const T& field, V value) {
    const T wanted = static_cast<T>(value);
    if constexpr (kHow == Breakage::kNone || (kHow == Breakage::kRefs && sizeof(T) != 4)) {
      ShmArena::set(field, wanted);
    } else if constexpr (sizeof(T) <= 8) {
      store(&field, &wanted, sizeof(T));
    } else {
      for (std::size_t i = 0; i < sizeof(T); i += 8) {
        store(reinterpret_cast<const std::byte*>(&field) + i,
              reinterpret_cast<const std::byte*>(&wanted) + i, 8);
      }
    }
  }

 private:
  void store(const void* field, const void* wanted, std::size_t size) {
    if (std::memcmp(field, wanted, size) == 0) return;
    shm::LogEntry entry{};
    entry.offset_and_size =
        static_cast<std::uint64_t>(static_cast<const std::byte*>(field) - base_) << 8 | size;
    std::memcpy(&entry.old, field, size);
    const std::uint32_t n = shard_.log_count;
    const auto step = [] { std::atomic_signal_fence(std::memory_order_seq_cst); };
    step();
    if constexpr (kHow == Breakage::kCountFirst) {
      shard_.log_count = n + 1;
      step();
      shard_.log[n] = entry;
      step();
    }
    std::memcpy(const_cast<void*>(field), wanted, size);
    step();
    if constexpr (kHow == Breakage::kLogLate) {
      shard_.log[n] = entry;
      step();
      shard_.log_count = n + 1;
      step();
    }
  }

  std::byte* base_;
  shm::Shard& shard_;
};

// No growth, no repair: acts on it bring the memory they need.
template <Breakage kHow>
class BrokenBackend : public shm::ShmBackend {
 public:
  using Arena = BrokenArena<kHow>;
  using ShmBackend::ShmBackend;

  template <class Fn>
  std::error_code locked(std::uint32_t i, lock::Effects& fx, Fn&& fn) {
    fx.clear();
    fx.now = realtime_ns();
    fx.mono = monotonic_ns();
    shm::Shard& shard = region().shard(i);
    if (shard.mu.lock() != RobustMutex::Locked::kClean) return errno_code(EIO);
    Arena arena{region(), i};
    lock::LockTable<Arena> table{arena, shard.root, fx, mount_id()};
    std::error_code ec;
    try {
      fn(table);
    } catch (const lock::NeedCells&) {
      ec = errno_code(ENOLCK);
    }
    arena.commit();
    fx.mark();
    shard.mu.unlock();
    return ec;
  }
};

}  // namespace latchfs::test
