// Breaking all that one machine on the network holds: {"owner_address": "192.0.2.7"} in `release`.
#pragma once

#include "control/actor.h"
#include "control/context.h"
#include "control/release_request.h"

namespace latchfs::control {

// All or, where he may not, nothing: admins, or who holds all of it. What may be another client's
// as well (several NFS clients with locks on one file) is left and counted as "ambiguous" in the
// reply. This machine's own address is refused (EINVAL). ENOENT: the client holds nothing. What it
// takes while this runs may stay. Logged.
[[nodiscard]] Outcome run_release_of_client(const Context& context, const ReleaseOfClient& request,
                                            const Actor& actor);

}  // namespace latchfs::control
