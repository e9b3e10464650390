// Breaking locks on request: who may, what happens, what the reply says.
#pragma once

#include <string>
#include <vector>

#include "control/context.h"
#include "control/release_request.h"
#include "control/visible.h"

namespace latchfs::control {

// Who asks. A descriptor may have been opened by one user and written to by another (a set-uid
// program whose stderr somebody pointed at `release`, a descriptor passed on): then both must be
// allowed to.
struct Actor {
  Viewer opener;
  Viewer writer;
};

struct Outcome {
  int err{};          // 0: done
  std::string reply;  // JSON, ends with a newline
};

// Runs one request; logs every release and every refusal of one.
[[nodiscard]] Outcome run_release(const Context& context, const ReleaseRequest& request,
                                  const Actor& actor);

// The reply to what never became a request.
[[nodiscard]] Outcome refuse_request(int err, std::string_view why);

}  // namespace latchfs::control
