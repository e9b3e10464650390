// Which directories' entries the kernel was told of a moment ago.
//
// The kernel asks for READDIRPLUS each time a directory is read, also when it still believes all
// that it was told the last time: then names will do, and the look-ups are saved. A guess that
// costs speed when it is wrong, nothing else: what the kernel does not know it looks up, and what
// it believes ends when it would have ended.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

namespace latchfs::fuse {

// Any thread. Remembers some thousand directories; one may displace another.
class RecentListings {
 public:
  // now_ns: CLOCK_MONOTONIC.
  void note(std::uint64_t node, std::int64_t now_ns) noexcept {
    slot(node).store(value(node, now_ns), std::memory_order_relaxed);
  }
  // Whether it was noted within the last so many nanoseconds.
  [[nodiscard]] bool within(std::uint64_t node, std::int64_t now_ns,
                            std::int64_t ns) const noexcept {
    const std::uint64_t known = slot(node).load(std::memory_order_relaxed);
    const std::uint64_t now = value(node, now_ns);
    if (known >> 32 != now >> 32) return false;
    return static_cast<std::uint32_t>(now) - static_cast<std::uint32_t>(known) <
           static_cast<std::uint64_t>(ns / 1'000'000);
  }

 private:
  static constexpr std::size_t kSlots = 4096;

  // (Multiplied by 2^64 divided by the golden ratio: neighbours are spread.)
  static std::uint64_t mixed(std::uint64_t node) noexcept { return node * 0x9E3779B97F4A7C15; }
  // The directory, and the time in milliseconds.
  static std::uint64_t value(std::uint64_t node, std::int64_t now_ns) noexcept {
    const auto ms = static_cast<std::uint64_t>(now_ns / 1'000'000);
    return (mixed(node) << 32) | 1ULL << 32 | (ms & 0xffffffff);
  }
  std::atomic<std::uint64_t>& slot(std::uint64_t node) noexcept {
    return slots_[mixed(node) >> 52];
  }
  [[nodiscard]] const std::atomic<std::uint64_t>& slot(std::uint64_t node) const noexcept {
    return slots_[mixed(node) >> 52];
  }

  std::array<std::atomic<std::uint64_t>, kSlots> slots_{};
};

}  // namespace latchfs::fuse
