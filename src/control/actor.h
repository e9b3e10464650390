// Who makes a request, and what becomes of it.
#pragma once

#include <string>

#include "control/visible.h"

namespace latchfs::control {

// A descriptor may have been opened by one user and written to by another (a set-uid program whose
// stderr somebody pointed at `release`, a descriptor passed on): then both must be allowed to.
struct Actor {
  Viewer opener;
  Viewer writer;
};
// For log lines.
[[nodiscard]] std::string describe_caller(const Actor& actor);

struct Outcome {
  int err{};          // 0: done
  std::string reply;  // JSON, ends with a newline
};

}  // namespace latchfs::control
