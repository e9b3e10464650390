// Whether a mount's outcome is the kernel's, but for what FUSE makes impossible.
#pragma once

#include <string_view>
#include <vector>

#include "support/lock_step.h"

namespace latchfs::locktest {

// Something a mount cannot help. docs/compatibility.md, "Locks", has the same list for users.
struct Deviation {
  std::string_view name;
  std::string_view why;  // the kernel's source
  // Makes `mount` what the kernel would have said, if this is why it differs from `native`.
  void (*forgive)(const Step& step, const Outcome& native, Outcome& mount);
};

// All of them, and the only place where they are.
[[nodiscard]] const std::vector<Deviation>& deviations();

[[nodiscard]] bool agree(const Step& step, const Outcome& native, const Outcome& mount);

// Compares one run's outcomes, step after step. It knows what the steps before have left open: of
// several locks that conflict, F_GETLK names that of the oldest owner on the file (fs/locks.c
// posix_test_lock); requests that one step has granted together have no order among them.
class Comparison {
 public:
  [[nodiscard]] bool agree(const Step& step, const Outcome& native, const Outcome& mount);

 private:
  bool order_open_{};
};

}  // namespace latchfs::locktest
