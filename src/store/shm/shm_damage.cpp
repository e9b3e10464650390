// What becomes of a table that something has written into that must not: docs/recovery.md, "A
// damaged table".
#include <linux/futex.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <exception>
#include <fstream>
#include <string>

#include "base/log.h"
#include "store/shm/shm_backend.h"

namespace latchfs::shm {

namespace {

// Of this pid namespace; else its numbers say nothing.
bool proc_is_ours() {
  std::array<char, 32> self{};
  const ssize_t n = ::readlink("/proc/self", self.data(), self.size() - 1);
  return n > 0 && std::string{self.data()} == std::to_string(::getpid());
}

// The process of a thread; 0: it cannot be told.
std::uint32_t process_of(std::uint32_t tid) {
  std::ifstream in{"/proc/" + std::to_string(tid) + "/status"};
  std::uint32_t pid = 0;
  for (std::string word; in >> word;) {
    if (word == "Tgid:" && in >> pid) break;
  }
  return pid;
}

}  // namespace

// Whether a thread of that number can be inside: only who has the table mapped can. When in doubt
// it can: to take a mutex from its holder would be worse than to wait.
bool ShmBackend::could_hold(std::uint32_t tid) const noexcept try {
  if (tid == 0) return false;
  const Header& h = region_->header();
  if (mapped_name_.empty() || h.several_pid_namespaces.load() != 0 || !proc_is_ours()) return true;
  // (A thread's number too. It needs neither descriptors nor rights.)
  if (::kill(static_cast<pid_t>(tid), 0) != 0 && errno == ESRCH) return false;
  const std::uint32_t pid = process_of(tid);
  if (pid == 0) return true;
  for (const MountSlot& slot : h.mounts) {
    if (slot.id.load() != 0 && slot.pid == pid) return true;
  }
  // One that joins, or has left.
  std::ifstream maps{"/proc/" + std::to_string(pid) + "/maps"};
  for (std::string line; std::getline(maps, line);) {
    if (line.find(mapped_name_) != std::string::npos) return true;
  }
  return !maps.eof();  // not to be read
} catch (...) {
  return true;
}

RobustMutex::Locked ShmBackend::lock(RobustMutex& mu, bool& damaged) {
  for (;;) {
    const auto how = mu.lock();
    switch (how) {
      case RobustMutex::Locked::kClean:
      case RobustMutex::Locked::kOwnerDied:
        return how;
      case RobustMutex::Locked::kBroken:
        damaged = true;
        log::error("table {}: a mutex was overwritten", table_);
        mu.repair();
        break;
      case RobustMutex::Locked::kStuck: {
        const std::uint32_t word = mu.word();
        const std::uint32_t tid = word & FUTEX_TID_MASK;
        if (word == 0 || (word & FUTEX_OWNER_DIED) != 0) break;
        if (could_hold(tid)) {
          if (complaint_.due())
            log::warn("table {}: thread {} holds a mutex for long", table_, tid);
          break;
        }
        log::error("table {}: a mutex is held by thread {}, which cannot have it", table_, tid);
        mu.bury(word);
        break;
      }
    }
  }
}

void ShmBackend::empty_locked(std::uint32_t i, const char* why, lock::Effects& fx) noexcept {
  log::error(
      "shard {} of table {} is damaged ({}): it is emptied. All locks on files in it are lost, and "
      "whoever waits for one gets EIO",
      i, table_, why);
  forget_all(i);
  fx.lost = true;
}

// Its chunks are found by their records; what these say of others is not touched. A death in here
// leaves `emptying`, and the next one begins again.
void ShmBackend::forget_all(std::uint32_t i) noexcept {
  Shard& shard = region_->shard(i);
  shard.emptying = 1;
  std::atomic_signal_fence(std::memory_order_seq_cst);
  shard.log_count = 0;
  shard.filter.begin_anew();
  // (Some of it is read without the mutex.)
  auto* words = reinterpret_cast<std::uint32_t*>(&shard.root);
  for (std::size_t w = 0; w < sizeof shard.root / sizeof *words; ++w) {
    __atomic_store_n(&words[w], 0U, __ATOMIC_RELAXED);
  }
  ShmArena{*region_, i}.gather_chunks();
  shard.filter.settle_all();
  shard.losses.fetch_add(1);
  std::atomic_signal_fence(std::memory_order_seq_cst);
  shard.emptying = 0;
}

void ShmBackend::empty(std::uint32_t i, const std::string& why, std::uint32_t seen) {
  lock::Effects fx;
  lock_shard(i, fx);
  if (losses(i) == seen) empty_locked(i, why.c_str(), fx);
  unlock_shard(i, fx);
  tell(fx);
}

// Nothing is locked here. The other daemons look once a second in any case.
void ShmBackend::tell_of_loss() noexcept {
  ring_all();
  try {
    recount_users();
  } catch (const std::exception& e) {
    log::error("table {}: the locks of each user could not be counted: {}", table_, e.what());
  }
}

std::string ShmBackend::check_store(std::uint32_t i, std::uint64_t most) const {
  try {
    return ShmArena{*region_, i}.check_slabs(
        static_cast<std::uint32_t>(std::min<std::uint64_t>(most / kChunkCells, UINT32_MAX)));
  } catch (const lock::Damaged& damaged) {
    return damaged.what;
  }
}

// Without grow_mu: no chunk is given or taken but with a shard's mutex, and who holds grow_mu finds
// the shard's count of losses changed. (65 mutexes at once are more than TSan can follow.)
void ShmBackend::mend_header() {
  if (region_->intact()) return;
  bool ignored = false;
  std::array<RobustMutex::Locked, kShardCount> found{};
  for (std::uint32_t i = 0; i < kShardCount; ++i) found[i] = lock(region_->shard(i).mu, ignored);
  const bool damaged = !region_->intact();
  if (damaged) {
    // Whatever becomes of this thread from here on, each shard is emptied by whoever locks it next.
    for (std::uint32_t i = 0; i < kShardCount; ++i) {
      region_->shard(i).emptying = 1;
      std::atomic_signal_fence(std::memory_order_seq_cst);
      region_->shard(i).log_count = 0;
    }
    region_->renew();
  }
  for (std::uint32_t i = kShardCount; i-- > 0;) {
    Shard& shard = region_->shard(i);
    if (damaged) forget_all(i);
    // (Not damaged: who locks it next repairs what a dead holder left.)
    if (found[i] == RobustMutex::Locked::kOwnerDied) {
      if (!damaged && !ShmArena{*region_, i}.rollback()) shard.emptying = 1;
      shard.mu.mark_consistent();
    }
    shard.mu.unlock();
  }
  if (!damaged) return;
  log::error(
      "the header of table {} was damaged: the table is made anew. All locks are lost, and whoever "
      "waits for one gets EIO",
      table_);
  tell_of_loss();
}

}  // namespace latchfs::shm
