#include "fuse/timer.h"

#include <chrono>
#include <utility>

#include "base/clock.h"

namespace latchfs::fuse {

Timer::Timer() : thread_{[this] { loop(); }} {}

Timer::~Timer() {
  {
    const MutexLock hold{mu_};
    stopping_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void Timer::at(std::int64_t at_ns, std::function<void()> fn) {
  {
    const MutexLock hold{mu_};
    due_.emplace(at_ns, std::move(fn));
  }
  changed_.notify_all();
}

void Timer::loop() {
  for (;;) {
    std::function<void()> fn;
    {
      const MutexLock hold{mu_};
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
      fn = std::move(due_.begin()->second);
      due_.erase(due_.begin());
    }
    fn();
  }
}

}  // namespace latchfs::fuse
