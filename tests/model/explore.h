// Every order in which the tasks of a WaitWorld can take their steps.
//
// Depth first, each order from the beginning anew (the code is real and cannot be stepped back); a
// state that was met before is not gone on from again.
#pragma once

#include <cstdint>
#include <set>
#include <string>

#include "model/scenario.h"

namespace latchfs::test {

struct Explored {
  std::uint64_t states{};
  std::uint64_t steps{};          // taken, replays included
  double interleavings{};         // complete ones that the states stand for
  std::set<std::string> answers;  // at the ends
  std::string wrong;              // "" or what was wrong first, and the order that led there
};

// prune: whether a state is recognised. Without it every single interleaving is executed.
[[nodiscard]] Explored explore(const Scenario& scenario, Bug bug = Bug::kNone, bool prune = true);

}  // namespace latchfs::test
