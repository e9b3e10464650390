// A futex word in shared memory that wakes another daemon. Rings are never lost: the word counts,
// and the waiter sleeps only while it still holds the value seen before looking for work.
#pragma once

#include <atomic>
#include <cstdint>

namespace latchfs::shm {

void ring_doorbell(std::atomic<std::uint32_t>& bell) noexcept;
// Returns when the bell no longer shows `seen`, or after timeout_ms, or spuriously.
void wait_doorbell(std::atomic<std::uint32_t>& bell, std::uint32_t seen, int timeout_ms) noexcept;

}  // namespace latchfs::shm
