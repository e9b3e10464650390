// From the command line to what the FUSE room wants to know.
#pragma once

#include <string>

#include "daemon/options.h"
#include "daemon/places.h"
#include "fuse/mount.h"

namespace latchfs::daemon {

// How long the kernel may believe names and attributes while no other mount shares the table. At
// most 5 seconds each: who mounts next waits as long.
[[nodiscard]] fuse::Timeouts timeouts(const Options& options);

[[nodiscard]] fuse::MountConfig mount_config(const Options& options, Places places,
                                             std::string version);

}  // namespace latchfs::daemon
