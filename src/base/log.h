// The process's log. Thin over spdlog so that its headers are compiled once.
//
// Thread-safe; never throws. User-controlled text (file names) goes through printable() so that
// a name with a newline cannot forge a log line.
#pragma once

#include <fmt/core.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "latchfs/result.h"

namespace latchfs::log {

enum class Level : std::uint8_t { kDebug, kInfo, kWarn, kError };

// target: "stderr", "syslog" or an absolute file path (appended to, created 0600).
Result<void> open(const std::string& target, Level least);
void write(Level level, std::string_view text) noexcept;
[[nodiscard]] bool enabled(Level level) noexcept;

// Control characters and backslashes as \xNN.
[[nodiscard]] std::string printable(std::string_view text);

template <class... Args>
void emit(Level level, fmt::format_string<Args...> f, Args&&... args) noexcept {
  if (!enabled(level)) return;
  try {
    write(level, fmt::format(f, std::forward<Args>(args)...));
  } catch (...) {
    write(level, "a log line could not be formatted (out of memory)");
  }
}
template <class... Args>
void debug(fmt::format_string<Args...> f, Args&&... a) noexcept {
  emit(Level::kDebug, f, std::forward<Args>(a)...);
}
template <class... Args>
void info(fmt::format_string<Args...> f, Args&&... a) noexcept {
  emit(Level::kInfo, f, std::forward<Args>(a)...);
}
template <class... Args>
void warn(fmt::format_string<Args...> f, Args&&... a) noexcept {
  emit(Level::kWarn, f, std::forward<Args>(a)...);
}
template <class... Args>
void error(fmt::format_string<Args...> f, Args&&... a) noexcept {
  emit(Level::kError, f, std::forward<Args>(a)...);
}

}  // namespace latchfs::log
