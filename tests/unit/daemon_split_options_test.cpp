#include <gtest/gtest.h>

#include "daemon/split_options.h"

namespace latchfs::daemon {
namespace {

using List = std::vector<std::string>;

TEST(SplitOptions, SplitsAtCommasAndKeepsEmptyItems) {
  EXPECT_EQ(split_options("ro,fsname=a b,x=1"), (List{"ro", "fsname=a b", "x=1"}));
  EXPECT_EQ(split_options(""), (List{""}));
  EXPECT_EQ(split_options(",a,"), (List{"", "a", ""}));
}

TEST(SplitOptions, UnescapesAsLibfuseDoes) {
  EXPECT_EQ(split_options("fsname=a\\,b,ro"), (List{"fsname=a,b", "ro"}));
  EXPECT_EQ(split_options("a\\\\,b"), (List{"a\\", "b"}));
  EXPECT_EQ(split_options("a\\040b"), (List{"a b"}));
  EXPECT_EQ(split_options("a\\377"), (List{"a\377"}));
  EXPECT_EQ(split_options("a\\400"), (List{"a400"}));  // no such byte: an escaped '4'
  EXPECT_EQ(split_options("a\\04"), (List{"a04"}));
}

TEST(SplitOptions, RefusesAnEscapeWithoutEnd) {
  EXPECT_EQ(split_options("a\\"), std::nullopt);
  EXPECT_EQ(split_options("\\"), std::nullopt);
}

TEST(SplitOptions, EscapingComesBack) {
  std::string every;
  for (int byte = 1; byte < 256; ++byte) every += static_cast<char>(byte);
  for (const std::string& item :
       {every, std::string{}, std::string{"\\,\\"}, std::string{"\\054"}}) {
    EXPECT_EQ(split_options(escape_option(item)), (List{item})) << item;
    EXPECT_EQ(split_options(escape_option(item) + ",ro"), (List{item, "ro"})) << item;
  }
}

}  // namespace
}  // namespace latchfs::daemon
