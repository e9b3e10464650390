// Breaking all that one machine on the network holds: {"owner_address": "192.0.2.7"} in `release`.
#pragma once

#include "control/actor.h"
#include "control/context.h"
#include "control/release_request.h"

namespace latchfs::control {

// Of what the client holds on files of this mount: all for admins, for others what is their own;
// the rest does not exist for them. What may be another client's as well (several NFS clients with
// locks on one file) is left and counted as "ambiguous" in the reply. This machine's own address is
// refused (EINVAL). ENOENT: nothing was released. What the client takes while this runs may stay.
// Logged.
[[nodiscard]] Outcome run_release_of_client(const Context& context, const ReleaseOfClient& request,
                                            const Actor& actor);

}  // namespace latchfs::control
