// Runs steps in two worlds and stops at the first that gives different results.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "support/fs_exec.h"
#include "support/fs_op.h"
#include "support/fs_snapshot.h"
#include "support/fs_stage.h"

namespace latchfs::fsdiff {

// A difference between the filesystem under test and the native one that nobody can remove.
struct Deviation {
  const char* what;
  const char* source;  // where it comes from
  // Steps that are left out of the random sequences.
  bool (*avoids)(const Op&);
  // Outcomes (native, ours) that are accepted although they differ.
  bool (*accepts)(const Op&, const Outcome&, const Outcome&);
};

struct Plan {
  int mounts{1};
  std::vector<int> actors{0, 1, 2, 3, 4, 5};
  // The only one who acts, owns the trees and looks at them; actors is not used then.
  std::optional<int> sole_actor;
  int steps{1000};
  Mounter mounter;
  Sabotage sabotage{Sabotage::kNone};
  CompareOptions compare;
  const std::vector<Deviation>* deviations{};
  // Counts the native outcomes, by call and errno ("mkdir", "mkdir File exists"), if not null.
  std::map<std::string, int>* tally{};
};

struct Failure {
  std::string what;     // what differs, and after which step
  std::string kind;     // the same for failures that likely have one cause
  std::vector<Op> ops;  // the steps up to there
};

// Steps made from the seed. Empty: all agreed.
[[nodiscard]] std::optional<Failure> run_random(const Plan& plan, std::uint64_t seed);
// These steps.
[[nodiscard]] std::optional<Failure> run_steps(const Plan& plan, const std::vector<Op>& ops);
// A shorter sequence that fails as well, found within so many attempts.
[[nodiscard]] Failure shrink(const Plan& plan, Failure failure, int attempts);

}  // namespace latchfs::fsdiff
