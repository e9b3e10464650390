// LockTable's arena in shared memory: every store goes through the shard's undo log, so that after
// the death of the process at any instruction rollback() restores the state of the last commit().
//
// Why plain stores in program order suffice: the process dies at one point of its instruction
// stream (interrupts are precise), what it executed before is visible to whoever takes the mutex
// after it, what came later never happened. Only the compiler must not reorder: signal fences.
#pragma once

#include <array>
#include <atomic>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#include "base/fault_point.h"
#include "lock/table.h"
#include "store/shm/layout.h"

namespace latchfs::shm {

// The step changed more than the log holds: rolled back and refused. A bug if it ever happens.
struct LogFull {};

class ShmArena {
 public:
  ShmArena(std::byte* base, std::uint64_t bytes, Shard& shard)
      : base_{base}, bytes_{bytes}, shard_{shard} {}

  template <class T>
  [[nodiscard]] const T& get(lock::Ref ref) const {
    return *reinterpret_cast<const T*>(base_ + std::uint64_t{ref} * kCellBytes);
  }

  template <class T, class V>
  void set(const T& field, V value) {
    static_assert(std::is_trivially_copyable_v<T>);
    const T wanted = static_cast<T>(value);
    if constexpr (sizeof(T) <= 8) {
      static_assert(sizeof(T) == 1 || sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8);
      if (std::memcmp(&field, &wanted, sizeof(T)) == 0) return;
      log(&field, sizeof(T));
      const_cast<T&>(field) = wanted;
      after_store();
    } else {
      static_assert(sizeof(T) % 8 == 0 && alignof(T) <= 8);
      const auto* to = reinterpret_cast<const std::byte*>(&field);
      const auto* from = reinterpret_cast<const std::byte*>(&wanted);
      for (std::size_t i = 0; i < sizeof(T); i += 8) {
        if (std::memcmp(to + i, from + i, 8) == 0) continue;
        log(to + i, 8);
        std::memcpy(const_cast<std::byte*>(to + i), from + i, 8);
        after_store();
      }
    }
  }

  template <class T>
  lock::Ref alloc() {
    FreeList& list = list_for<T>();
    if (list.head == 0) throw lock::NeedCells{};
    const lock::Ref ref = list.head;
    set(list.head, next_free(ref));
    set(list.count, list.count - 1);
    const auto* words = &get<std::uint64_t>(ref);
    for (std::size_t i = 0; i < sizeof(T) / 8; ++i) set(words[i], std::uint64_t{0});
    return ref;
  }

  template <class T>
  void free(lock::Ref ref) {
    FreeList& list = list_for<T>();
    set(next_free(ref), list.head);
    set(list.head, ref);
    set(list.count, list.count + 1);
  }

  template <class T>
  [[nodiscard]] bool can_take(std::uint32_t n) {
    return list_for<T>().count >= n;
  }
  template <class T>
  void reserve(std::uint32_t n) {
    if (!can_take<T>(n)) throw lock::NeedCells{};
  }

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
  // False if an entry points outside the region: the shard is damaged.
  bool rollback() {
    if (shard_.log_count > kLogEntries) return false;
    for (std::uint32_t i = shard_.log_count; i-- > 0;) {
      const LogEntry& entry = shard_.log[i];
      const std::uint64_t offset = entry.offset_and_size >> 8;
      const std::uint64_t size = entry.offset_and_size & 0xff;
      if (size > 8 || offset < kShardsAt || offset + size > bytes_) return false;
      std::memcpy(base_ + offset, &entry.old, size);
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
  void take_in_operations(FileId file, bool fresh, Fn&& fn) {
    operations().take_in(file, fresh, std::forward<Fn>(fn));
    fault_point("shm.ops_taken_in");
  }
  // Of this shard.
  [[nodiscard]] std::vector<FileId> files_of_operations() const {
    std::vector<FileId> all = operations().files();
    const auto mine = static_cast<std::uint64_t>(reinterpret_cast<std::byte*>(&shard_) - base_);
    std::erase_if(all, [&](FileId file) { return shard_at(shard_of(file)) != mine; });
    return all;
  }

  // Hands the shard a fresh chunk, all of whose memory is committed: cells of the size of T.
  template <class T>
  void add_chunk(std::uint64_t offset) {
    constexpr std::uint64_t step = sizeof(T);
    for (std::uint64_t at = kChunkBytes; at >= step; at -= step) {
      free<T>(static_cast<lock::Ref>((offset + at - step) / kCellBytes));
    }
    set(shard_.cells, shard_.cells + kChunkBytes);
  }

 private:
  template <class T>
  FreeList& list_for() {
    static_assert(sizeof(T) == kCellBytes || sizeof(T) == 2 * kCellBytes);
    return sizeof(T) == kCellBytes ? shard_.small : shard_.large;
  }
  // A free cell's first word links it to the next.
  [[nodiscard]] const lock::Ref& next_free(lock::Ref ref) const { return get<lock::Ref>(ref); }

  void log(const void* at, std::uint64_t size) {
    const std::uint32_t n = shard_.log_count;
    if (n >= kLogEntries) throw LogFull{};
    LogEntry& entry = shard_.log[n];
    entry.offset_and_size =
        static_cast<std::uint64_t>(static_cast<const std::byte*>(at) - base_) << 8 | size;
    entry.old = 0;
    std::memcpy(&entry.old, at, size);
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
  Shard& shard_;
  // Cells whose count went down in this step, which is about one file.
  std::array<std::uint32_t, 8> gone_{};
  std::uint32_t gone_count_{};
};

}  // namespace latchfs::shm
