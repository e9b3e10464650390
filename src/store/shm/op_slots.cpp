#include "store/shm/op_slots.h"

#include <cstring>

#include "store/shm/slot_use.h"

namespace latchfs::shm {
namespace {

constexpr auto kRelease = std::memory_order_release;
constexpr auto kAcquire = std::memory_order_acquire;
constexpr auto kSeqCst = std::memory_order_seq_cst;

bool change(OpSlot& slot, std::uint64_t was, std::uint64_t is) noexcept {
  return slot.state.compare_exchange_strong(was, is, kSeqCst);
}

}  // namespace

void OpTable::join(std::uint32_t m) {
  mounts[m / 64].fetch_and(~(std::uint64_t{1} << (m % 64)));
  MountOps& ops = of[m];
  for (OpSlot& slot : ops.slots) {
    const std::uint64_t state = slot.state.load(kAcquire);
    if (op_state(state) != OpState::kEmpty) {
      slot.state.store(with_state(state, OpState::kEmpty), kSeqCst);
    }
  }
  ops.used.store(0);
}

OpSlot* OpTable::publish(std::uint32_t m, const LockService::OpRequest& op,
                         std::int64_t now) noexcept {
  MountOps& ops = of[m];
  const std::uint32_t first = own_place();
  for (std::uint32_t i = 0; i < kOpSlots; ++i) {
    const std::uint32_t at = (first + i) % kOpSlots;
    OpSlot& slot = ops.slots[at];
    const std::uint64_t was = slot.state.load(std::memory_order_relaxed);
    if (op_state(was) != OpState::kEmpty) continue;
    const std::uint64_t claimed = with_state(was + 4, OpState::kClaimed);
    if (!change(slot, was, claimed)) continue;
    // These two, like the filter, are looked at by who gives a file its record: what he must see is
    // stored before the state, all in the one order of seq_cst.
    for (std::uint32_t used = ops.used.load(kSeqCst); used <= at;) {
      if (ops.used.compare_exchange_weak(used, at + 1, kSeqCst)) break;
    }
    const std::uint64_t bit = std::uint64_t{1} << (m % 64);
    if ((mounts[m / 64].load(kSeqCst) & bit) == 0) mounts[m / 64].fetch_or(bit, kSeqCst);

    slot.mount.store(op.op.mount, kRelease);
    slot.key.store(op.op.key, kRelease);
    slot.dev.store(op.file.dev, kRelease);
    slot.ino.store(op.file.ino, kRelease);
    slot.begin.store(op.range.begin(), kRelease);
    slot.end.store(op.range.end(), kRelease);
    slot.owner.store(op.owner.key, kRelease);
    slot.description.store(op.description.key, kRelease);
    slot.fh.store(op.holder.fh, kRelease);
    slot.started.store(now, kRelease);
    std::array<std::uint64_t, 2> comm{};
    std::memcpy(comm.data(), op.holder.comm.data(), sizeof comm);
    slot.comm[0].store(comm[0], kRelease);
    slot.comm[1].store(comm[1], kRelease);
    slot.pid.store(op.holder.pid, kRelease);
    slot.uid.store(op.holder.uid, kRelease);
    slot.backing_fd.store(op.holder.backing_fd, kRelease);
    slot.kind.store(static_cast<std::uint32_t>(op.kind), kRelease);
    slot.state.store(with_state(claimed, OpState::kInFlight), kSeqCst);
    return &slot;
  }
  return nullptr;
}

bool OpTable::withdraw(OpSlot& slot) noexcept {
  const std::uint64_t state = slot.state.load(kAcquire);
  return op_state(state) == OpState::kInFlight &&
         change(slot, state, with_state(state, OpState::kEmpty));
}

bool OpTable::over(std::uint32_t m, std::uint64_t key) noexcept {
  MountOps& ops = of[m];
  const std::uint32_t used = std::min(ops.used.load(kAcquire), kOpSlots);
  const std::uint32_t first = own_place() % kOpSlots;
  for (std::uint32_t i = 0; i < kOpSlots; ++i) {
    const std::uint32_t at = (first + i) % kOpSlots;
    if (at >= used) continue;
    OpSlot& slot = ops.slots[at];
    // Its own claim's fields, or the state has changed since: nobody else ends this operation.
    const std::uint64_t state = slot.state.load(kAcquire);
    if (op_state(state) != OpState::kInFlight && op_state(state) != OpState::kInTable) continue;
    if (slot.key.load(kAcquire) != key) continue;
    if (op_state(state) == OpState::kInFlight &&
        change(slot, state, with_state(state, OpState::kEmpty))) {
      return true;
    }
    // In the table, then. Whoever takes it in again does so under the shard's mutex, before the
    // caller gets it, or sees that it is over.
    slot.state.store(with_state(state, OpState::kEmpty), kSeqCst);
    return false;
  }
  return false;
}

void OpTable::forget(std::uint64_t mount) noexcept {
  for_each(*this, [&](OpSlot& slot, std::uint64_t state) {
    while (slot.mount.load(kAcquire) == mount &&
           (op_state(state) == OpState::kInFlight || op_state(state) == OpState::kInTable)) {
      // Meanwhile a living one may have put it in the table.
      if (slot.state.compare_exchange_strong(state, with_state(state, OpState::kEmpty), kSeqCst)) {
        return;
      }
    }
  });
}

std::optional<OpTable::InFlight> OpTable::taken_in(OpSlot& slot, std::uint64_t state, FileId file) {
  if (op_state(state) == OpState::kInFlight) {
    // If it succeeds the fields are those of this claim, the file's too, and stay: the operation
    // now ends under the mutex that the caller holds.
    if (!change(slot, state, with_state(state, OpState::kInTable))) return std::nullopt;
    state = with_state(state, OpState::kInTable);
  }
  InFlight found;
  LockService::OpRequest& op = found.op;
  op.file = file;
  op.op = OwnerId{slot.mount.load(kAcquire), slot.key.load(kAcquire), OwnerSpace::kOp};
  op.owner = OwnerId{op.op.mount, slot.owner.load(kAcquire), OwnerSpace::kRange};
  op.description = OwnerId{op.op.mount, slot.description.load(kAcquire), OwnerSpace::kRange};
  const auto range = ByteRange::from_half_open(slot.begin.load(kAcquire), slot.end.load(kAcquire));
  const std::array<std::uint64_t, 2> comm{slot.comm[0].load(kAcquire), slot.comm[1].load(kAcquire)};
  std::memcpy(op.holder.comm.data(), comm.data(), sizeof comm);
  op.holder.fh = slot.fh.load(kAcquire);
  op.holder.pid = slot.pid.load(kAcquire);
  op.holder.uid = slot.uid.load(kAcquire);
  op.holder.backing_fd = slot.backing_fd.load(kAcquire);
  op.kind = slot.kind.load(kAcquire) == static_cast<std::uint32_t>(LockKind::kReadOp)
                ? LockKind::kReadOp
                : LockKind::kWriteOp;
  found.started = slot.started.load(kAcquire);
  // Of another claim, or over (its end waits for the mutex, if it has anything to take out).
  if (slot.state.load(kAcquire) != state) return std::nullopt;
  // A range that is none: damaged. The whole file, rather than nothing.
  op.range = range ? *range : ByteRange{};
  return found;
}

bool OpTable::any_outside() const noexcept {
  bool any = false;
  for_each(*this, [&](const OpSlot&, std::uint64_t state) {
    any |= op_state(state) == OpState::kInFlight;
  });
  return any;
}

std::vector<FileId> OpTable::files() const {
  std::vector<FileId> all;
  for_each(*this, [&](const OpSlot& slot, std::uint64_t state) {
    const FileId file{slot.dev.load(kAcquire), slot.ino.load(kAcquire)};
    if (slot.state.load(kAcquire) == state) all.push_back(file);
  });
  return all;
}

}  // namespace latchfs::shm
