#include "store/shm/change_table.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>

#include "base/clock.h"
#include "base/fault_point.h"
#include "store/shm/slot_use.h"

namespace latchfs::shm {
namespace {

constexpr auto kRelease = std::memory_order_release;
constexpr auto kAcquire = std::memory_order_acquire;
constexpr auto kSeqCst = std::memory_order_seq_cst;
// How long a wait sleeps at most before it looks again.
constexpr useconds_t kMostSleepUs = 1000;

constexpr ChangeState state_of(std::uint64_t word) { return static_cast<ChangeState>(word & 3); }
constexpr std::uint64_t with_state(std::uint64_t word, ChangeState is) {
  return (word & ~std::uint64_t{3}) | static_cast<std::uint64_t>(is);
}

// A word's next claim, if it is empty and nobody else is faster.
template <class Slot>
std::optional<std::uint64_t> claim(Slot& slot) noexcept {
  std::uint64_t was = slot.state.load(std::memory_order_relaxed);
  if (state_of(was) != ChangeState::kEmpty) return std::nullopt;
  const std::uint64_t is = with_state(was + 4, ChangeState::kClaimed);
  if (!slot.state.compare_exchange_strong(was, is, kSeqCst)) return std::nullopt;
  return is;
}

// By who claimed it.
template <class Slot>
void give_back(Slot& slot) noexcept {
  const std::uint64_t word = slot.state.load(std::memory_order_relaxed);
  slot.state.store(with_state(word, ChangeState::kEmpty), kRelease);
}

// By who reaps the mount: its, claimed or in flight.
template <class Slot>
void clear_if_of(Slot& slot, std::uint64_t mount) noexcept {
  std::uint64_t state = slot.state.load(kAcquire);
  if (state_of(state) == ChangeState::kEmpty || slot.mount.load(kAcquire) != mount) return;
  slot.state.compare_exchange_strong(state, with_state(state, ChangeState::kEmpty), kSeqCst);
}

template <class Slot>
bool is_of(const Slot& slot, FileId file) noexcept {
  return slot.ino.load(kAcquire) == file.ino && slot.dev.load(kAcquire) == file.dev;
}

Change fields_of(const ChangeSlot& slot) noexcept {
  Change change;
  change.file = FileId{slot.dev.load(kAcquire), slot.ino.load(kAcquire)};
  const auto range = ByteRange::from_half_open(slot.begin.load(kAcquire), slot.end.load(kAcquire));
  if (range) change.range = *range;
  change.holder.pid = slot.pid.load(kAcquire);
  change.holder.uid = slot.uid.load(kAcquire);
  change.holder.fh = slot.fh.load(kAcquire);
  change.holder.backing_fd = slot.backing_fd.load(kAcquire);
  change.listed = slot.listed.load(kAcquire) != 0;
  return change;
}

}  // namespace

void ChangeTable::join(std::uint32_t m) noexcept {
  mounts[m / 64].fetch_and(~(std::uint64_t{1} << (m % 64)));
  for (ChangeSlot& slot : of[m].slots) {
    const std::uint64_t word = slot.state.load(kAcquire);
    if (state_of(word) != ChangeState::kEmpty) {
      slot.state.store(with_state(word, ChangeState::kEmpty), kSeqCst);
    }
  }
  of[m].used.store(0);
  storers_beyond[m].store(0);
}

std::optional<std::uint32_t> ChangeTable::enter_storer(std::uint32_t m, std::uint64_t mount,
                                                       FileId file,
                                                       const ChangeGate::Storer& who) noexcept {
  for (std::uint32_t i = 0; i < kStorerReach; ++i) {
    const std::uint32_t at = (place_of(file) + i) % kStorers;
    StorerSlot& slot = storers[at];
    const auto claimed = claim(slot);
    if (!claimed) continue;
    slot.mount.store(mount, kRelease);
    slot.dev.store(file.dev, kRelease);
    slot.ino.store(file.ino, kRelease);
    slot.uid.store(who.uid, kRelease);
    slot.gid.store(who.gid, kRelease);
    slot.pid.store(who.pid, kRelease);
    slot.state.store(with_state(*claimed, ChangeState::kInFlight), kSeqCst);
    return at;
  }
  storers_beyond[m].fetch_add(1, kSeqCst);
  return std::nullopt;
}

void ChangeTable::leave_storer(std::uint32_t m, std::optional<std::uint32_t> place) noexcept {
  if (!place) {
    storers_beyond[m].fetch_sub(1, kSeqCst);
    return;
  }
  give_back(storers[*place % kStorers]);
}

Result<std::vector<ChangeGate::Storer>> ChangeTable::storers_of(FileId file) const {
  for (const auto& beyond : storers_beyond) {
    if (beyond.load(kSeqCst) != 0) return errno_code(ENOBUFS);
  }
  std::vector<ChangeGate::Storer> found;
  for (std::uint32_t i = 0; i < kStorerReach; ++i) {
    const StorerSlot& slot = storers[(place_of(file) + i) % kStorers];
    const std::uint64_t state = slot.state.load(kSeqCst);
    if (state_of(state) != ChangeState::kInFlight || !is_of(slot, file)) continue;
    const ChangeGate::Storer who{slot.uid.load(kAcquire), slot.gid.load(kAcquire),
                                 slot.pid.load(kAcquire)};
    if (slot.state.load(kAcquire) == state) found.push_back(who);
  }
  return found;
}

std::uint32_t ChangeTable::begin(std::uint32_t m, std::uint64_t mount,
                                 const Change& change) noexcept {
  MountChanges& mine = of[m];
  const std::uint32_t first = own_place();
  useconds_t sleep_us = 1;
  for (std::uint32_t i = 0;; ++i) {
    if (i == kChangeSlots) {
      // More threads than slots: each slot is given back when a system call of some thread ends.
      i = 0;
      ::usleep(sleep_us);
      sleep_us = std::min(2 * sleep_us, kMostSleepUs);
    }
    const std::uint32_t at = (first + i) % kChangeSlots;
    ChangeSlot& slot = mine.slots[at];
    const auto claimed = claim(slot);
    if (!claimed) continue;
    // Stored before the state, all in the one order of seq_cst: who looks for changes must find it.
    for (std::uint32_t used = mine.used.load(kSeqCst); used <= at;) {
      if (mine.used.compare_exchange_weak(used, at + 1, kSeqCst)) break;
    }
    const std::uint64_t bit = std::uint64_t{1} << (m % 64);
    if ((mounts[m / 64].load(kSeqCst) & bit) == 0) mounts[m / 64].fetch_or(bit, kSeqCst);

    slot.mount.store(mount, kRelease);
    slot.dev.store(change.file.dev, kRelease);
    slot.ino.store(change.file.ino, kRelease);
    slot.begin.store(change.range.begin(), kRelease);
    slot.end.store(change.range.end(), kRelease);
    slot.fh.store(change.holder.fh, kRelease);
    slot.started.store(about_now_ns(), kRelease);
    slot.pid.store(change.holder.pid, kRelease);
    slot.uid.store(change.holder.uid, kRelease);
    slot.backing_fd.store(change.holder.backing_fd, kRelease);
    slot.listed.store(change.listed ? 1 : 0, kRelease);
    slot.state.store(with_state(*claimed, ChangeState::kInFlight), kSeqCst);
    fault_point("shm.change_published");
    return at;
  }
}

void ChangeTable::end(std::uint32_t m, std::uint32_t slot) noexcept {
  give_back(of[m].slots[slot % kChangeSlots]);
}

std::optional<std::uint32_t> ChangeTable::begin_transition(std::uint64_t mount, FileId file,
                                                           std::uint32_t uid) noexcept {
  for (std::uint32_t i = 0; i < kTransitions; ++i) {
    Transition& t = transitions[i];
    const auto claimed = claim(t);
    if (!claimed) continue;
    t.mount.store(mount, kRelease);
    t.dev.store(file.dev, kRelease);
    t.ino.store(file.ino, kRelease);
    t.uid.store(uid, kRelease);
    transitions_now.fetch_add(1, kSeqCst);
    t.state.store(with_state(*claimed, ChangeState::kInFlight), kSeqCst);
    fault_point("shm.transition_published");
    bump(file);
    fault_point("shm.transition_begun");
    return i;
  }
  return std::nullopt;
}

// Once for each claim, whoever does it.
void ChangeTable::over(Transition& t, std::uint64_t state) noexcept {
  const FileId file{t.dev.load(kAcquire), t.ino.load(kAcquire)};
  if (!t.state.compare_exchange_strong(state, with_state(state, ChangeState::kEmpty), kSeqCst)) {
    return;
  }
  transitions_now.fetch_sub(1, kSeqCst);
  ended.fetch_add(1, kSeqCst);
  // Last: who looked at the file while it was under way looks again.
  bump(file);
}

void ChangeTable::end_transition(std::uint32_t place) noexcept {
  Transition& t = transitions[place % kTransitions];
  const std::uint64_t state = t.state.load(kAcquire);
  if (state_of(state) == ChangeState::kInFlight) over(t, state);
}

std::optional<std::uint32_t> ChangeTable::transition_on(FileId file) const noexcept {
  if (transitions_now.load(kSeqCst) == 0) return std::nullopt;
  for (const Transition& t : transitions) {
    const std::uint64_t state = t.state.load(kSeqCst);
    if (state_of(state) != ChangeState::kInFlight || !is_of(t, file)) continue;
    const std::uint32_t uid = t.uid.load(kAcquire);
    if (t.state.load(kAcquire) == state) return uid;
  }
  return std::nullopt;
}

std::vector<Change> ChangeTable::wait(FileId file, std::int64_t deadline) {
  std::vector<Change> left;
  for (std::uint32_t w = 0; w < mounts.size(); ++w) {
    for (std::uint64_t bits = mounts[w].load(kSeqCst); bits != 0; bits &= bits - 1) {
      MountChanges& theirs = of[w * 64 + static_cast<std::uint32_t>(__builtin_ctzll(bits))];
      const std::uint32_t used = std::min(theirs.used.load(kSeqCst), kChangeSlots);
      for (std::uint32_t i = 0; i < used; ++i) {
        ChangeSlot& slot = theirs.slots[i];
        const std::uint64_t state = slot.state.load(kSeqCst);
        if (state_of(state) != ChangeState::kInFlight || !is_of(slot, file)) continue;
        // (If the slot has been another's since, the one that was here is over.)
        useconds_t sleep_us = 1;
        for (int spins = 0; slot.state.load(kAcquire) == state; ++spins) {
          if (spins < 100) {
            ::sched_yield();
          } else if (monotonic_ns() < deadline) {
            ::usleep(sleep_us);
            sleep_us = std::min(2 * sleep_us, kMostSleepUs);
          } else {
            const Change change = fields_of(slot);
            if (slot.state.load(kAcquire) == state) left.push_back(change);
            break;
          }
        }
      }
    }
  }
  return left;
}

bool ChangeTable::any_listed() const noexcept {
  for (std::uint32_t w = 0; w < mounts.size(); ++w) {
    for (std::uint64_t bits = mounts[w].load(kSeqCst); bits != 0; bits &= bits - 1) {
      const auto& theirs = of[w * 64 + static_cast<std::uint32_t>(__builtin_ctzll(bits))];
      const std::uint32_t used = std::min(theirs.used.load(kSeqCst), kChangeSlots);
      for (std::uint32_t i = 0; i < used; ++i) {
        const ChangeSlot& slot = theirs.slots[i];
        if (state_of(slot.state.load(kAcquire)) == ChangeState::kInFlight &&
            slot.listed.load(kAcquire) != 0) {
          return true;
        }
      }
    }
  }
  return false;
}

std::optional<std::uint64_t> ChangeTable::list(std::optional<FileId> file, std::uint64_t at,
                                               std::uint32_t room, std::vector<Grant>& out) const {
  constexpr std::uint64_t kAll = std::uint64_t{kOpMounts} * kChangeSlots;
  for (; at < kAll; ++at) {
    const auto m = static_cast<std::uint32_t>(at / kChangeSlots);
    const auto i = static_cast<std::uint32_t>(at % kChangeSlots);
    const bool any = (mounts[m / 64].load(kSeqCst) >> (m % 64) & 1) != 0;
    if (!any || i >= std::min(of[m].used.load(kSeqCst), kChangeSlots)) {
      at += kChangeSlots - i - 1;
      continue;
    }
    const ChangeSlot& slot = of[m].slots[i];
    const std::uint64_t state = slot.state.load(kAcquire);
    if (state_of(state) != ChangeState::kInFlight) continue;
    const Change change = fields_of(slot);
    Grant grant;
    grant.file = change.file;
    grant.owner =
        OwnerId{slot.mount.load(kAcquire), (state >> 2) * kChangeSlots + i, OwnerSpace::kOp};
    grant.range = change.range;
    grant.mode = LockMode::kExclusive;
    grant.kind = LockKind::kWriteOp;
    grant.holder = change.holder;
    grant.acquired_at_ns = slot.started.load(kAcquire);
    if (slot.state.load(kAcquire) != state || !change.listed) continue;
    if (file && *file != grant.file) continue;
    if (room-- == 0) return at;
    out.push_back(grant);
  }
  return std::nullopt;
}

void ChangeTable::forget(std::uint64_t mount) noexcept {
  for (MountChanges& theirs : of) {
    const std::uint32_t used = std::min(theirs.used.load(kSeqCst), kChangeSlots);
    for (std::uint32_t i = 0; i < used; ++i) clear_if_of(theirs.slots[i], mount);
  }
  for (Transition& t : transitions) {
    const std::uint64_t state = t.state.load(kAcquire);
    if (state_of(state) == ChangeState::kInFlight && t.mount.load(kAcquire) == mount) {
      over(t, state);
    }
  }
  for (StorerSlot& slot : storers) clear_if_of(slot, mount);
}

}  // namespace latchfs::shm
