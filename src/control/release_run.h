// Breaking locks on request: who may, what happens, what the reply says.
#pragma once

#include <string_view>

#include "control/actor.h"
#include "control/context.h"
#include "control/release_request.h"

namespace latchfs::control {

// Runs one request; logs every release and every refusal of one.
[[nodiscard]] Outcome run_release(const Context& context, const ReleaseRequest& request,
                                  const Actor& actor);

// The reply to what never became a request.
[[nodiscard]] Outcome refuse_release(int err, std::string_view why);

}  // namespace latchfs::control
