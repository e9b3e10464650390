// The lock table in one process's memory: for tests and for tools that need the rules alone. The
// same contract as the shared one (tests/contract), without other mounts.
#pragma once

#include <cstdint>
#include <memory>

#include "latchfs/lock_service.h"

namespace latchfs {

// shards: 1 or more. The sink must outlive the store.
[[nodiscard]] std::unique_ptr<LockService> make_memory_store(GrantSink& sink,
                                                             std::uint32_t shards = 4);

}  // namespace latchfs
