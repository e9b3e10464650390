// What must hold for any bytes that reach a parser of the control tree. Throws Broken if it does
// not. Driven by libFuzzer (control_fuzz.cpp) and by random mutations (control_random_test.cpp).
#pragma once

#include <span>
#include <stdexcept>
#include <string_view>

namespace latchfs::fuzz {

class Broken : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct Target {
  std::string_view name;
  void (*run)(std::string_view bytes);
  std::string_view sample;  // an input that is taken
};
[[nodiscard]] std::span<const Target> targets();

}  // namespace latchfs::fuzz
