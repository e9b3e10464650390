#include "store/shm/shm_backend.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <map>

#include "base/log.h"
#include "store/shm/doorbell.h"

namespace latchfs::shm {

// Only passed between run() and with_growth().
const std::error_code ShmBackend::kWantCells = errno_code(EXFULL);

std::error_code ShmBackend::lock_shard(std::uint32_t i, lock::Effects& fx) {
  Shard& shard = region_->shard(i);
  const auto how = shard.mu.lock();
  if (how == RobustMutex::Locked::kBroken) return errno_code(EIO);
  if (how == RobustMutex::Locked::kOwnerDied) {
    log::warn("shard {} of table {}: its holder died; undoing {} stores", i, table_,
              shard.log_count);
    ShmArena arena{region_->base(), region_->bytes(), shard};
    if (!arena.rollback()) shard.broken = 1;
    fault_point("shm.recovered");
    // Only now: a death in here finds the mutex still inconsistent.
    shard.mu.mark_consistent();
    // What the dead one had announced is completed by run() of this very call, or, if this is not
    // the call's target, here; without cells it stays announced for the next one.
    if (shard.broken == 0) {
      Table table{arena, shard.root, fx, mount_id_};
      try {
        table.recover();
      } catch (...) {
        // No cells, or no memory of our own.
        arena.rollback();
        fx.back_to_mark();
      }
    }
  }
  if (shard.broken != 0) {
    shard.mu.unlock();
    return errno_code(EIO);
  }
  return {};
}

std::error_code ShmBackend::log_full(std::uint32_t i) {
  log::error("shard {} of table {}: a step was too large for the undo log and was undone", i,
             table_);
  return errno_code(ENOLCK);
}

bool ShmBackend::grow(std::uint32_t i, lock::Effects& fx) {
  Header& h = region_->header();
  const auto how = h.grow_mu.lock();
  if (how == RobustMutex::Locked::kBroken) {
    if (complaint_.due()) log::error("table {} cannot grow: its mutex is broken", table_);
    return false;
  }
  if (how == RobustMutex::Locked::kOwnerDied) {
    mend_frontier(fx);
    h.grow_mu.mark_consistent();
  }
  Result<bool> enough = false;
  for (const bool small : {true, false}) {
    enough = add_chunk(i, small, fx);
    if (!enough.ok() || *enough) break;
  }
  h.grow_mu.unlock();
  if (!enough.ok() && complaint_.due()) {
    log::error("table {} cannot grow beyond {} bytes ({}): ENOLCK", table_, h.frontier.load(),
               enough.error().message());
  }
  return enough.ok();
}

Result<bool> ShmBackend::add_chunk(std::uint32_t i, bool small, lock::Effects& fx) {
  const auto chunk = region_->commit_chunk();
  if (!chunk) return chunk.error();
  if (const auto ec = lock_shard(i, fx)) return ec;
  Shard& shard = region_->shard(i);
  ShmArena arena{region_->base(), region_->bytes(), shard};
  if (small && shard.small.count < 64) {
    arena.add_chunk<lock::GrantRec>(*chunk);
  } else {
    arena.add_chunk<lock::OwnerRec>(*chunk);
  }
  arena.commit();
  const bool enough = shard.small.count >= 64 && shard.large.count >= 64;
  unlock_shard(i, fx);
  // The shard's from the commit on; a death before this store is mended by the next one to grow.
  fault_point("shm.grow");
  region_->header().frontier.store(*chunk + kChunkBytes);
  return enough;
}

// A dead holder of grow_mu may have given a shard a chunk and not moved the frontier: the next one
// would give it to another shard too. Repairing the shards tells which chunks are theirs.
void ShmBackend::mend_frontier(lock::Effects& fx) {
  std::uint64_t end = kCellsAt;
  for (std::uint32_t i = 0; i < kShardCount; ++i) {
    const bool locked = !lock_shard(i, fx);
    const std::uint64_t cells = region_->shard(i).cells;
    // A damaged shard's too, if it can be: at worst some memory is lost.
    if (cells % kChunkBytes == 0 && cells <= region_->bytes() - end) end += cells;
    if (locked) unlock_shard(i, fx);
  }
  auto& frontier = region_->header().frontier;
  frontier.store(std::max(frontier.load(), end));
}

UserSlot* ShmBackend::user_slot(std::uint32_t uid, bool create) {
  Header& h = region_->header();
  const std::uint64_t mine = std::uint64_t{uid} + 1;
  UserSlot* idle = nullptr;
  for (std::uint32_t i = 0; i < kMaxUsers; ++i) {
    UserSlot& slot = h.users[(uid * 2654435761U + i) % kMaxUsers];
    std::uint64_t is = slot.uid_plus_one.load(std::memory_order_acquire);
    if (is == mine) return &slot;
    if (is != 0) {
      if (idle == nullptr && slot.count.load(std::memory_order_relaxed) == 0) idle = &slot;
      continue;
    }
    if (!create) return nullptr;
    if (slot.uid_plus_one.compare_exchange_strong(is, mine) || is == mine) return &slot;
  }
  // Full of users that once held locks: one who holds none gives way.
  if (create && idle != nullptr) {
    std::uint64_t was = idle->uid_plus_one.load(std::memory_order_acquire);
    if (idle->count.load() == 0 && idle->uid_plus_one.compare_exchange_strong(was, mine)) {
      return idle;
    }
  }
  return nullptr;  // 4096 users hold locks: the others are not limited
}

bool ShmBackend::user_may_take(std::uint32_t uid) {
  if (uid == 0 || max_per_user_ == 0) return true;
  const UserSlot* slot = user_slot(uid, false);
  if (slot == nullptr) return true;
  return slot->count.load(std::memory_order_relaxed) < static_cast<std::int64_t>(max_per_user_);
}

void ShmBackend::note_user_full(std::uint32_t uid) {
  if (complaint_.due()) {
    log::warn("uid {} has {} locks, as many as max_locks_per_user allows: ENOLCK", uid,
              max_per_user_);
  }
}

void ShmBackend::outside(const lock::Effects& fx) noexcept {
  Header& h = region_->header();
  for (const auto& [uid, delta] : fx.uid_delta) {
    if (delta == 0) continue;
    if (UserSlot* slot = user_slot(uid, true)) slot->count.fetch_add(delta);
  }
  if (fx.changed) {
    // Never backwards: two steps of one nanosecond, or a clock set back, must still show.
    std::int64_t was = h.changed_at.load(std::memory_order_relaxed);
    const std::int64_t now = std::max(fx.now, was + 1);
    h.changed_at.compare_exchange_strong(was, now, std::memory_order_relaxed);
  }
  if (fx.ring.empty()) return;
  // Found by whoever reaps this process if it dies before ringing: the reaper rings all.
  h.ready_shards.fetch_or(fx.ready_shards);
  for (const std::uint64_t id : fx.ring) {
    for (MountSlot& slot : h.mounts) {
      if (slot.id.load(std::memory_order_acquire) == id) ring(slot);
    }
  }
}

void ShmBackend::forget_ready(std::uint32_t i) {
  lock::Effects fx;
  if (lock_shard(i, fx)) return;
  if (region_->shard(i).root.ready == 0) {
    region_->header().ready_shards.fetch_and(~(std::uint64_t{1} << i));
  }
  region_->shard(i).mu.unlock();
}

void ShmBackend::ring(MountSlot& slot) noexcept { ring_doorbell(slot.doorbell); }

void ShmBackend::note_verified(const std::string& result) {
  const MutexLock hold{verify_mu_};
  last_verify_ = result;
}

Result<TableStats> ShmBackend::stats() {
  const Header& h = region_->header();
  TableStats out;
  out.table = table_;
  out.format = h.format;
  out.bytes_max = h.region_bytes;
  out.bytes_committed = h.frontier.load();
  out.changed_at_ns = h.changed_at.load(std::memory_order_relaxed);
  // What begins outside of the table stamps nothing; a listing will take it in.
  if (region_->operations().any_outside()) {
    out.changed_at_ns = std::max(out.changed_at_ns, realtime_ns());
  }
  std::uint64_t free_bytes = 0;
  std::uint64_t cells = 0;
  for (std::uint32_t i = 0; i < kShardCount; ++i) {
    lock::Effects fx;
    if (const auto ec = lock_shard(i, fx)) return ec;
    const Shard& shard = region_->shard(i);
    out.files += shard.root.file_count;
    out.grants += shard.root.grant_count;
    out.owners += shard.root.owner_count;
    out.waiters += shard.root.waiter_count;
    cells += shard.cells;
    free_bytes += shard.small.count * kCellBytes + shard.large.count * 2 * kCellBytes;
    region_->shard(i).mu.unlock();
  }
  out.bytes_used = cells - free_bytes;
  for (const MountSlot& slot : h.mounts) {
    const std::uint64_t id = slot.id.load(std::memory_order_acquire);
    if (id == 0) continue;
    MountInfo info;
    info.id = id;
    info.pid = slot.pid;
    info.started_at_ns = slot.started_at;
    info.source = slot.source.data();
    info.mountpoint = slot.mountpoint.data();
    info.self = id == mount_id_;
    out.mounts.push_back(std::move(info));
  }
  const MutexLock hold{verify_mu_};
  out.last_verify = last_verify_;
  return out;
}

// A death between a commit and its count leaves the counts off by that step. All shards are held,
// so nobody else's commit is without its count... except in the few instructions of outside():
// those counts are relative and come right by themselves.
void ShmBackend::recount_users() {
  std::map<std::uint32_t, std::int64_t> truth;
  for (std::uint32_t i = 0; i < kShardCount; ++i) {
    ListCursor at;
    for (bool more = true; more;) {
      std::vector<Grant> grants;
      lock::Effects fx;
      if (locked(i, fx, [&](Table& table) {
            grants.clear();
            more = table.list(std::nullopt, at, 256, grants);
          })) {
        return;
      }
      outside(fx);
      for (const Grant& g : grants) ++truth[g.holder.uid];
    }
    at = ListCursor{};
    for (bool more = true; more;) {
      std::vector<Waiter> waiters;
      lock::Effects fx;
      if (locked(i, fx, [&](Table& table) {
            waiters.clear();
            more = table.list_waiters(std::nullopt, at, 256, waiters);
          })) {
        return;
      }
      outside(fx);
      for (const Waiter& w : waiters) ++truth[w.request.holder.uid];
    }
  }
  for (UserSlot& slot : region_->header().users) {
    const std::uint64_t is = slot.uid_plus_one.load();
    if (is == 0) continue;
    const auto it = truth.find(static_cast<std::uint32_t>(is - 1));
    slot.count.store(it == truth.end() ? 0 : it->second);
  }
}

}  // namespace latchfs::shm
