// The texts of `README` and `status`.
#pragma once

#include <string>

#include "control/context.h"
#include "control/visible.h"
#include "latchfs/lock_service.h"

namespace latchfs::control {

[[nodiscard]] std::string readme_text(const Options& options);

// Other mounts' sources and mount points are for admins; everybody else sees his own mount and how
// many there are. Likewise what exactly the last check of the table found.
[[nodiscard]] std::string status_text(const Context& context, const TableStats& stats,
                                      const Viewer& viewer);

}  // namespace latchfs::control
