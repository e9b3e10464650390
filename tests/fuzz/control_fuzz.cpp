// libFuzzer over every parser of the control tree: the first byte picks the target.
//
//   CXX=clang++-14 meson setup build-fuzz && ninja -C build-fuzz tests/fuzz/control_fuzz
//   build-fuzz/tests/fuzz/control_fuzz -max_len=4096 -max_total_time=600
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "fuzz/control_targets.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const auto targets = latchfs::fuzz::targets();
  // A Broken that is thrown ends the program: libFuzzer keeps the input.
  targets[data[0] % targets.size()].run({reinterpret_cast<const char*>(data) + 1, size - 1});
  return 0;
}
