// SipHash-2-4 (Aumasson and Bernstein, 2012): a hash of 64 bits that nobody can steer who does not
// have the key.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace latchfs::nlm {

using HashKey = std::array<std::uint64_t, 2>;

// A key of this process's own, from the kernel. Throws std::system_error where it gives none.
[[nodiscard]] HashKey random_key();

[[nodiscard]] std::uint64_t siphash(const HashKey& key, std::string_view bytes) noexcept;

}  // namespace latchfs::nlm
