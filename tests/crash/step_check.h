// Runs an act one instruction at a time; at every instruction that changed what a death would leave
// (shared memory, the thread's list of robust mutexes, the outcome of a system call) lets a process
// die there and survivors recover, and compares what they find with the state before and the state
// after.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "crash/step_acts.h"

namespace latchfs::test {

struct StepReport {
  std::uint64_t instructions{};
  std::uint64_t points{};     // instructions that changed something
  std::uint64_t recovered{};  // of these: where survivors were let loose
  std::uint64_t deaths{};     // in the table itself, by SIGKILL
  std::uint64_t failures{};
  std::vector<std::string> first;  // some of the failures
};

// stride: every how manieth point, from a random one on. deaths: at so many random points (fewer of
// a long act) the victim itself is killed, and recovered from in the table itself: what the copies
// stand for.
[[nodiscard]] StepReport check_act(const StepAct& act, std::uint64_t stride, int deaths);

}  // namespace latchfs::test
