#include "store/shm/doorbell.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <climits>
#include <ctime>

namespace latchfs::shm {

static_assert(sizeof(std::atomic<std::uint32_t>) == 4);

void ring_doorbell(std::atomic<std::uint32_t>& bell) noexcept {
  bell.fetch_add(1, std::memory_order_release);
  // Not FUTEX_PRIVATE: the waiter is another process.
  ::syscall(SYS_futex, &bell, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

void wait_doorbell(std::atomic<std::uint32_t>& bell, std::uint32_t seen, int timeout_ms) noexcept {
  timespec ts{};
  ts.tv_sec = timeout_ms / 1000;
  ts.tv_nsec = static_cast<long>(timeout_ms % 1000) * 1'000'000;
  if (bell.load(std::memory_order_acquire) != seen) return;
  ::syscall(SYS_futex, &bell, FUTEX_WAIT, seen, &ts, nullptr, 0);
}

}  // namespace latchfs::shm
