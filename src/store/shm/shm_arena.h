// LockTable's arena in shared memory: every store goes through the shard's undo log, so that after
// the death of the process at any instruction rollback() restores the state of the last commit().
//
// Why plain stores in program order suffice: the process dies at one point of its instruction
// stream (interrupts are precise), what it executed before is visible to whoever takes the mutex
// after it, what came later never happened. Only the compiler must not reorder: signal fences.
//
// Nothing that is read here is believed blindly: a Ref must lead into the cells, a store into a
// chunk of this shard, and no step may take more looks than a step can. So what a wild write left
// ends in lock::Damaged, not in a crash, a hang or another shard's memory. (Whether a record is of
// its size and this shard's is asked only where it is cheap, and by verify: each look is too many.)
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "base/fault_point.h"
#include "lock/table.h"
#include "store/shm/layout.h"
#include "store/shm/region.h"

namespace latchfs::shm {

// The step changed more than the log holds: rolled back and refused. A bug if it ever happens.
struct LogFull {};

// Records that a step may look at, beside some for each that the shard has: far more than any step
// needs, and over in seconds. (Tests of what never ends make it less.)
inline std::atomic<std::uint64_t> g_most_looks{std::uint64_t{1} << 31};

class ShmArena {
 public:
  // The shard is locked by the caller until this is gone.
  ShmArena(const Region& region, std::uint32_t shard)
      : base_{region.base()},
        bytes_{region.bytes()},
        chunks_{region.chunks()},
        first_{first_chunk(bytes_)},
        limit_{region.chunk_limit()},
        first_ref_{first_ * kChunkCells},
        refs_{(limit_ - first_) * kChunkCells},
        space_{region.header().space},
        shard_{region.shard(shard)},
        secret_{region.secret()},
        mine_{static_cast<std::uint8_t>(shard + 1)},
        looks_{g_most_looks.load(std::memory_order_relaxed) +
               kLooksPerCell * kChunkCells *
                   std::min<std::uint64_t>(shard_.chunks, limit_ - first_)} {}

  template <class T>
  [[nodiscard]] const T& get(lock::Ref ref) const {
    constexpr std::uint32_t more = sizeof(T) / kCellBytes - 1;  // cells beside the one named
    if (ref - first_ref_ >= refs_ - more) [[unlikely]]
      damaged("a reference to memory that nobody has");
    // What is in lists, which may have no end; trees are bounded by their depth.
    if constexpr (std::is_same_v<T, lock::WaiterRec> || std::is_same_v<T, lock::OwnerRec>) {
      if (looks_-- == 0) [[unlikely]]
        damaged("a list that never ends");
    }
    return *reinterpret_cast<const T*>(base_ + std::uint64_t{ref} * kCellBytes);
  }

  // Whether a record of that size may be there.
  template <class T>
  [[nodiscard]] bool could_be(lock::Ref ref) const {
    constexpr std::uint32_t width = sizeof(T) / kCellBytes;
    const Chunk at = ref / kChunkCells;
    return given(at) && owner_of(at) == mine_ && chunks_[at].width == width && ref % width == 0;
  }

  template <class T, class V>
  void set(const T& field, V value) {
    static_assert(std::is_trivially_copyable_v<T>);
    const T wanted = static_cast<T>(value);
    if constexpr (sizeof(T) <= 8) {
      static_assert(sizeof(T) == 1 || sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8);
      if (std::memcmp(&field, &wanted, sizeof(T)) == 0) return;
      log<sizeof(T)>(&field);
      store(const_cast<T*>(&field), wanted);
      after_store();
    } else {
      static_assert(sizeof(T) % 8 == 0 && alignof(T) <= 8);
      const auto* to = reinterpret_cast<const std::byte*>(&field);
      const auto* from = reinterpret_cast<const std::byte*>(&wanted);
      for (std::size_t i = 0; i < sizeof(T); i += 8) {
        if (std::memcmp(to + i, from + i, 8) == 0) continue;
        log<8>(to + i);
        std::memcpy(const_cast<std::byte*>(to + i), from + i, 8);
        after_store();
      }
    }
  }

  [[nodiscard]] std::uint64_t secret() const { return secret_; }

  // ---- records (shm_slabs.h) ----
  template <class T>
  lock::Ref alloc();
  template <class T>
  void free(lock::Ref ref);
  // Whether n more are to be had without another chunk.
  template <class T>
  [[nodiscard]] bool can_take(std::uint32_t n) const {
    return slab_for<T>().room >= n || shard_.empty_count != 0;
  }
  template <class T>
  void reserve(std::uint32_t n) {
    if (!can_take<T>(n)) throw lock::NeedCells{};
  }

  // ---- chunks, with grow_mu (shm_slabs.h) ----
  // Gives the shard one that is nobody's, and all of whose memory is committed: the first of those
  // given back, or the one at the frontier.
  void gain(Chunk chunk);
  // Takes one with nothing in it from the shard: it is nobody's then. 0: it has none.
  Chunk lose();
  // A slab's only chunk too is to be lost, if it has nothing in it.
  void close_last();
  // All of the shard's chunks, as empty ones. Not through the log: for a shard being emptied.
  void gather_chunks();
  // "" or the first thing wrong with slabs and chunks. Free records one by one of so many chunks.
  [[nodiscard]] std::string check_slabs(std::uint32_t most) const;

  // One store: everything since the last commit has come true.
  void commit() {
    fault_point("shm.commit");
    std::atomic_signal_fence(std::memory_order_seq_cst);
    shard_.log_count = 0;
    std::atomic_signal_fence(std::memory_order_seq_cst);
    fault_point("shm.committed");
    // Not before: until now a death gives these files their records back.
    for (; gone_count_ > 0; --gone_count_) shard_.filter.settle(gone_[gone_count_ - 1]);
  }

  // Idempotent: a death in here leaves log_count as it was, and the next one begins again.
  // False if an entry makes no sense: the shard is damaged.
  bool rollback() {
    if (shard_.log_count > kLogEntries) return false;
    for (std::uint32_t i = shard_.log_count; i-- > 0;) {
      const LogEntry& entry = shard_.log[i];
      const std::uint64_t offset = entry.offset_and_size >> 8;
      const std::uint64_t size = entry.offset_and_size & 0xff;
      if (size == 0 || size > 8 || !may_log(offset, size)) return false;
      put_back(base_ + offset, entry.old, size);
    }
    std::atomic_signal_fence(std::memory_order_seq_cst);
    shard_.log_count = 0;
    std::atomic_signal_fence(std::memory_order_seq_cst);
    gone_count_ = 0;
    shard_.filter.settle_all();
    return true;
  }

  // The filter's bit goes up at once and comes down after the commit: file_filter.h.
  void file_appears(FileId file) {
    const std::uint32_t cell = FileFilter::cell_of(file);
    FileFilter& filter = shard_.filter;
    if (filter.counts[cell] != FileFilter::kStuck) {
      set(filter.counts[cell], filter.counts[cell] + 1);
    }
    filter.mark(cell);
    fault_point("shm.file_appeared");
  }
  void file_goes(FileId file) {
    const std::uint32_t cell = FileFilter::cell_of(file);
    FileFilter& filter = shard_.filter;
    // (0: damaged. The bit is wrong at worst until the file is given a record again.)
    if (filter.counts[cell] == FileFilter::kStuck || filter.counts[cell] == 0) return;
    set(filter.counts[cell], filter.counts[cell] - 1);
    // What is forgotten here stays marked, for nothing, until a step is undone.
    if (gone_count_ < gone_.size()) gone_[gone_count_++] = cell;
  }
  [[nodiscard]] bool file_expected(FileId file) const {
    const std::uint32_t cell = FileFilter::cell_of(file);
    return shard_.filter.counts[cell] != 0 && !shard_.filter.nothing_in(cell);
  }

  template <class Fn>
  void take_in_operations(FileId file, Fn&& fn) {
    operations().take_in(file, std::forward<Fn>(fn));
    fault_point("shm.ops_taken_in");
  }
  // Of this shard.
  [[nodiscard]] std::vector<FileId> files_of_operations() const {
    std::vector<FileId> all = operations().files();
    const auto mine = static_cast<std::uint64_t>(reinterpret_cast<std::byte*>(&shard_) - base_);
    std::erase_if(all, [&](FileId file) { return shard_at(shard_of(file)) != mine; });
    return all;
  }

 private:
  static constexpr std::uint64_t kLooksPerCell = 256;

  // Apart, so that get() is small enough to be inlined.
  [[noreturn]] [[gnu::cold]] [[gnu::noinline]] static void damaged(const char* what) {
    throw lock::Damaged{what};
  }
  template <class T>
  static constexpr std::uint8_t kWidth = sizeof(T) / kCellBytes;
  template <class T>
  static constexpr std::uint16_t kRecords = kChunkCells / kWidth<T>;

  template <class T>
  [[nodiscard]] const Slab& slab_for() const {
    static_assert(sizeof(T) == kCellBytes || sizeof(T) == 2 * kCellBytes);
    return sizeof(T) == kCellBytes ? shard_.small : shard_.large;
  }
  template <class T>
  [[nodiscard]] const ChunkRec& chunk_of(Chunk at) const {
    const ChunkRec& c = mine(at);
    if (c.width != kWidth<T>) throw lock::Damaged{"a chunk of another width"};
    return c;
  }
  // Elsewhere there is no memory, not even for the chunk's record.
  [[nodiscard]] bool given(Chunk at) const { return at >= first_ && at < limit_; }
  // (Another shard's may be changing.)
  [[nodiscard]] std::uint8_t owner_of(Chunk at) const {
    return __atomic_load_n(&chunks_[at].owner, __ATOMIC_RELAXED);
  }
  [[nodiscard]] const ChunkRec& mine(Chunk at) const {
    if (!given(at) || owner_of(at) != mine_) {
      throw lock::Damaged{"a chunk that is not this shard's"};
    }
    return chunks_[at];
  }
  // A record's first bytes while it is free: the next free one of its chunk.
  [[nodiscard]] const std::uint16_t& next_free(lock::Ref ref) const {
    return *reinterpret_cast<const std::uint16_t*>(base_ + std::uint64_t{ref} * kCellBytes);
  }
  template <class T>
  void open_chunk();
  template <class T>
  void close_unused();
  void push(const Slab& slab, Chunk at);
  void unlink(const Slab& slab, Chunk at);
  void push_empty(Chunk at);
  Chunk pop_empty();
  template <class T>
  [[nodiscard]] std::string check_slab(std::uint32_t& chunks, std::uint32_t most) const;

  [[nodiscard]] bool may_log(std::uint64_t offset, std::uint64_t size) const {
    constexpr std::uint64_t space = offsetof(Header, space);
    if (offset >= space && offset + size <= space + sizeof(Space)) return true;
    return offset >= kShardsAt && offset <= bytes_ - size;
  }
  // Some fields are read without the mutex (the frontier, a chunk's owner). That is all that this
  // being atomic is for; it costs nothing.
  template <class T>
  static void store(T* field, T value) {
    if constexpr (alignof(T) == sizeof(T)) {
      __atomic_store(field, &value, __ATOMIC_RELAXED);
    } else {
      *field = value;
    }
  }
  static void put_back(std::byte* at, std::uint64_t old, std::uint64_t size) {
    const bool aligned = reinterpret_cast<std::uintptr_t>(at) % size == 0;
    if (size == 8 && aligned) {
      store(reinterpret_cast<std::uint64_t*>(at), old);
    } else if (size == 4 && aligned) {
      store(reinterpret_cast<std::uint32_t*>(at), static_cast<std::uint32_t>(old));
    } else if (size == 1) {
      store(reinterpret_cast<std::uint8_t*>(at), static_cast<std::uint8_t>(old));
    } else {
      std::memcpy(at, &old, size);
    }
  }
  template <std::size_t kSize>
  void log(const void* at) {
    const std::uint32_t n = shard_.log_count;
    if (n >= kLogEntries) [[unlikely]]
      throw LogFull{};
    const auto offset = static_cast<std::uint64_t>(static_cast<const std::byte*>(at) - base_);
    const auto chunk = static_cast<Chunk>(offset / kChunkBytes);
    if (chunk >= first_ && owner_of(chunk) != mine_) [[unlikely]] {
      damaged("a record that is not this shard's");
    }
    LogEntry& entry = shard_.log[n];
    entry.offset_and_size = offset << 8 | kSize;
    std::uint64_t old = 0;
    std::memcpy(&old, at, kSize);
    entry.old = old;
    // Entry, then count, then the store itself.
    std::atomic_signal_fence(std::memory_order_seq_cst);
    shard_.log_count = n + 1;
    std::atomic_signal_fence(std::memory_order_seq_cst);
  }
  static void after_store() {
    std::atomic_signal_fence(std::memory_order_seq_cst);
    fault_point("shm.store");
  }

  [[nodiscard]] OpTable& operations() const { return *reinterpret_cast<OpTable*>(base_ + kOpsAt); }

  std::byte* base_;
  std::uint64_t bytes_;
  ChunkRec* chunks_;
  Chunk first_, limit_;         // chunks there are: [first_, limit_)
  lock::Ref first_ref_, refs_;  // their first cell, and how many
  Space& space_;
  Shard& shard_;
  std::uint64_t secret_;
  std::uint8_t mine_;
  mutable std::uint64_t looks_;
  // Cells whose count went down in this step, which is about one file.
  std::array<std::uint32_t, 8> gone_{};
  std::uint32_t gone_count_{};
};

}  // namespace latchfs::shm

#include "store/shm/shm_slabs.h"
