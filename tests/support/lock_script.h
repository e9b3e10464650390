// Whole scenarios on a ground, and what they leave behind.
#pragma once

#include <string>
#include <vector>

#include "support/lock_world.h"

namespace latchfs::locktest {

// The locks and waiters that a ground at rest still lists although no world is left on it. There
// should be none.
[[nodiscard]] std::string leftovers(const Ground& ground);

// Runs all steps in a fresh world, stopping after a HUNG. One outcome more than steps: what is left
// behind when all is over, "free" if nothing. Renews a ground that was left unclean.
[[nodiscard]] std::vector<Outcome> run_script(Ground& ground, const std::vector<Step>& steps);

// The outcome that ends run_script()'s.
[[nodiscard]] Outcome aftermath(Ground& ground);

}  // namespace latchfs::locktest
