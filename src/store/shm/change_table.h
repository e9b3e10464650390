// Modifications in flight of all mounts, and files whose filelock is being changed: the shared
// memory behind latchfs/change_gate.h.
//
// A slot is its mount's:
//
//   empty -> claimed -> in flight -> empty    a thread of the mount
//   any -> empty                              who reaps the mount, or who has its number next
//
// Above the state in the same word is a count of claims: who read fields and then the state again
// knows whose fields they were. All fields are atomics, stored `release` and loaded `acquire`:
// other processes read them while they change. Nothing here is logged or guarded by a mutex.
//
// The argument that no change slips past a transition is in docs/design.md, "Filelocks"; it rests
// on four accesses in the one order of seq_cst: a change's state store before its load of the
// version, a transition's addition to the version before its loads of the states.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <optional>
#include <vector>

#include "latchfs/change_gate.h"
#include "latchfs/lock_service.h"
#include "latchfs/types.h"
#include "store/shm/file_filter.h"
#include "store/shm/op_slots.h"

namespace latchfs::shm {

enum class ChangeState : std::uint8_t { kEmpty = 0, kClaimed = 1, kInFlight = 2 };

// Two cache lines: neighbours, other threads', are not fetched along with it.
struct alignas(128) ChangeSlot {
  std::atomic<std::uint64_t> state;  // ChangeState in the low two bits, claims above
  std::atomic<std::uint64_t> mount;
  std::atomic<std::uint64_t> dev, ino;
  std::atomic<std::uint64_t> begin, end;
  std::atomic<std::uint64_t> fh;
  std::atomic<std::int64_t> started;  // CLOCK_REALTIME ns, of the coarse clock
  std::atomic<std::uint32_t> pid, uid;
  std::atomic<std::int32_t> backing_fd;
  std::atomic<std::uint32_t> listed;
};
static_assert(sizeof(ChangeSlot) == 128);

struct alignas(64) Transition {
  std::atomic<std::uint64_t> state;  // as a ChangeSlot's
  std::atomic<std::uint64_t> mount;
  std::atomic<std::uint64_t> dev, ino;
  std::atomic<std::uint32_t> uid;
};
static_assert(sizeof(Transition) == 64);

struct alignas(64) StorerSlot {
  std::atomic<std::uint64_t> state;  // as a ChangeSlot's
  std::atomic<std::uint64_t> mount;
  std::atomic<std::uint64_t> dev, ino;
  std::atomic<std::uint32_t> uid, gid, pid;
};
static_assert(sizeof(StorerSlot) == 64);

inline constexpr std::uint32_t kStorers = 16384;
// How far from its file's place a storer may be.
inline constexpr std::uint32_t kStorerReach = 256;
inline constexpr std::uint32_t kChangeSlots = 64;  // of a mount: threads, not files
inline constexpr std::uint32_t kTransitions = 256;
// Files that share a place look at their marks once more when one of them is locked.
inline constexpr std::uint32_t kVersions = 65536;

struct alignas(128) MountChanges {
  std::atomic<std::uint32_t> used;  // slots from here on were never used
  std::array<ChangeSlot, kChangeSlots> slots;
};

struct ChangeTable {
  // Bit by mount slot: it had a change.
  alignas(128) std::array<std::atomic<std::uint64_t>, kOpMounts / 64> mounts;
  alignas(128) std::atomic<std::uint64_t> ended;            // transitions
  alignas(128) std::atomic<std::uint32_t> transitions_now;  // at least so many are under way
  std::array<Transition, kTransitions> transitions;
  std::array<std::atomic<std::uint32_t>, kVersions> versions;
  std::array<MountChanges, kOpMounts> of;
  std::array<std::atomic<std::uint32_t>, kOpMounts> storers_beyond;  // of a mount, for want of room
  std::array<StorerSlot, kStorers> storers;

  // ---- the mount in slot m ----

  // Nobody else uses m yet: what the one before it left goes.
  void join(std::uint32_t m) noexcept;
  // The slot's number; waits while none is free.
  std::uint32_t begin(std::uint32_t m, std::uint64_t mount, const Change& change) noexcept;
  void end(std::uint32_t m, std::uint32_t slot) noexcept;
  // The place's number; none: no room.
  std::optional<std::uint32_t> begin_transition(std::uint64_t mount, FileId file,
                                                std::uint32_t uid) noexcept;
  void end_transition(std::uint32_t place) noexcept;

  // The place's number; none: no room, counted.
  std::optional<std::uint32_t> enter_storer(std::uint32_t m, std::uint64_t mount, FileId file,
                                            const ChangeGate::Storer& who) noexcept;
  void leave_storer(std::uint32_t m, std::optional<std::uint32_t> place) noexcept;

  // ---- anybody ----

  [[nodiscard]] Result<std::vector<ChangeGate::Storer>> storers_of(FileId file) const;

  [[nodiscard]] std::uint32_t version(FileId file) const noexcept {
    return versions[place_of(file)].load(std::memory_order_seq_cst);
  }
  [[nodiscard]] std::optional<std::uint32_t> transition_on(FileId file) const noexcept;
  std::vector<Change> wait(FileId file, std::int64_t deadline);
  [[nodiscard]] bool any_listed() const noexcept;
  // Those from place `at` (0 is the first) on that are listed, at most `room`; where to go on,
  // none: that was all. file: only this one's.
  std::optional<std::uint64_t> list(std::optional<FileId> file, std::uint64_t at,
                                    std::uint32_t room, std::vector<Grant>& out) const;
  // A dead mount's. Harmless when done twice, or late.
  void forget(std::uint64_t mount) noexcept;

 private:
  [[nodiscard]] static std::uint32_t place_of(FileId file) {
    return static_cast<std::uint32_t>(file_hash(file) >> 40) % kVersions;
  }
  // No version is the same before and after.
  void bump(FileId file) noexcept {
    versions[place_of(file)].fetch_add(1, std::memory_order_seq_cst);
  }
  void over(Transition& t, std::uint64_t state) noexcept;
};

}  // namespace latchfs::shm
