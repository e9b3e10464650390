// Whether who lists directories also looks at what is listed (ls -l, find -size, git status) or
// wants names only (ls, a shell's completion).
//
// The kernel cannot tell either, and to fetch every attribute for who does not look costs more than
// ten times the names alone. Its own rule (FUSE_READDIRPLUS_AUTO) gives every second piece of a
// large directory without attributes, whose files then are looked up one by one. So here: beyond
// the first piece of a directory only names are told, until a number of them is looked up; then,
// for some seconds, attributes too. A guess that costs speed when it is wrong, nothing else.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

namespace latchfs::fuse {

// Any thread.
class ListingHabit {
 public:
  static constexpr std::uint32_t kEnough = 32;
  static constexpr std::int64_t kLastsNs = 10'000'000'000;

  // Of this directory names were told without attributes.
  void told_names(std::uint64_t directory) noexcept {
    Slot& slot = slot_of(directory);
    slot.looked_up.store(0, std::memory_order_relaxed);
    slot.directory.store(directory, std::memory_order_relaxed);
  }
  // One of a directory's names was looked up. now_ns(): CLOCK_MONOTONIC.
  template <class Clock>
  void looked_up(std::uint64_t directory, Clock&& now_ns) noexcept {
    Slot& slot = slot_of(directory);
    if (slot.directory.load(std::memory_order_relaxed) != directory) return;
    if (slot.looked_up.fetch_add(1, std::memory_order_relaxed) + 1 < kEnough) return;
    slot.directory.store(0, std::memory_order_relaxed);
    wanted_until_.store(now_ns() + kLastsNs, std::memory_order_relaxed);
  }
  [[nodiscard]] bool wants_attributes(std::int64_t now_ns) const noexcept {
    return now_ns < wanted_until_.load(std::memory_order_relaxed);
  }

 private:
  struct Slot {
    std::atomic<std::uint64_t> directory{0};
    std::atomic<std::uint32_t> looked_up{0};
  };
  // (Multiplied by 2^64 divided by the golden ratio: neighbours are spread.)
  Slot& slot_of(std::uint64_t directory) noexcept {
    return slots_[(directory * 0x9E3779B97F4A7C15) >> 56];
  }

  std::array<Slot, 256> slots_{};
  std::atomic<std::int64_t> wanted_until_{0};
};

}  // namespace latchfs::fuse
