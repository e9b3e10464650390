// Shared by the benchmark programs: a clock, failing loudly, one number on standard output.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "base/clock.h"

namespace latchfs::bench {

[[noreturn]] inline void fail(const std::string& what) {
  std::perror(what.c_str());
  std::exit(1);
}

inline void must(bool ok, const std::string& what) {
  if (!ok) fail(what);
}

// Nanoseconds for one of `count` operations done by fn.
template <class Fn>
double ns_each(std::uint64_t count, Fn&& fn) {
  const std::int64_t began = monotonic_ns();
  fn();
  return static_cast<double>(monotonic_ns() - began) / static_cast<double>(count);
}

// The result of a run: scripts/bench reads it.
inline void report(double value) { std::printf("%.3f\n", value); }

inline std::uint64_t number(const char* text) { return std::strtoull(text, nullptr, 10); }

}  // namespace latchfs::bench
