// What is worth a line in the log, but not one each time.
#pragma once

#include <atomic>
#include <cstdint>

#include "base/clock.h"

namespace latchfs {

// Any thread. As a static or a member: one for all that shares the period.
class Seldom {
 public:
  explicit Seldom(std::int64_t period_ns) : period_{period_ns}, last_{-period_ns} {}
  // True the first time, and then at most once in a period.
  [[nodiscard]] bool due() noexcept {
    const std::int64_t now = monotonic_ns();
    std::int64_t last = last_.load(std::memory_order_relaxed);
    return now - last >= period_ && last_.compare_exchange_strong(last, now);
  }

 private:
  const std::int64_t period_;
  std::atomic<std::int64_t> last_;
};

}  // namespace latchfs
