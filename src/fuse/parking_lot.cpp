#include "fuse/parking_lot.h"

#include <algorithm>
#include <atomic>
#include <utility>

#include "base/fault_point.h"

namespace latchfs::fuse {
namespace {

// Tokens are unique in the process, so that one names its lot too.
std::atomic<std::uint64_t> g_next_token{1};

// All live lots. A lot is made and destroyed where no request runs.
Mutex g_lots_mu;
std::vector<ParkingLot*>& lots() {
  static std::vector<ParkingLot*> all;
  return all;
}

}  // namespace

ParkingLot::ParkingLot() {
  const MutexLock hold{g_lots_mu};
  lots().push_back(this);
}

ParkingLot::~ParkingLot() {
  const MutexLock hold{g_lots_mu};
  auto& all = lots();
  all.erase(std::remove(all.begin(), all.end(), this), all.end());
}

WaiterToken ParkingLot::open(FileId file, Completion done) {
  const WaiterToken token{g_next_token.fetch_add(1, std::memory_order_relaxed)};
  const MutexLock hold{mu_};
  entries_.emplace(token.raw, Entry{file, std::move(done), false, {}, {}});
  return token;
}

void ParkingLot::close(WaiterToken token) {
  Entry dropped;
  const MutexLock hold{mu_};
  const auto it = entries_.find(token.raw);
  if (it == entries_.end()) return;
  dropped = std::move(it->second);
  entries_.erase(it);
  if (entries_.empty()) emptied_.notify_all();
}

void ParkingLot::finish(WaiterToken token, int err) noexcept {
  fault_point("park.finish");
  Completion done;
  {
    const MutexLock hold{mu_};
    const auto it = entries_.find(token.raw);
    if (it == entries_.end()) return;
    done = std::move(it->second.done);
    entries_.erase(it);
    ++finishing_;
  }
  done(err);
  done = nullptr;  // what it holds goes before drain() can return
  const MutexLock hold{mu_};
  --finishing_;
  if (entries_.empty() && finishing_ == 0) emptied_.notify_all();
}

void ParkingLot::park(WaiterToken token) noexcept {
  fault_point("park.before");
  std::optional<int> result;
  std::optional<int> wanted;
  bool gone = false;
  FileId file;
  {
    const MutexLock hold{mu_};
    const auto it = entries_.find(token.raw);
    if (it == entries_.end()) return;
    it->second.parked = true;
    gone = it->second.lost;
    result = it->second.result;
    wanted = it->second.interrupt;
    file = it->second.file;
  }
  if (result) {
    finish(token, *result);
  } else if (gone) {
    end_lost(token, file);
  } else if (wanted) {
    cancel_in_store(token, file, *wanted);
  }
}

void ParkingLot::interrupt(WaiterToken token, int err) noexcept {
  FileId file;
  {
    const MutexLock hold{mu_};
    const auto it = entries_.find(token.raw);
    if (it == entries_.end()) return;
    if (!it->second.parked) {
      it->second.interrupt = err;
      return;
    }
    file = it->second.file;
  }
  cancel_in_store(token, file, err);
}

void ParkingLot::interrupt_any(WaiterToken token, int err) noexcept {
  ParkingLot* owner = nullptr;
  {
    const MutexLock hold{g_lots_mu};
    for (ParkingLot* lot : lots()) {
      const MutexLock inner{lot->mu_};
      if (lot->entries_.count(token.raw) != 0) owner = lot;
    }
  }
  // The lot outlives its session's requests, and the caller is serving one.
  if (owner != nullptr) owner->interrupt(token, err);
}

void ParkingLot::cancel_in_store(WaiterToken token, FileId file, int err) noexcept {
  fault_point("park.cancel");
  // Lost against a grant: the store tells over(), or has told it already.
  if (locks_->cancel(file, token) != Cancelled::kCancelled) return;
  finish(token, err);
}

void ParkingLot::lost(const std::function<bool(FileId)>& concerns) noexcept {
  std::vector<std::pair<std::uint64_t, FileId>> ended;
  {
    const MutexLock hold{mu_};
    for (auto& [token, entry] : entries_) {
      if (!concerns(entry.file)) continue;
      if (entry.parked) {
        ended.emplace_back(token, entry.file);
      } else {
        entry.lost = true;
      }
    }
  }
  for (const auto& [token, file] : ended) end_lost(WaiterToken{token}, file);
}

// Cancelled too: it may have been queued after the loss. If it was granted just then, the lock goes
// with its owner.
void ParkingLot::end_lost(WaiterToken token, FileId file) noexcept {
  (void)locks_->cancel(file, token);
  finish(token, EIO);
}

void ParkingLot::over(WaiterToken token, int err) noexcept {
  {
    const MutexLock hold{mu_};
    const auto it = entries_.find(token.raw);
    if (it == entries_.end()) return;
    if (!it->second.parked) {
      it->second.result = err;
      return;
    }
  }
  finish(token, err);
}

void ParkingLot::drain(int err) noexcept {
  std::vector<std::pair<std::uint64_t, FileId>> left;
  {
    const MutexLock hold{mu_};
    for (const auto& [token, entry] : entries_) left.emplace_back(token, entry.file);
  }
  for (const auto& [token, file] : left) interrupt(WaiterToken{token}, err);
  // Those that a grant was faster for.
  const MutexLock hold{mu_};
  while (!entries_.empty() || finishing_ != 0) emptied_.wait(mu_);
}

std::size_t ParkingLot::size() {
  const MutexLock hold{mu_};
  return entries_.size();
}

}  // namespace latchfs::fuse
