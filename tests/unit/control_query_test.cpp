#include <gtest/gtest.h>

#include "control/query.h"

namespace latchfs::control {
namespace {

Query good(std::string_view text) {
  auto parsed = parse_query(text);
  EXPECT_TRUE(std::holds_alternative<Query>(parsed)) << text;
  return std::holds_alternative<Query>(parsed) ? std::get<Query>(parsed) : Query{};
}

std::string why_bad(std::string_view text) {
  const auto parsed = parse_query(text);
  const auto* bad = std::get_if<Malformed>(&parsed);
  return bad == nullptr ? "" : bad->why;
}

TEST(Query, EmptyAsksForAll) {
  const Query query = good("");
  EXPECT_FALSE(query.ref || query.limit || query.pid || query.mode);
  EXPECT_EQ(canonical(query), "");
}

TEST(Query, TakesEveryKey) {
  const Query query = good(
      "ref=%2Fa%20b&after=0.7.3e9.0.10.5&limit=3&snapshot=daily&owner_id="
      "0000000000000001-0-00000000000000ff&owner_name=build7&owner_address=127.0.0.1"
      "&pid=4711&uid=1000&mode=shared");
  EXPECT_EQ(query.ref->path, "/a b");
  EXPECT_FALSE(query.after.at_start);
  EXPECT_EQ(query.limit, 3U);
  EXPECT_EQ(query.snapshot, "daily");
  EXPECT_EQ(query.owner_id, (OwnerId{1, 255, OwnerSpace::kRange}));
  EXPECT_EQ(query.owner_name, "build7");
  EXPECT_EQ(query.owner_address, "127.0.0.1");
  EXPECT_EQ(query.pid, 4711U);
  EXPECT_EQ(query.uid, 1000U);
  EXPECT_EQ(query.mode, "API_BYTE_RANGE_SHARED");
}

TEST(Query, RefIsAPathOrAFileId) {
  EXPECT_EQ(good("ref=1311").ref->ino, 1311U);
  EXPECT_FALSE(good("ref=1311").ref->dev);
  EXPECT_EQ(good("ref=7:1311").ref->dev, 7U);
  EXPECT_EQ(good("ref=7%3A1311").ref->ino, 1311U);
  EXPECT_EQ(good("ref=/").ref->path, "/");
  for (const auto* bad :
       {"ref=", "ref=a", "ref=-1", "ref=7:", "ref=:7", "ref=1:2:3", "ref=18446744073709551616"}) {
    EXPECT_NE(why_bad(bad), "") << bad;
  }
}

TEST(Query, ModeHasShortNames) {
  EXPECT_EQ(good("mode=exclusive").mode, "API_BYTE_RANGE_EXCLUSIVE");
  EXPECT_EQ(good("mode=API_BYTE_RANGE_WRITE_OP").mode, "API_BYTE_RANGE_WRITE_OP");
  EXPECT_NE(why_bad("mode=Exclusive"), "");
  EXPECT_NE(why_bad("mode="), "");
}

TEST(Query, MalformedSaysWhatIsWrong) {
  EXPECT_NE(why_bad("colour=red").find("unknown key \"colour\""), std::string::npos);
  EXPECT_NE(why_bad("pid=1&pid=1").find("twice"), std::string::npos);
  EXPECT_NE(why_bad("pid=").find("pid"), std::string::npos);
  EXPECT_NE(why_bad("pid=4294967296").find("pid"), std::string::npos);
  EXPECT_NE(why_bad("limit=0").find("limit"), std::string::npos);
  EXPECT_NE(why_bad("limit=99999999999999999999").find("limit"), std::string::npos);
  EXPECT_NE(why_bad("ref=%2").find("%-escape"), std::string::npos);
  EXPECT_NE(why_bad("ref=%00").find("NUL"), std::string::npos);
  for (const auto* bad : {"pid", "&", "pid=1&", "&pid=1", "pid=1&&uid=2", "=1", "PID=1", "after=x",
                          "owner_id=12", "uid=-1", "uid=alice"}) {
    EXPECT_NE(why_bad(bad), "") << bad;
  }
}

TEST(Query, EmptyStringsAreValuesWhereStringsAre) {
  EXPECT_EQ(good("snapshot=").snapshot, "");
  EXPECT_EQ(good("owner_name=").owner_name, "");
  EXPECT_TRUE(good("after=").after.at_start);
}

TEST(Query, CanonicalIsOneSpelling) {
  EXPECT_EQ(canonical(good("uid=2&pid=1")), canonical(good("pid=01&uid=2")));
  EXPECT_EQ(canonical(good("mode=shared")), canonical(good("mode=API_BYTE_RANGE_SHARED")));
  EXPECT_EQ(canonical(good("ref=%2Fa")), canonical(good("ref=/a")));
  EXPECT_EQ(canonical(good("after=")), "");
  EXPECT_NE(canonical(good("ref=%2Fa%26uid%3D1")), canonical(good("ref=%2Fa&uid=1")));
  const std::string text = canonical(
      good("mode=exclusive&uid=1&pid=2&owner_address=a&owner_name=b+c&owner_id="
           "0000000000000001-1-00000000000000ff&snapshot=&limit=9&after=1.2.3.4.5.6&ref=8:9"));
  EXPECT_EQ(canonical(good(text)), text);
}

}  // namespace
}  // namespace latchfs::control
