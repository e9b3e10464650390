#include "base/clock.h"

#include <fmt/core.h>

#include <ctime>

namespace latchfs {
namespace {

constexpr std::int64_t kSecond = 1'000'000'000;

std::int64_t read_clock(clockid_t id) noexcept {
  timespec ts{};
  ::clock_gettime(id, &ts);
  return ts.tv_sec * kSecond + ts.tv_nsec;
}

}  // namespace

std::int64_t realtime_ns() noexcept { return read_clock(CLOCK_REALTIME); }
std::int64_t monotonic_ns() noexcept { return read_clock(CLOCK_MONOTONIC); }

std::string rfc3339(std::int64_t realtime_ns) {
  std::time_t seconds = realtime_ns / kSecond;
  std::int64_t rest = realtime_ns % kSecond;
  if (rest < 0) {
    rest += kSecond;
    --seconds;
  }
  std::tm tm{};
  ::gmtime_r(&seconds, &tm);
  return fmt::format("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:06}Z", tm.tm_year + 1900, tm.tm_mon + 1,
                     tm.tm_mday, tm.tm_hour, tm.tm_min, tm.tm_sec, rest / 1000);
}

}  // namespace latchfs
