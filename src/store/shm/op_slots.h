// Operations in flight under enforce=mandatory that are not in the table: what a mount says of each
// in a slot of shared memory, without a mutex or a system call.
//
// A slot is its mount's. Its states, and who changes them:
//
//   empty -> claimed -> in flight    the mount, in begin: claims, fills in, publishes
//   in flight -> empty               the mount: it ended, or there was a record on the file
//   in flight -> in table            whoever gives the file its record, under the shard's mutex
//   in table -> empty                the mount, before it takes the operation out of the table
//   any -> empty                     who reaps the mount
//
// Every change of what is in flight is a compare-and-swap on state, whose upper bits count the
// claims: who read fields and then swaps, or reads the state again, knows whose fields they were.
// All fields are atomics: other processes read them while they change. They are stored `release`
// and loaded `acquire` (plain moves on x86), so that who reads a field of a later claim also sees
// that claim when he reads the state again.
//
// Crash: the state is not logged. "In table" therefore means "may be in the table": a step that
// took the operation in and was undone leaves it so, and whoever gives the file its record next
// takes it in again. docs/table.md has the argument, docs/recovery.md the deaths.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <optional>
#include <vector>

#include "latchfs/lock_service.h"
#include "latchfs/types.h"

namespace latchfs::shm {

enum class OpState : std::uint8_t { kEmpty = 0, kClaimed = 1, kInFlight = 2, kInTable = 3 };

// Two cache lines: neighbours, other threads', are not fetched along with it.
struct alignas(128) OpSlot {
  std::atomic<std::uint64_t> state;  // OpState in the low two bits, claims above
  std::atomic<std::uint64_t> mount, key;
  std::atomic<std::uint64_t> dev, ino;
  std::atomic<std::uint64_t> begin, end;
  std::atomic<std::uint64_t> owner, description;  // keys, as OwnerRec::alias_*
  std::atomic<std::uint64_t> fh;
  std::atomic<std::int64_t> started;  // CLOCK_REALTIME ns, of the coarse clock
  std::array<std::atomic<std::uint64_t>, 2> comm;
  std::atomic<std::uint32_t> pid, uid;
  std::atomic<std::int32_t> backing_fd;
  std::atomic<std::uint32_t> kind;  // LockKind
};
static_assert(sizeof(OpSlot) == 128);

inline constexpr std::uint32_t kOpMounts = 256;
inline constexpr std::uint32_t kOpSlots = 64;

struct alignas(128) MountOps {
  std::atomic<std::uint32_t> used;  // slots from here on were never used
  std::array<OpSlot, kOpSlots> slots;
};

struct OpTable {
  // Bit by mount slot: it had an operation. A table without mandatory mounts is looked through by
  // four loads.
  alignas(128) std::array<std::atomic<std::uint64_t>, kOpMounts / 64> mounts;
  std::array<MountOps, kOpMounts> of;

  // ---- the mount in slot m ----

  // Nobody else uses m yet: what the one before it left goes.
  void join(std::uint32_t m);
  // In flight from the return on; null: no slot is free.
  OpSlot* publish(std::uint32_t m, const LockService::OpRequest& op, std::int64_t now) noexcept;
  // False: it is in the table, taken in before any lock was granted on the file. It may go on.
  static bool withdraw(OpSlot& slot) noexcept;
  // The operation is over. False: it may be in the table still, or has no slot.
  bool over(std::uint32_t m, std::uint64_t key) noexcept;

  // ---- anybody ----

  // A dead mount's; then the shards are reaped. Harmless when done twice, or late.
  void forget(std::uint64_t mount) noexcept;

  struct InFlight {
    LockService::OpRequest op;
    std::int64_t started{};
  };
  // All of the file, under its shard's mutex, after its filter bit was set: each is "in table" when
  // fn is called with it. fn must be ready for one that is there already.
  // The file has just got its record, nobody was granted anything.
  template <class Fn>
  void take_in(FileId file, Fn&& fn) {
    for_each(*this, [&](OpSlot& slot, std::uint64_t state) {
      if (slot.ino.load(std::memory_order_acquire) != file.ino ||
          slot.dev.load(std::memory_order_acquire) != file.dev) {
        return;
      }
      if (const auto found = taken_in(slot, state, file)) fn(found->op, found->started);
    });
  }
  // Files of whatever is in flight or in the table: what was so at some moment of the call.
  [[nodiscard]] std::vector<FileId> files() const;
  // Whether anything is in flight that was not taken in.
  [[nodiscard]] bool any_outside() const noexcept;

 private:
  static std::optional<InFlight> taken_in(OpSlot& slot, std::uint64_t state, FileId file);
  template <class Self, class Fn>
  static void for_each(Self& self, Fn&& fn);
};

[[nodiscard]] constexpr OpState op_state(std::uint64_t state) {
  return static_cast<OpState>(state & 3);
}
[[nodiscard]] constexpr std::uint64_t with_state(std::uint64_t state, OpState is) {
  return (state & ~std::uint64_t{3}) | static_cast<std::uint64_t>(is);
}

template <class Self, class Fn>
void OpTable::for_each(Self& self, Fn&& fn) {
  for (std::uint32_t w = 0; w < self.mounts.size(); ++w) {
    for (std::uint64_t bits = self.mounts[w].load(std::memory_order_seq_cst); bits != 0;
         bits &= bits - 1) {
      auto& ops = self.of[w * 64 + static_cast<std::uint32_t>(__builtin_ctzll(bits))];
      const std::uint32_t used = std::min(ops.used.load(std::memory_order_seq_cst), kOpSlots);
      for (std::uint32_t i = 0; i < used; ++i) {
        const std::uint64_t state = ops.slots[i].state.load(std::memory_order_seq_cst);
        if (op_state(state) == OpState::kInFlight || op_state(state) == OpState::kInTable) {
          fn(ops.slots[i], state);
        }
      }
    }
  }
}

}  // namespace latchfs::shm
