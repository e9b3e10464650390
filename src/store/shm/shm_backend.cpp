#include "store/shm/shm_backend.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <cstring>
#include <map>

#include "base/log.h"
#include "store/shm/doorbell.h"

namespace latchfs::shm {
namespace {

// (Its end may have been written over.)
std::string text_of(const std::array<char, 256>& field) {
  return {field.data(), ::strnlen(field.data(), field.size())};
}

}  // namespace

const std::error_code ShmBackend::kWantCells = errno_code(EXFULL);
const std::error_code ShmBackend::kEmptied = errno_code(ERESTART);

void ShmBackend::lock_shard(std::uint32_t i, lock::Effects& fx) {
  Shard& shard = region_->shard(i);
  bool damaged = false;
  const auto how = lock(shard.mu, damaged);
  if (how == RobustMutex::Locked::kOwnerDied) {
    fx.repaired |= std::uint64_t{1} << i;
    if (!ShmArena{*region_, i}.rollback()) damaged = true;
    if (damaged) shard.emptying = 1;
    fault_point("shm.recovered");
    // Only now: a death in here finds the mutex still inconsistent.
    shard.mu.mark_consistent();
  } else if (shard.log_count != 0) {
    damaged = true;
  }
  if (damaged || shard.emptying != 0) {
    empty_locked(i, damaged ? "its mutex or log makes no sense" : "it was being emptied", fx);
  }
  if (how != RobustMutex::Locked::kOwnerDied) return;
  // What the dead one had announced is completed by run() of this very call, or, if this is not the
  // call's target, here; without cells it stays announced for the next one.
  ShmArena arena{*region_, i};
  Table table{arena, shard.root, fx, mount_id_};
  try {
    table.recover();
  } catch (const lock::Damaged& what) {
    arena.rollback();
    fx.back_to_mark();
    empty_locked(i, what.what, fx);
  } catch (...) {
    // No cells, or no memory of our own.
    arena.rollback();
    fx.back_to_mark();
  }
}

std::error_code ShmBackend::log_full(std::uint32_t i) {
  log::error("shard {} of table {}: a step was too large for the undo log and was undone", i,
             table_);
  return errno_code(ENOLCK);
}

// A dead holder may have died giving a shard a chunk, or taking one: the log of that shard has the
// old values of both sides. Whoever locks it undoes it; so all are locked once.
void ShmBackend::lock_space(lock::Effects& fx) {
  RobustMutex& mu = region_->header().grow_mu;
  bool damaged = false;
  if (lock(mu, damaged) != RobustMutex::Locked::kOwnerDied) return;
  for (std::uint32_t i = 0; i < kShardCount; ++i) {
    lock_shard(i, fx);
    unlock_shard(i, fx);
  }
  mu.mark_consistent();
}

bool ShmBackend::grow(std::uint32_t i, lock::Effects& fx) {
  lock_space(fx);
  Result<void> grown = add_chunk(i, fx);
  if (!grown && take_empty_chunks(0, fx) != 0) grown = add_chunk(i, fx);
  region_->header().grow_mu.unlock();
  if (!grown && complaint_.due()) {
    log::error("table {} cannot grow beyond {} bytes ({}): ENOLCK", table_,
               std::uint64_t{region_->chunk_limit()} * kChunkBytes, grown.error().message());
  }
  return grown.ok();
}

Chunk ShmBackend::next_chunk() {
  Space& space = region_->header().space;
  const Chunk first = first_chunk(region_->bytes());
  const Chunk limit = region_->chunk_limit();
  const Chunk given_back = space.given_back;
  if (given_back == 0) return limit;
  if (given_back >= first && given_back < limit && region_->chunks()[given_back].owner == 0) {
    return given_back;
  }
  log::error("table {}: its list of unused memory is damaged and is given up", table_);
  space.given_back = 0;
  space.given_back_count = 0;
  return limit;
}

Result<void> ShmBackend::add_chunk(std::uint32_t i, lock::Effects& fx) {
  if (!region_->intact()) return errno_code(EIO);  // until somebody mends it
  const std::uint32_t before = losses(i);
  const Chunk chunk = next_chunk();
  if (const auto r = region_->commit_chunk(chunk); !r) return r;
  lock_shard(i, fx);
  if (losses(i) != before) {  // with it the chunk's memory may have gone: mend_header()
    unlock_shard(i, fx);
    return {};
  }
  const auto ec = run_bare(i, fx, [chunk](Arena& arena) { arena.gain(chunk); });
  unlock_shard(i, fx);
  fault_point("shm.grow");
  return ec == kEmptied ? std::error_code{} : ec;
}

std::uint64_t ShmBackend::take_empty_chunks(std::uint32_t keep, lock::Effects& fx) {
  constexpr std::size_t kAtOnce = 64;  // few enough for the log, and for those who wait
  std::uint64_t taken = 0;
  std::vector<Chunk> chunks;
  chunks.reserve(kAtOnce);
  for (std::uint32_t i = 0; i < kShardCount; ++i) {
    const Shard& shard = region_->shard(i);
    do {
      chunks.clear();
      if (__atomic_load_n(&shard.empty_count, __ATOMIC_RELAXED) <= keep && keep != 0) break;
      lock_shard(i, fx);
      const auto ec = run_bare(i, fx, [&](Arena& arena) {
        chunks.clear();
        if (keep == 0) arena.close_last();
        while (chunks.size() < kAtOnce && shard.empty_count > keep) {
          const Chunk chunk = arena.lose();
          if (chunk == 0) break;
          chunks.push_back(chunk);
        }
      });
      unlock_shard(i, fx);
      if (ec) break;
      fault_point("shm.shrink");
      for (const Chunk chunk : chunks) region_->drop_chunk(chunk);
      taken += chunks.size();
    } while (chunks.size() == kAtOnce);
  }
  return taken;
}

void ShmBackend::shrink() {
  // What the next burst of a shard is likely to want again; and less than one looks for.
  constexpr std::uint32_t kKeep = 4;
  bool any = false;
  for (std::uint32_t i = 0; i < kShardCount && !any; ++i) {
    any = __atomic_load_n(&region_->shard(i).empty_count, __ATOMIC_RELAXED) > kKeep;
  }
  if (!any) return;
  lock::Effects fx;
  lock_space(fx);
  take_empty_chunks(kKeep, fx);
  region_->header().grow_mu.unlock();
  tell(fx);
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
  // (A count that was written over would lock him out for good.)
  if (recount_.due()) recount_users();
  if (complaint_.due()) {
    log::warn("uid {} has {} locks, as many as max_locks_per_user allows: ENOLCK", uid,
              max_per_user_);
  }
}

void ShmBackend::tell(const lock::Effects& fx) noexcept {
  outside(fx);
  fx.tell(sink_);
}

void ShmBackend::outside(const lock::Effects& fx) noexcept {
  Header& h = region_->header();
  for (std::uint32_t i = 0; i < kShardCount; ++i) {
    if ((fx.repaired >> i & 1) == 0) continue;
    log::warn("shard {} of table {}: its holder died; what it had begun is undone", i, table_);
  }
  if (fx.lost) tell_of_loss();
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
  (void)locked(i, fx, [&](Table&) {
    if (region_->shard(i).root.ready == 0) {
      region_->header().ready_shards.fetch_and(~(std::uint64_t{1} << i));
    }
  });
  tell(fx);
}

void ShmBackend::ring_all() noexcept {
  for (MountSlot& slot : region_->header().mounts) {
    if (slot.id.load(std::memory_order_acquire) != 0) ring(slot);
  }
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
  out.format = h.identity.format;
  out.bytes_max = region_->bytes();
  out.changed_at_ns = h.changed_at.load(std::memory_order_relaxed);
  out.bytes_committed = cells_at(region_->bytes());
  // What begins outside of the table stamps nothing; a listing will take it in.
  if (region_->operations().any_outside() || region_->changes().any_listed()) {
    out.changed_at_ns = std::max(out.changed_at_ns, realtime_ns());
  }
  for (std::uint32_t i = 0; i < kShardCount; ++i) {
    lock::Effects fx;
    const auto ec = locked(i, fx, [&](Table&) {
      const Shard& shard = region_->shard(i);
      out.files += shard.root.file_count;
      out.grants += shard.root.grant_count;
      out.owners += shard.root.owner_count;
      out.waiters += shard.root.waiter_count;
      out.bytes_committed += shard.chunks * kChunkBytes;
      out.bytes_used += (shard.chunks - shard.empty_count) * kChunkBytes -
                        shard.small.room * kCellBytes - shard.large.room * 2 * kCellBytes;
    });
    tell(fx);
    if (ec) return ec;
  }
  for (const MountSlot& slot : h.mounts) {
    const std::uint64_t id = slot.id.load(std::memory_order_acquire);
    if (id == 0) continue;
    MountInfo info;
    info.id = id;
    info.pid = slot.pid;
    info.started_at_ns = slot.started_at;
    info.source = text_of(slot.source);
    info.mountpoint = text_of(slot.mountpoint);
    info.self = id == mount_id_;
    out.mounts.push_back(std::move(info));
  }
  const MutexLock hold{verify_mu_};
  out.last_verify = last_verify_;
  return out;
}

// A death between a commit and its count leaves the counts off by that step. Shards are walked one
// after the other: what changes meanwhile is off until the next time.
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
      tell(fx);
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
      tell(fx);
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
