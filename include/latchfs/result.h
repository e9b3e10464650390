// Result<T>: a value, or the std::error_code the machine gave instead.
//
// "No" is an answer and lives in T (see Acquired in lock_service.h); an error is
// what the machine did to us. Errors carry an errno in std::generic_category.
#pragma once

#include <cerrno>
#include <system_error>
#include <utility>
#include <variant>

namespace latchfs {

// The error_code for an errno value.
[[nodiscard]] inline std::error_code errno_code(int err) noexcept {
  return {err, std::generic_category()};
}

// The error_code for the calling thread's current errno.
[[nodiscard]] inline std::error_code last_errno() noexcept { return errno_code(errno); }

template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value)
      : state_{std::in_place_index<0>, std::move(value)} {}  // NOLINT: implicit by design
  Result(std::error_code error) : state_{std::in_place_index<1>, error} {}  // NOLINT

  [[nodiscard]] bool ok() const noexcept { return state_.index() == 0; }
  explicit operator bool() const noexcept { return ok(); }

  // Precondition: ok().
  T& value() & { return std::get<0>(state_); }
  const T& value() const& { return std::get<0>(state_); }
  T&& value() && { return std::get<0>(std::move(state_)); }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }

  // The error; a zero error_code when ok().
  [[nodiscard]] std::error_code error() const noexcept {
    return ok() ? std::error_code{} : std::get<1>(state_);
  }

 private:
  std::variant<T, std::error_code> state_;
};

template <>
class [[nodiscard]] Result<void> {
 public:
  Result() = default;
  Result(std::error_code error) : error_{error} {}  // NOLINT: implicit by design

  [[nodiscard]] bool ok() const noexcept { return !error_; }
  explicit operator bool() const noexcept { return ok(); }
  [[nodiscard]] std::error_code error() const noexcept { return error_; }

 private:
  std::error_code error_;
};

}  // namespace latchfs
