// How the thread that made a request sleeps.
#pragma once

#include <cstdint>

namespace latchfs::transport {

// Whether a thread sleeps so that no signal but SIGKILL wakes it ("D"): of one that waits for an
// answer of ours, it was interrupted already. False if it cannot be known. Any thread.
[[nodiscard]] bool sleeps_deaf(std::uint32_t tid) noexcept;

}  // namespace latchfs::transport
