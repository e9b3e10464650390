// Processes that lock, wait, interrupt each other, die and are killed, through one or two mounts,
// and check for themselves that nobody else has what they hold.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <string>

#include "support/lock_children.h"

namespace latchfs::locktest {

constexpr unsigned kMostContenders = 64;
constexpr unsigned kCells = 8;  // bytes of a file, and as many files for flock, to be fought for

// What contenders tell each other and the test.
struct Arena {
  std::atomic<bool> stop;
  std::atomic<bool> side_dead[2];  // set before a side's daemon is killed: its locks count no more
  // Holders by side, cell (the bytes, then the files) and mode.
  std::atomic<int> writers[2][2 * kCells];
  std::atomic<int> readers[2][2 * kCells];
  std::atomic<unsigned> violations;
  std::atomic<unsigned> errors;  // an errno that should not have been
  std::atomic<int> last_error;
  std::array<std::atomic<std::uint64_t>, kMostContenders> grants;  // by contender
};

struct Contender {
  unsigned number{};
  int side{};
  std::string dir;  // its mount
  LockType type{};
  std::uint64_t seed{};
  bool dies_at_will{};  // storms: exits in the middle, with locks held
};

// Exit status of a contender whose mount is gone.
constexpr int kOrphaned = 77;

// Locks and gives back until arena.stop or its mount is gone. All contenders of one type fight for
// the same kCells bytes (flock: files).
int contend(Arena& arena, const Contender& who);

}  // namespace latchfs::locktest
