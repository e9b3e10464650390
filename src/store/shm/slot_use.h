// What tables of slots have in common (op_slots.h, change_table.h).
#pragma once

#include <cstdint>

namespace latchfs::shm {

// Where the thread looks for a slot first, so that threads do not share lines and low slots are
// used again: to be taken modulo the slots there are.
[[nodiscard]] std::uint32_t own_place() noexcept;

// CLOCK_REALTIME of the last tick, milliseconds old at most: for a listing.
[[nodiscard]] std::int64_t about_now_ns() noexcept;

}  // namespace latchfs::shm
