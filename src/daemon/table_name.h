// Which lock table a mount uses when -o table= does not say.
#pragma once

#include <sys/types.h>

#include <string>

namespace latchfs::daemon {

// One table for each backing file system, so that every mount of any of its directories shares
// it: "dev-MAJOR-MINOR". A device number is not given to another file system while a mount holds
// its SOURCE open.
[[nodiscard]] std::string default_table_name(dev_t backing);

}  // namespace latchfs::daemon
