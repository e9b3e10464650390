// Whether a file of a shard may have a record at all: asked without the shard's mutex, of one word.
//
// A cell stands for all files of one hash. `counts` says how many of them have a record; it is the
// shard's like any other field, changed under its mutex and through its log. `maybe` has a bit a
// cell, for those who hold nothing: set before a step gives a file its record, cleared only after
// the step that took the last one away was committed. So a clear bit means that nothing on the file
// has come true; a set one means "take the mutex and look", and is at worst a waste.
//
// `maybe` is not in the log. Of a step that was undone, or whose process died, the bits follow from
// the counts: settle_all(). Why the order suffices: docs/table.md, "Looking without the mutex".
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "latchfs/types.h"

namespace latchfs::shm {

// Shards take its top bits, cells those below.
[[nodiscard]] inline std::uint64_t file_hash(FileId id) {
  return (id.ino ^ (id.dev << 48)) * 0x9E3779B97F4A7C15ULL;
}

struct alignas(64) FileFilter {
  // With 100,000 files locked, evenly spread, one in six of the others is taken for locked.
  static constexpr std::uint32_t kCells = 8192;
  static constexpr std::uint32_t kBits = 64;
  using Count = std::uint16_t;
  // No more is counted: the cell stays marked until the counts are made anew.
  static constexpr Count kStuck = std::numeric_limits<Count>::max();

  std::array<std::atomic<std::uint64_t>, kCells / kBits> maybe;
  std::array<Count, kCells> counts;

  [[nodiscard]] static std::uint32_t cell_of(FileId id) {
    return static_cast<std::uint32_t>(file_hash(id) >> 45) % kCells;
  }
  [[nodiscard]] static std::uint64_t bit(std::uint32_t cell) {
    return std::uint64_t{1} << (cell % kBits);
  }

  // Any thread of any process.
  [[nodiscard]] bool nothing_in(std::uint32_t cell) const noexcept {
    return (maybe[cell / kBits].load(std::memory_order_seq_cst) & bit(cell)) == 0;
  }

  // ---- under the shard's mutex: one writer ----
  // Stored also when it is set already: the store is one side of the argument.
  void mark(std::uint32_t cell) {
    auto& word = maybe[cell / kBits];
    word.store(word.load(std::memory_order_relaxed) | bit(cell), std::memory_order_seq_cst);
  }
  // After a commit.
  void settle(std::uint32_t cell) {
    if (counts[cell] != 0) return;
    auto& word = maybe[cell / kBits];
    word.store(word.load(std::memory_order_relaxed) & ~bit(cell), std::memory_order_seq_cst);
  }
  // After a rollback. A bit that stays set is set throughout.
  void settle_all() {
    for (std::uint32_t w = 0; w < maybe.size(); ++w) {
      const Count* const of = &counts[w * kBits];
      std::uint64_t bits = 0;
      if (std::any_of(of, of + kBits, [](Count n) { return n != 0; })) {
        for (std::uint32_t i = 0; i < kBits; ++i) bits |= std::uint64_t{of[i] != 0} << i;
      }
      if (maybe[w].load(std::memory_order_relaxed) != bits) {
        maybe[w].store(bits, std::memory_order_seq_cst);
      }
    }
  }

  // When the shard is emptied, outside of the log: first of all everybody is sent to the mutex,
  // then settle_all().
  void begin_anew() {
    for (auto& word : maybe) word.store(~std::uint64_t{0}, std::memory_order_seq_cst);
    counts.fill(0);
  }
};
static_assert(sizeof(FileFilter) == FileFilter::kCells / 8 + 2 * FileFilter::kCells);

}  // namespace latchfs::shm
