// Reading `filelock` and `filelock?…`.
#include <fcntl.h>
#include <fmt/core.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <set>

#include "control/renderings.h"
#include "control/text.h"
#include "support/control_world.h"

namespace latchfs::testing {
namespace {

using nlohmann::json;
using Names = std::vector<std::string>;

Names paths(const json& listing) {
  Names out;
  for (const json& line : listing.at("filelocks")) out.push_back(line.at("path"));
  return out;
}
std::string next_of(const json& listing) { return listing.at("paging").at("next"); }
std::size_t size_of(ControlWorld& world, const char* name = "filelock",
                    const Caller& caller = kRoot) {
  return static_cast<std::size_t>(world.walk(name, caller)->attr.st_size);
}

void fill(ControlWorld& world, int count, uid_t uid = 0) {
  for (int i = 0; i < count; ++i) {
    const std::string path = fmt::format("/{:05}", i);
    world.filelocks.add(path, {FakeFiles::kDev, static_cast<std::uint64_t>(i) + 5000}, uid);
  }
}

TEST(ControlFilelockList, NoneAndOne) {
  ControlWorld world;
  EXPECT_EQ(world.cat("filelock"), "{\"filelocks\": [\n], \"paging\": {\"next\": \"\"}}\n");
  const FileId id = world.files.file("/a", 1000);
  world.filelocks.add("/a", id, 1000, {{"ticket", "42"}});
  EXPECT_EQ(world.cat("filelock"),
            "{\"filelocks\": [\n"
            "{\"path\": \"/a\", \"file_id\": \"" +
                std::to_string(id.ino) +
                "\", \"user\": \"alice\", \"uid\": 1000, "
                "\"locked_at\": \"2026-11-21T09:30:00.123456Z\", \"tags\": {\"ticket\": \"42\"}, "
                "\"state\": \"locked\"}\n"
                "], \"paging\": {\"next\": \"\"}}\n");
}

TEST(ControlFilelockList, OddNamesStatesAndDevices) {
  ControlWorld world;
  world.filelocks.add("/a\"\n\\", {99, 5}, 4242, {{"\n", "\xFF\""}}, "orphaned");
  world.filelocks.add("/caf\xE9", {FakeFiles::kDev, 6}, 1000, {}, "damaged");
  const json listing = world.json("filelock");
  EXPECT_EQ(listing["filelocks"][0], (json{{"path", "/a\"\n\\"},
                                           {"file_id", "99:5"},
                                           {"user", ""},
                                           {"uid", 4242},
                                           {"locked_at", "2026-11-21T09:30:00.123456Z"},
                                           {"tags", {{"\n", "\uFFFD\""}}},
                                           {"state", "orphaned"}}));
  EXPECT_EQ(listing["filelocks"][1]["path"], "/caf\uFFFD");
  EXPECT_EQ(listing["filelocks"][1]["state"], "damaged");
}

TEST(ControlFilelockList, Filters) {
  ControlWorld world;
  const FileId a = world.files.file("/a", 1000);
  const FileId b = world.files.file("/b", 1001);
  world.files.file("/free");
  world.filelocks.add("/a", a, 1000);
  world.filelocks.add("/b", b, 1001);
  EXPECT_EQ(paths(world.json("filelock?uid=1000")), Names{"/a"});
  EXPECT_EQ(paths(world.json("filelock?user=bob")), Names{"/b"});
  EXPECT_EQ(paths(world.json("filelock?user=bob&uid=1000")), Names{});
  EXPECT_EQ(paths(world.json("filelock?")), (Names{"/a", "/b"}));
  EXPECT_EQ(world.walk("filelock?")->node, world.walk("filelock")->node);
  EXPECT_EQ(world.walk("filelock?")->attr.st_mode, mode_t{S_IFREG | 0666});
  const std::uint64_t walks = world.filelocks.list_calls;
  EXPECT_EQ(paths(world.json("filelock?ref=%2Fb")), Names{"/b"});
  EXPECT_EQ(paths(world.json("filelock?ref=%2Fmnt%2Fdata%2Fb")), Names{"/b"});
  EXPECT_EQ(paths(world.json("filelock?ref=%2Ffree")), Names{});
  EXPECT_EQ(paths(world.json("filelock?ref=%2Fb&after=%2Fb")), Names{});
  EXPECT_EQ(world.filelocks.list_calls, walks) << "a path is asked for by itself";
  EXPECT_EQ(world.walk("filelock?ref=%2Fmissing").error().value(), ENOENT);
  EXPECT_EQ(paths(world.json("filelock?ref=" + std::to_string(b.ino))), Names{"/b"});
  EXPECT_EQ(paths(world.json("filelock?ref=7:" + std::to_string(b.ino))), Names{"/b"});
  EXPECT_EQ(paths(world.json("filelock?ref=8:" + std::to_string(b.ino))), Names{});
}

TEST(ControlFilelockList, WrongQueries) {
  ControlWorld world;
  for (const auto* bad : {"pid=1", "owner_id=x", "tag=x", "owner_name=x", "mode=shared", "limit=0",
                          "limit=x", "uid=alice", "uid=1&uid=1", "ref=a", "ref=", "after=a",
                          "after=0.7.3e9.0.0.1", "after=%252", "&", "x"}) {
    EXPECT_EQ(world.walk("filelock?" + std::string{bad}).error().value(), EINVAL) << bad;
  }
}

TEST(ControlFilelockList, OthersSeeTheirOwnAndWhatTheyMayRead) {
  ControlWorld world;
  world.filelocks.add("/alices", world.files.file("/alices", 1000, 0600), 1000);
  world.filelocks.add("/gone", {FakeFiles::kDev, 1}, 1000, {}, "orphaned");
  world.files.directory("/shut", 0, 0700);
  world.filelocks.add("/shut/in", world.files.file("/shut/in", 0, 0644), 0);
  world.filelocks.add("/shown", world.files.file("/shown", 0, 0644), 0);
  EXPECT_EQ(paths(world.json("filelock", kAlice)), (Names{"/alices", "/gone", "/shown"}));
  EXPECT_EQ(paths(world.json("filelock", kBob)), Names{"/shown"});
  EXPECT_EQ(paths(world.json("filelock?ref=%2Falices", kBob)), Names{});
  EXPECT_EQ(paths(world.json("filelock")).size(), 4U);
  world.files.admins.insert(1001);
  EXPECT_EQ(paths(world.json("filelock", kBob)).size(), 4U);
}

TEST(ControlFilelockList, PagesSkipAndRepeatNothing) {
  ControlWorld world;
  fill(world, 700);
  for (const std::size_t page_size : {std::size_t{1000}, std::size_t{7}}) {
    world.filelocks.page_size = page_size;
    for (const std::size_t limit : {1U, 3U, 7U, 256U, 257U, 699U, 700U, 701U}) {
      Names all;
      std::string next;
      std::size_t turns = 0;
      do {
        const json page = world.json(
            fmt::format("filelock?limit={}{}{}", limit, next.empty() ? "" : "&after=", next));
        const Names some = paths(page);
        ASSERT_LE(some.size(), limit);
        ASSERT_FALSE(some.empty());
        all.insert(all.end(), some.begin(), some.end());
        next = next_of(page);
        ++turns;
      } while (!next.empty());
      ASSERT_EQ(all.size(), 700U) << limit;
      EXPECT_EQ(std::set<std::string>(all.begin(), all.end()).size(), 700U);
      EXPECT_EQ(turns, (700 + limit - 1) / limit) << "the last page knows that it is";
    }
  }
}

TEST(ControlFilelockList, NextIsTakenAsItStandsAndEncoded) {
  ControlWorld world;
  world.filelocks.add("/a b%\xE9", {FakeFiles::kDev, 1}, 0);
  world.filelocks.add("/c", {FakeFiles::kDev, 2}, 0);
  const std::string next = next_of(world.json("filelock?limit=1"));
  EXPECT_EQ(next, "%2Fa%20b%25%E9");
  EXPECT_EQ(paths(world.json("filelock?after=" + next)), Names{"/c"});
  EXPECT_EQ(paths(world.json("filelock?after=" + control::url_encode(next))), Names{"/c"});
  EXPECT_EQ(world.walk("filelock?after=" + next)->node,
            world.walk("filelock?after=" + control::url_encode(next))->node);
}

TEST(ControlFilelockList, EmptyPagesAreGoneThrough) {
  ControlWorld world;
  fill(world, 500);
  world.filelocks.page_size = 10;
  world.filelocks.unseen = [](const std::string& path) { return path < "/00400"; };
  EXPECT_EQ(paths(world.json("filelock")).size(), 100U);
  EXPECT_EQ(paths(world.json("filelock?limit=2")), (Names{"/00400", "/00401"}));
}

TEST(ControlFilelockList, LargeOnesAreMadeAsTheyAreRead) {
  ControlWorld world;
  fill(world, 40'000);
  const std::string text = world.cat("filelock");
  EXPECT_GT(text.size(), std::size_t{5} << 20);
  EXPECT_EQ(paths(parse_json(text)).size(), 40'000U);
  const auto fh = world.tree().open(world.walk("filelock")->node, O_RDONLY, kRoot).value();
  for (const std::uint64_t offset : {5'000'000U, 4'500'000U, 10U, 4'194'000U, 1'000'000U}) {
    EXPECT_EQ(world.tree().read(fh, offset, 9999, kAlice).value(), text.substr(offset, 9999))
        << offset;
  }
  const auto calls = world.filelocks.list_calls;
  static_cast<void>(world.tree().read(fh, 1'009'999, 100, kAlice).value());
  EXPECT_LE(world.filelocks.list_calls, calls + 1) << "reading on is not reading anew";
  world.tree().release(fh);
}

TEST(ControlFilelockList, ErrorsComeThrough) {
  ControlWorld world;
  const auto node = world.walk("filelock")->node;
  world.filelocks.list_error = EIO;
  world.filelocks.add("/a", {FakeFiles::kDev, 1}, 0);  // what was kept is old
  EXPECT_EQ(world.walk("filelock").error().value(), EIO);
  EXPECT_EQ(world.tree().open(node, O_RDONLY, kRoot).error().value(), EIO);
  const auto fh = world.tree().open(node, O_RDWR, kRoot).value();
  EXPECT_EQ(world.tree().read(fh, 0, 10, kAlice).error().value(), EIO);
  world.filelocks.list_error = 0;
  EXPECT_TRUE(world.tree().read(fh, 0, 10, kAlice).ok()) << "it may be better the next time";
}

// ---- sizes

TEST(ControlFilelockSize, IsTruthfulAndFollowsChanges) {
  ControlWorld world;
  for (const auto* name : {"filelock", "filelock?uid=0"}) {
    EXPECT_EQ(size_of(world, name), world.cat(name).size());
  }
  const auto before = world.walk("filelock")->attr;
  EXPECT_EQ(world.walk("filelock")->attr.st_mtim.tv_nsec, before.st_mtim.tv_nsec);
  fill(world, 10);
  const auto after = world.walk("filelock")->attr;
  EXPECT_GT(after.st_size, before.st_size);
  EXPECT_NE(std::pair(after.st_mtim.tv_sec, after.st_mtim.tv_nsec),
            std::pair(before.st_mtim.tv_sec, before.st_mtim.tv_nsec));
  for (const auto* name : {"filelock", "filelock?uid=0"}) {
    EXPECT_EQ(size_of(world, name), world.cat(name).size());
  }
  world.filelocks.erase("/00003");
  EXPECT_EQ(size_of(world), world.cat("filelock").size());
}

TEST(ControlFilelockSize, ALookupDoesNotWalkALargeTree) {
  ControlWorld world;
  fill(world, 2000);
  EXPECT_EQ(size_of(world), control::Renderings::kUnknownSize) << "not known yet, and not nothing";
  EXPECT_EQ(world.filelocks.list_calls, 1U);
  for (int i = 0; i < 100; ++i) size_of(world);
  EXPECT_EQ(world.filelocks.list_calls, 1U) << "asked once";
  const std::size_t size = world.cat("filelock").size();
  EXPECT_GT(size, 200'000U);
  const auto calls = world.filelocks.list_calls;
  EXPECT_EQ(size_of(world), size) << "known from now on";
  EXPECT_EQ(world.filelocks.list_calls, calls);
  world.filelocks.add("/z", {FakeFiles::kDev, 1}, 0);
  EXPECT_EQ(size_of(world), size) << "the last one known";
  EXPECT_EQ(world.filelocks.list_calls, calls + 1);
  EXPECT_EQ(paths(world.json("filelock")).size(), 2001U);
}

TEST(ControlFilelockSize, IsKnownToAllOfAUsersProcessesOnceOneHasRead) {
  ControlWorld world;
  fill(world, 2000);
  const Caller one{1000, 1000, 11, 022};
  const Caller other{1000, 1000, 12, 022};
  EXPECT_EQ(size_of(world, "filelock", one), control::Renderings::kUnknownSize);
  const std::size_t size = world.cat("filelock", other).size();
  EXPECT_EQ(size_of(world, "filelock", other), size);
  const auto calls = world.filelocks.list_calls;
  EXPECT_EQ(size_of(world, "filelock", one), size) << "though it was asked before";
  EXPECT_EQ(world.filelocks.list_calls, calls);
}

TEST(ControlFilelockSize, IsEachViewersOwn) {
  ControlWorld world;
  world.filelocks.add("/a", world.files.file("/a", 1000, 0600), 1000);
  EXPECT_GT(size_of(world, "filelock", kAlice), size_of(world, "filelock", kBob));
  EXPECT_EQ(size_of(world, "filelock", kBob), world.cat("filelock", kBob).size());
  EXPECT_EQ(size_of(world, "filelock", kAlice), world.cat("filelock", kAlice).size());
}

TEST(ControlFilelockSize, WritingNeedsNoListing) {
  ControlWorld world;
  fill(world, 2000);
  world.files.file("/a");
  size_of(world);
  const auto calls = world.filelocks.list_calls;
  EXPECT_EQ(world.echo_to("filelock", "/a\n"), 0);
  EXPECT_EQ(world.filelocks.list_calls, calls);
}

}  // namespace
}  // namespace latchfs::testing
