// One grant or waiter as one line of JSON, the fields and their order as CONTRACT section 3.
#pragma once

#include <string>

#include "control/context.h"
#include "control/visible.h"
#include "latchfs/lock_service.h"

namespace latchfs::control {

// A lock held, with the number of requests it blocks.
void append_grant(std::string& out, const Context& context, const Grant& grant,
                  const FileFacts::Facts& facts);
// A lock that was taken away: the same without `waiters`.
void append_released(std::string& out, const Context& context, const Grant& grant,
                     const FileFacts::Facts& facts);
// A blocked request: `blocked_at` instead of `acquired_at`, `blocked_by` instead of `waiters`.
//
// blocked_by is null when the request is about to be granted. Of a blocker the reader may not see
// it tells no more than F_GETLK tells the waiter himself (what is locked, not by whom): owner_id,
// owner_name, owner_address, comm and acquired_at are "", pid is 0, uid is null.
void append_waiter(std::string& out, const Context& context, const Waiter& waiter,
                   const FileFacts::Facts& facts, bool blocker_visible);

}  // namespace latchfs::control
