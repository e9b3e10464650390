#include "daemon/table_name.h"

#include <fmt/core.h>
#include <sys/sysmacros.h>

namespace latchfs::daemon {

std::string default_table_name(dev_t backing) {
  return fmt::format("dev-{}-{}", major(backing), minor(backing));
}

}  // namespace latchfs::daemon
