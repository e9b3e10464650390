#include "transport/caller_state.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <string_view>

#include "base/unique_fd.h"

namespace latchfs::transport {

bool sleeps_deaf(std::uint32_t tid) noexcept {
  if (tid == 0) return false;
  std::array<char, 32> path{};
  std::snprintf(path.data(), path.size(), "/proc/%u/stat", tid);
  const UniqueFd file{::open(path.data(), O_RDONLY | O_CLOEXEC)};
  if (!file) return false;
  std::array<char, 256> text{};
  const ssize_t size = ::read(file.get(), text.data(), text.size());
  if (size <= 0) return false;
  // "12 (name) S 1 ...": the name may hold anything, also ") D".
  const std::string_view line{text.data(), static_cast<std::size_t>(size)};
  const auto end = line.rfind(") ");
  return end != std::string_view::npos && line.size() > end + 2 && line[end + 2] == 'D';
}

}  // namespace latchfs::transport
