// TableService's backend over the shared region: takes shard mutexes, repairs after the dead, gets
// and gives back memory, counts per user, rings other daemons. What it does about damage is in
// shm_damage.cpp.
//
// Lock order (docs/lock-order.md): Header::grow_mu, then shard mutexes in ascending order. Getting
// memory (a system call) happens with no shard held.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <system_error>
#include <vector>

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

  // Each set once, before any other thread sees the store.
  void registered(std::uint32_t slot, std::uint64_t id) {
    slot_ = slot;
    mount_id_ = id;
  }
  // By the region's name a process that has it mapped is known.
  void mapped_as(const std::string& name) { mapped_name_ = "/" + name; }

  [[nodiscard]] static constexpr std::uint32_t shard_count() { return kShardCount; }
  [[nodiscard]] static std::uint32_t shard_of(FileId id) { return shm::shard_of(id); }
  [[nodiscard]] std::uint64_t mount_id() const { return mount_id_; }
  [[nodiscard]] std::uint32_t slot() const { return slot_; }
  [[nodiscard]] GrantSink& sink() const { return sink_; }
  [[nodiscard]] Region& region() const { return *region_; }
  [[nodiscard]] bool has_ready(std::uint32_t i) const {
    return (region_->header().ready_shards.load(std::memory_order_acquire) >> i & 1) != 0 ||
           __atomic_load_n(&region_->shard(i).root.ready, __ATOMIC_RELAXED) != 0;
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
  void forget_operations(std::uint64_t mount) noexcept {
    region_->operations().forget(mount);
    region_->changes().forget(mount);
    region_->clients().forget(mount);
  }
  std::optional<std::uint64_t> list_changes(std::optional<FileId> file, std::uint64_t at,
                                            std::uint32_t room, std::vector<Grant>& out) const {
    return region_->changes().list(file, at, room, out);
  }

  // uid 0 may take what there is.
  [[nodiscard]] bool user_may_take(std::uint32_t uid);
  // Says so in the log, at most once a second. Not under a mutex.
  void note_user_full(std::uint32_t uid);

  template <class Fn>
  std::error_code locked(std::uint32_t i, lock::Effects& fx, Fn&& fn) {
    return until_done(i, fx, [&](lock::Effects& effects) {
      lock_shard(i, effects);
      const auto ec = run(i, effects, fn);
      unlock_shard(i, effects);
      return ec;
    });
  }

  template <class Fn>
  std::error_code all_locked(std::uint32_t target, lock::Effects& fx, Fn&& fn) {
    return until_done(target, fx, [&](lock::Effects& effects) {
      for (std::uint32_t i = 0; i < kShardCount; ++i) lock_shard(i, effects);
      const auto ec = run(target, effects, [&](Table& table) {
        fn(table, [&](std::uint32_t i) { return View{*this, i, effects}; });
      });
      for (std::uint32_t i = kShardCount; i-- > 0;) unlock_shard(i, effects);
      return ec;
    });
  }

  void outside(const lock::Effects& fx) noexcept;
  void note_verified(const std::string& result);
  Result<TableStats> stats();

  // Wakes the daemon in this slot; those in all.
  void ring(MountSlot& slot) noexcept;
  void ring_all() noexcept;
  // After the dead were reaped: counts all users' records anew.
  void recount_users();
  // Clears the bit of shards without ready waiters left.
  void forget_ready(std::uint32_t i);

  // Gives memory that shards have nothing in back to the system, but for a little of each.
  void shrink();

  // ---- damage (docs/recovery.md) ----
  // "" or what is wrong with the memory of a shard that is locked by the caller's step. most: about
  // how many of its records may be looked at one by one.
  [[nodiscard]] std::string check_store(std::uint32_t i, std::uint64_t most) const;
  // A shard whose records were found wrong is made an empty one, loudly.
  // seen: losses(i) when it was found; if it was emptied since, what was wrong is gone.
  void empty(std::uint32_t i, const std::string& why, std::uint32_t seen);
  // Whether a thread of that number can be inside a step; when it cannot be told, it can.
  [[nodiscard]] bool could_hold(std::uint32_t tid) const noexcept;
  // Makes a header that is damaged, and with it the table, anew.
  void mend_header();
  // How often a shard was emptied. Who waited in it before waits in vain.
  [[nodiscard]] std::uint32_t losses(std::uint32_t i) const {
    return region_->shard(i).losses.load(std::memory_order_acquire);
  }

 private:
  void unlock_shard(std::uint32_t i, lock::Effects& fx) {
    Shard& shard = region_->shard(i);
    if (!fx.ring.empty() && shard.root.ready != 0) fx.ready_shards |= std::uint64_t{1} << i;
    shard.mu.unlock();
  }

  struct DamagedElsewhere {
    std::uint32_t shard;
    const char* what;
  };

  // A table to read another shard through, while all are locked.
  class View {
   public:
    View(ShmBackend& backend, std::uint32_t i, lock::Effects& fx)
        : shard_{i},
          arena_{backend.region(), i},
          table_{arena_, backend.region_->shard(i).root, fx, backend.mount_id_} {}
    void posix_blockers_of(std::uint64_t mount, std::uint64_t key,
                           std::vector<std::pair<std::uint64_t, std::uint64_t>>& out) const {
      try {
        table_.posix_blockers_of(mount, key, out);
      } catch (const lock::Damaged& damaged) {
        throw DamagedElsewhere{shard_, damaged.what};
      }
    }

   private:
    std::uint32_t shard_;
    ShmArena arena_;
    Table table_;
  };

  // step(), again after what it lacked was got or what it stumbled over was mended.
  template <class Step>
  std::error_code until_done(std::uint32_t i, lock::Effects& fx, Step&& step) {
    constexpr int kMostTries = 1000;
    fx.clear();
    for (int tries = 0;; ++tries) {
      fx.now = realtime_ns();
      fx.mono = monotonic_ns();
      const std::error_code ec = step(fx);
      if (ec != kWantCells && ec != kEmptied) return ec;
      if (tries > kMostTries) return errno_code(ENOLCK);
      if (ec == kEmptied) continue;
      if (fx.no_growth) return errno_code(ENOLCK);
      if (!grow(i, fx)) fx.no_growth = true;
    }
  }

  // Runs fn as one step on a locked shard's table.
  template <class Fn>
  std::error_code run(std::uint32_t i, lock::Effects& fx, Fn&& fn) {
    return run_bare(i, fx, [&](Arena& arena) {
      Table table{arena, region_->shard(i).root, fx, mount_id_};
      if (table.recovery_due()) table.recover();  // ran out of cells half-way before
      fn(table);
    });
  }

  // The same on its memory alone. kWantCells: some must be got first; kEmptied: what was found was
  // damaged, and is gone now.
  template <class Fn>
  std::error_code run_bare(std::uint32_t i, lock::Effects& fx, Fn&& fn) {
    ShmArena arena{*region_, i};
    std::error_code ec;
    const char* damaged = nullptr;
    std::uint32_t where = i;
    try {
      fn(arena);
      arena.commit();
      fx.mark();
      return {};
    } catch (const lock::NeedCells&) {
      ec = kWantCells;
    } catch (const LogFull&) {
      ec = log_full(i);
    } catch (const std::bad_alloc&) {
      ec = errno_code(ENOMEM);
    } catch (const lock::Damaged& found) {
      damaged = found.what;
      ec = kEmptied;
    } catch (const DamagedElsewhere& found) {
      damaged = found.what;
      where = found.shard;
      ec = kEmptied;
    }
    const bool undone = arena.rollback();
    if (damaged != nullptr) empty_locked(where, damaged, fx);
    if (!undone && (damaged == nullptr || where != i)) {
      empty_locked(i, "its log makes no sense", fx);
    }
    fx.back_to_mark();
    return ec;
  }

  // Waits for it. What is no mutex any more, or held by nobody that could hold it, is mended.
  // damaged: set if it was no mutex.
  RobustMutex::Locked lock(RobustMutex& mu, bool& damaged);
  // Repairs the shard if its last holder died in it, or it was damaged.
  void lock_shard(std::uint32_t i, lock::Effects& fx);
  void empty_locked(std::uint32_t i, const char* why, lock::Effects& fx) noexcept;
  void forget_all(std::uint32_t i) noexcept;
  void tell_of_loss() noexcept;
  // outside(), and this mount's waiters that are over: repairing a shard may have granted some.
  void tell(const lock::Effects& fx) noexcept;
  std::error_code log_full(std::uint32_t i);
  // One more chunk. False (logged): there is no more memory.
  bool grow(std::uint32_t i, lock::Effects& fx);
  void lock_space(lock::Effects& fx);
  // With grow_mu:
  Result<void> add_chunk(std::uint32_t i, lock::Effects& fx);
  [[nodiscard]] Chunk next_chunk();
  // Takes from each shard what it has nothing in, but for `keep` chunks. How many it got.
  std::uint64_t take_empty_chunks(std::uint32_t keep, lock::Effects& fx);
  UserSlot* user_slot(std::uint32_t uid, bool create);

  // Only passed between run() and until_done().
  static const std::error_code kWantCells, kEmptied;

  std::unique_ptr<Region> region_;
  std::string table_;
  GrantSink& sink_;
  std::uint64_t max_per_user_;
  std::uint32_t slot_{};
  std::uint64_t mount_id_{};
  std::string mapped_name_;  // of the region, as /proc/PID/maps shows it; "" not known
  Seldom complaint_{1'000'000'000};
  Seldom recount_{60'000'000'000};
  Mutex verify_mu_;
  std::string last_verify_ GUARDED_BY(verify_mu_);
};

}  // namespace latchfs::shm
