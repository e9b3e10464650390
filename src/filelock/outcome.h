// A value, or why not: an errno and words for the user who asked.
#pragma once

#include <fmt/core.h>

#include <string>
#include <string_view>
#include <utility>
#include <variant>

#include "base/log.h"
#include "latchfs/result.h"

namespace latchfs::filelock {

// words: one clause without a full stop; names in it are escaped.
struct Failure {
  std::error_code code;
  std::string words;
};

// "WHAT: No space left on device"
[[nodiscard]] inline Failure failed(std::error_code code, std::string_view what) {
  return {code, fmt::format("{}: {}", what, code.message())};
}
[[nodiscard]] inline Failure refused(int err, std::string words) {
  return {errno_code(err), std::move(words)};
}
// A file's name in words.
[[nodiscard]] inline std::string in_quotes(std::string_view name) {
  return fmt::format("'{}'", log::printable(name));
}

// As Result, with the words.
template <class T>
class [[nodiscard]] Outcome {
 public:
  Outcome(T value) : state_{std::in_place_index<0>, std::move(value)} {}  // NOLINT: implicit
  Outcome(Failure failure) : state_{std::in_place_index<1>, std::move(failure)} {}  // NOLINT

  [[nodiscard]] bool ok() const noexcept { return state_.index() == 0; }
  explicit operator bool() const noexcept { return ok(); }
  // Precondition: ok().
  T& operator*() & { return std::get<0>(state_); }
  const T& operator*() const& { return std::get<0>(state_); }
  T&& operator*() && { return std::get<0>(std::move(state_)); }
  T* operator->() { return &std::get<0>(state_); }
  const T* operator->() const { return &std::get<0>(state_); }
  // Precondition: not ok().
  [[nodiscard]] const Failure& failure() const { return std::get<1>(state_); }
  // A zero error_code when ok().
  [[nodiscard]] std::error_code error() const noexcept {
    return ok() ? std::error_code{} : std::get<1>(state_).code;
  }

 private:
  std::variant<T, Failure> state_;
};

template <>
class [[nodiscard]] Outcome<void> : public Outcome<std::monostate> {
 public:
  Outcome() : Outcome<std::monostate>{std::monostate{}} {}
  Outcome(Failure failure) : Outcome<std::monostate>{std::move(failure)} {}  // NOLINT: implicit
};

}  // namespace latchfs::filelock
