#define FUSE_USE_VERSION 35
#include <fuse_opt.h>
#include <gtest/gtest.h>

#include <random>

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

// What libfuse makes of "-o LIST".
List split_by_libfuse(const std::string& list) {
  List out;
  fuse_args args = FUSE_ARGS_INIT(0, nullptr);
  fuse_opt_add_arg(&args, "program");
  fuse_opt_add_arg(&args, "-o");
  fuse_opt_add_arg(&args, list.c_str());
  const auto take = [](void* data, const char* arg, int, fuse_args*) {
    static_cast<List*>(data)->emplace_back(arg);
    return 0;
  };
  EXPECT_EQ(fuse_opt_parse(&args, &out, nullptr, take), 0);
  fuse_opt_free_args(&args);
  return out;
}

TEST(SplitOptionsProperty, AgreesWithLibfuse) {
  const std::uint64_t fresh = std::random_device{}();
  for (const std::uint64_t seed : {std::uint64_t{1}, std::uint64_t{2}, fresh}) {
    SCOPED_TRACE("seed=" + std::to_string(seed));
    std::mt19937_64 random{seed};
    for (int round = 0; round < 2000; ++round) {
      std::string list = "o";  // libfuse takes an empty list for no option at all
      for (auto left = random() % 12; left > 0; --left) list += "a,\\,\\01237 "[random() % 11];
      if (list.find("\\000") != std::string::npos) continue;  // ends a C string
      const auto ours = split_options(list);
      if (ours) {
        ASSERT_EQ(*ours, split_by_libfuse(list)) << list;
      }
    }
  }
}

}  // namespace
}  // namespace latchfs::daemon
