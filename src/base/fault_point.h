// Named places where a test can kill, fail or hold the process: fault_point("shm.publish").
//
// Compiled in always, armed only by the environment variable LATCHFS_FAULT, read once, and only
// when real and effective uid agree: "NAME=kill@N" dies by SIGKILL at the N-th passage (from 1),
// "NAME=hold:PATH" adds a byte to PATH and waits until it no longer exists; several separated by
// ';'. Unarmed it costs one relaxed load.
#pragma once

#include <atomic>

namespace latchfs {

namespace detail {
extern std::atomic<bool> g_faults_armed;
void fault_point_slow(const char* name) noexcept;
}  // namespace detail

inline void fault_point(const char* name) noexcept {
  if (detail::g_faults_armed.load(std::memory_order_relaxed)) [[unlikely]] {
    detail::fault_point_slow(name);
  }
}

// Tests in one process: arms (spec as above) or, with "", disarms all.
void arm_faults(const char* spec);

// Tests that decide themselves who runs when: hears of each passage, in the passing thread, before
// anything armed. nullptr: nobody.
using FaultHook = void (*)(const char* name) noexcept;
void hook_faults(FaultHook hook);

}  // namespace latchfs
