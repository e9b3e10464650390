#include "nlm/outcalls.h"

#include <chrono>

#include "base/clock.h"
#include "base/log.h"

namespace latchfs::nlm {

Outcalls::Outcalls(unsigned threads, std::size_t most) : most_{most} {
  for (unsigned i = 0; i < threads; ++i) threads_.emplace_back([this] { loop(); });
}

Outcalls::~Outcalls() { stop(); }

void Outcalls::stop() noexcept {
  {
    const MutexLock hold{mu_};
    stopping_ = true;
    changed_.notify_all();
  }
  for (std::thread& thread : threads_) {
    if (thread.joinable()) thread.join();
  }
}

bool Outcalls::at(std::int64_t at_ns, std::string peer, std::function<void()> fn) {
  const MutexLock hold{mu_};
  if (stopping_ || due_.size() + behind_.size() >= most_) return false;
  due_.emplace(at_ns, Job{std::move(peer), std::move(fn)});
  changed_.notify_one();
  return true;
}

void Outcalls::loop() noexcept {
  for (;;) {
    Job job;
    {
      const MutexLock hold{mu_};
      for (;;) {
        if (stopping_) return;
        if (due_.empty()) {
          changed_.wait(mu_);
          continue;
        }
        const std::int64_t left = due_.begin()->first - monotonic_ns();
        if (left > 0) {
          changed_.wait_for(mu_, std::chrono::nanoseconds{left});
          continue;
        }
        job = std::move(due_.begin()->second);
        due_.erase(due_.begin());
        if (job.peer.empty()) break;
        try {
          if (busy_.insert(job.peer).second) break;
          std::string peer = job.peer;
          behind_.emplace(std::move(peer), std::move(job));
        } catch (...) {
          log::error("out of memory: a call to {} is not made", log::printable(job.peer));
        }
      }
    }
    job.fn();
    job.fn = nullptr;  // what it holds goes before the next of the peer begins
    const MutexLock hold{mu_};
    if (job.peer.empty()) continue;
    busy_.erase(job.peer);
    const auto [first, last] = behind_.equal_range(job.peer);
    if (first == last) continue;
    try {
      due_.emplace(0, std::move(first->second));
    } catch (...) {
      log::error("out of memory: a call to {} is not made", log::printable(job.peer));
    }
    behind_.erase(first);
    changed_.notify_one();
  }
}

}  // namespace latchfs::nlm
