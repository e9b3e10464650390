// Time, in nanoseconds.
#pragma once

#include <cstdint>
#include <string>

namespace latchfs {

// CLOCK_REALTIME since the epoch.
[[nodiscard]] std::int64_t realtime_ns() noexcept;
// CLOCK_MONOTONIC: the same clock in every process until reboot.
[[nodiscard]] std::int64_t monotonic_ns() noexcept;
// "2026-11-21T09:30:00.123456Z" (UTC, microseconds).
[[nodiscard]] std::string rfc3339(std::int64_t realtime_ns);

}  // namespace latchfs
