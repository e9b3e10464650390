// TableService's backend over the shared region: takes shard mutexes, repairs after the dead, gets
// memory, counts per user, rings other daemons.
//
// Lock order (docs/lock-order.md): Header::grow_mu, then shard mutexes in ascending order. Getting
// memory (a system call) happens with no shard held.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <system_error>

#include "base/clock.h"
#include "base/fault_point.h"
#include "base/mutex.h"
#include "base/seldom.h"
#include "latchfs/lock_service.h"
#include "lock/table.h"
#include "store/shm/region.h"
#include "store/shm/shm_arena.h"

namespace latchfs::shm {

class ShmBackend {
 public:
  using Arena = ShmArena;
  using Table = lock::LockTable<ShmArena>;

  ShmBackend(std::unique_ptr<Region> region, std::string table, GrantSink& sink,
             std::uint64_t max_per_user)
      : region_{std::move(region)},
        table_{std::move(table)},
        sink_{sink},
        max_per_user_{max_per_user} {}

  // Set once, before any other thread sees the store.
  void registered(std::uint32_t slot, std::uint64_t id) {
    slot_ = slot;
    mount_id_ = id;
  }

  [[nodiscard]] static constexpr std::uint32_t shard_count() { return kShardCount; }
  [[nodiscard]] static std::uint32_t shard_of(FileId id) { return shm::shard_of(id); }
  [[nodiscard]] std::uint64_t mount_id() const { return mount_id_; }
  [[nodiscard]] std::uint32_t slot() const { return slot_; }
  [[nodiscard]] GrantSink& sink() const { return sink_; }
  [[nodiscard]] Region& region() const { return *region_; }
  [[nodiscard]] bool has_ready(std::uint32_t i) const {
    return (region_->header().ready_shards.load(std::memory_order_acquire) >> i & 1) != 0;
  }
  [[nodiscard]] std::uint32_t range_waiters(std::uint32_t i) const {
    return region_->shard(i).root.range_waiters;
  }

  // False: somebody may have, or wait for, something on the file. A few nanoseconds.
  [[nodiscard]] bool nothing_on(FileId id) const noexcept {
    return region_->shard(shard_of(id)).filter.nothing_in(FileFilter::cell_of(id));
  }
  // TableService's: op_slots.h.
  bool begin_outside(const LockService::OpRequest& op) noexcept;
  bool end_outside(OwnerId op) noexcept;
  void forget_operations(std::uint64_t mount) noexcept { region_->operations().forget(mount); }

  // uid 0 may take what there is.
  [[nodiscard]] bool user_may_take(std::uint32_t uid);
  // Says so in the log, at most once a second. Not under a mutex.
  void note_user_full(std::uint32_t uid);

  template <class Fn>
  std::error_code locked(std::uint32_t i, lock::Effects& fx, Fn&& fn) {
    return with_growth(i, fx, [&](lock::Effects& effects) {
      if (const auto ec = lock_shard(i, effects)) return ec;
      const auto ec = run(i, effects, [&](Table& table) { fn(table); });
      unlock_shard(i, effects);
      return ec;
    });
  }

  template <class Fn>
  std::error_code all_locked(std::uint32_t target, lock::Effects& fx, Fn&& fn) {
    return with_growth(target, fx, [&](lock::Effects& effects) {
      std::error_code ec;
      std::uint32_t held = 0;
      for (; held < kShardCount && !ec; ++held) ec = lock_shard(held, effects);
      if (ec) --held;  // the one that could not be had
      if (!ec) {
        ec = run(target, effects, [&](Table& table) {
          fn(table, [&](std::uint32_t i) { return View{*this, i, effects}; });
        });
      }
      while (held-- > 0) unlock_shard(held, effects);
      return ec;
    });
  }

  void outside(const lock::Effects& fx) noexcept;
  void note_verified(const std::string& result);
  Result<TableStats> stats();

  // Wakes the daemon in this slot.
  void ring(MountSlot& slot) noexcept;
  // After the dead were reaped: counts all users' records anew.
  void recount_users();
  // Clears the bit of shards without ready waiters left.
  void forget_ready(std::uint32_t i);

 private:
  void unlock_shard(std::uint32_t i, lock::Effects& fx) {
    Shard& shard = region_->shard(i);
    if (!fx.ring.empty() && shard.root.ready != 0) fx.ready_shards |= std::uint64_t{1} << i;
    shard.mu.unlock();
  }

  // A table to read another shard through, while all are locked.
  class View {
   public:
    View(ShmBackend& backend, std::uint32_t i, lock::Effects& fx)
        : arena_{backend.region_->base(), backend.region_->bytes(), backend.region_->shard(i)},
          table_{arena_, backend.region_->shard(i).root, fx, backend.mount_id_} {}
    void posix_blockers_of(std::uint64_t mount, std::uint64_t key,
                           std::vector<std::pair<std::uint64_t, std::uint64_t>>& out) const {
      table_.posix_blockers_of(mount, key, out);
    }

   private:
    ShmArena arena_;
    Table table_;
  };

  enum class Cells : std::uint8_t { kEnough, kWanted };
  struct WantCells {};

  template <class Step>
  std::error_code with_growth(std::uint32_t i, lock::Effects& fx, Step&& step) {
    fx.clear();
    for (int tries = 0;; ++tries) {
      fx.now = realtime_ns();
      fx.mono = monotonic_ns();
      std::error_code ec = step(fx);
      if (ec != kWantCells) return ec;
      if (fx.no_growth || tries > 1000) return errno_code(ENOLCK);
      if (!grow(i, fx)) fx.no_growth = true;
    }
  }

  // Runs fn as one step on a locked shard; kWantCells if memory must be got first.
  template <class Fn>
  std::error_code run(std::uint32_t i, lock::Effects& fx, Fn&& fn) {
    Shard& shard = region_->shard(i);
    ShmArena arena{region_->base(), region_->bytes(), shard};
    Table table{arena, shard.root, fx, mount_id_};
    try {
      if (table.recovery_due()) table.recover();  // ran out of cells half-way before
      fn(table);
      arena.commit();
      fx.mark();
      return {};
    } catch (const lock::NeedCells&) {
      arena.rollback();
      fx.back_to_mark();
      return kWantCells;
    } catch (const LogFull&) {
      arena.rollback();
      fx.back_to_mark();
      return log_full(i);
    } catch (const std::bad_alloc&) {
      arena.rollback();
      fx.back_to_mark();
      return errno_code(ENOMEM);
    }
  }

  // Repairs the shard if its last holder died in it.
  std::error_code lock_shard(std::uint32_t i, lock::Effects& fx);
  std::error_code log_full(std::uint32_t i);
  // A chunk of each cell size that is short. False (logged): there is no more memory.
  bool grow(std::uint32_t i, lock::Effects& fx);
  // With grow_mu. Whether the shard has enough of both sizes then.
  Result<bool> add_chunk(std::uint32_t i, bool small, lock::Effects& fx);
  void mend_frontier(lock::Effects& fx);
  UserSlot* user_slot(std::uint32_t uid, bool create);

  static const std::error_code kWantCells;

  std::unique_ptr<Region> region_;
  std::string table_;
  GrantSink& sink_;
  std::uint64_t max_per_user_;
  std::uint32_t slot_{};
  std::uint64_t mount_id_{};
  Seldom complaint_{1'000'000'000};
  Mutex verify_mu_;
  std::string last_verify_ GUARDED_BY(verify_mu_);
};

}  // namespace latchfs::shm
