#include "nlm/waits.h"

#include <cerrno>

#include "base/clock.h"
#include "base/log.h"

namespace latchfs::nlm {

WaiterToken Waits::open(FileId file) {
  const MutexLock hold{mu_};
  const std::uint64_t raw = next_++;
  quiet_.push_back(raw);
  try {
    waits_.emplace(raw, Wait{file, std::nullopt, std::prev(quiet_.end()), false});
  } catch (...) {
    quiet_.pop_back();
    throw;
  }
  return {raw};
}

void Waits::close(WaiterToken token) noexcept {
  const MutexLock hold{mu_};
  const auto it = waits_.find(token.raw);
  if (it == waits_.end()) return;
  (it->second.in_ended ? ended_ : quiet_).erase(it->second.node);
  waits_.erase(it);
}

std::optional<int> Waits::outcome(WaiterToken token, std::chrono::milliseconds patience) {
  const std::int64_t until =
      monotonic_ns() + std::chrono::duration_cast<std::chrono::nanoseconds>(patience).count();
  const MutexLock hold{mu_};
  for (;;) {
    const auto it = waits_.find(token.raw);
    if (it == waits_.end() || it->second.err) {
      return it == waits_.end() ? std::nullopt : it->second.err;
    }
    const std::int64_t left = until - monotonic_ns();
    if (left <= 0) return std::nullopt;
    changed_.wait_for(mu_, std::chrono::nanoseconds{left});
  }
}

std::optional<Waits::Event> Waits::next() {
  const MutexLock hold{mu_};
  while (!stopping_ && ended_.empty()) changed_.wait(mu_);
  if (stopping_) return std::nullopt;
  Wait& wait = waits_.find(ended_.front())->second;
  const Event event{{ended_.front()}, *wait.err};
  quiet_.splice(quiet_.end(), ended_, wait.node);
  wait.in_ended = false;
  return event;
}

void Waits::stop() noexcept {
  const MutexLock hold{mu_};
  stopping_ = true;
  changed_.notify_all();
}

void Waits::over(WaiterToken token, int err) noexcept {
  const MutexLock hold{mu_};
  const auto it = waits_.find(token.raw);
  if (it == waits_.end() || it->second.err) return;
  it->second.err = err;
  it->second.in_ended = true;
  ended_.splice(ended_.end(), quiet_, it->second.node);
  changed_.notify_all();
}

void Waits::lost(const std::function<bool(FileId)>& concerns) noexcept {
  const MutexLock hold{mu_};
  for (auto& [raw, wait] : waits_) {
    // (Values only: it asks nobody.)
    if (wait.err || !concerns(wait.file)) continue;
    wait.err = EIO;
    wait.in_ended = true;
    ended_.splice(ended_.end(), quiet_, wait.node);
  }
  changed_.notify_all();
}

}  // namespace latchfs::nlm
