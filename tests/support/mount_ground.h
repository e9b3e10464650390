// Mounts as grounds for worlds (lock_world.h).
#pragma once

#include "support/lock_world.h"

namespace latchfs::locktest {

// That many mounts of one new directory, sharing a table, each with a daemon of its own.
[[nodiscard]] Ground mount_ground(unsigned mounts);
// A native directory.
[[nodiscard]] Ground native_ground(const std::string& mutation = "");

}  // namespace latchfs::locktest
