// From the command line to what the FUSE room wants to know.
#pragma once

#include <string>

#include "daemon/options.h"
#include "daemon/places.h"
#include "fuse/mount.h"

namespace latchfs::daemon {

[[nodiscard]] fuse::MountConfig mount_config(const Options& options, Places places,
                                             std::string version);

}  // namespace latchfs::daemon
