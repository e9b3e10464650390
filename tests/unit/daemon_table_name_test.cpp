#include <gtest/gtest.h>
#include <sys/sysmacros.h>

#include "daemon/table_name.h"

namespace latchfs::daemon {
namespace {

TEST(TableName, NamesTheBackingDevice) {
  EXPECT_EQ(default_table_name(makedev(254, 0)), "dev-254-0");
  EXPECT_EQ(default_table_name(makedev(0, 1048575)), "dev-0-1048575");
  EXPECT_NE(default_table_name(makedev(1, 23)), default_table_name(makedev(12, 3)));
}

}  // namespace
}  // namespace latchfs::daemon
