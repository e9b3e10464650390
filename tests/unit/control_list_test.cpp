#include <fcntl.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "support/control_world.h"

namespace latchfs::testing {
namespace {

using nlohmann::json;

std::vector<std::string> paths(const json& listing, const char* top = "grants") {
  std::vector<std::string> out;
  for (const json& line : listing.at(top)) out.push_back(line.at("path"));
  return out;
}

TEST(ControlList, EmptyTable) {
  ControlWorld world;
  EXPECT_EQ(world.cat("list"), "{\"grants\": [\n], \"paging\": {\"next\": \"\"}}\n");
  EXPECT_EQ(world.cat("waiters"), "{\"waiters\": [\n], \"paging\": {\"next\": \"\"}}\n");
}

TEST(ControlList, OneGrantIsOneLineWithTheContractsFieldsInOrder) {
  ControlWorld world;
  world.files.directory("/db");
  const FileId id = world.files.file("/db/app.sqlite");
  Grant held = grant(id, 0xAB, range(0, 100), 1000);
  held.waiters = 2;
  world.locks.add(held);
  EXPECT_EQ(world.cat("list"),
            "{\"grants\": [\n"
            "{\"file_id\": \"" +
                std::to_string(id.ino) +
                "\", \"stream_id\": \"0\", \"snapshot_id\": \"\", "
                "\"mode\": [\"API_BYTE_RANGE_EXCLUSIVE\"], \"offset\": \"0\", \"size\": \"100\", "
                "\"owner_id\": \"0000000000000001-0-00000000000000ab\", "
                "\"owner_name\": \"build7\", \"owner_address\": \"127.0.0.1\", "
                "\"node_address\": \"127.0.0.1\", \"path\": \"/db/app.sqlite\", "
                "\"kind\": \"posix\", \"pid\": 4711, \"comm\": \"sqlite3\", \"uid\": 1000, "
                "\"acquired_at\": \"2026-11-21T09:30:00.123456Z\", \"waiters\": 2}\n"
                "], \"paging\": {\"next\": \"\"}}\n");
}

TEST(ControlList, KindsModesAndRanges) {
  ControlWorld world;
  const FileId id = world.files.file("/f");
  struct Case {
    LockKind kind;
    LockMode mode;
    const char* kind_text;
    const char* mode_text;
  };
  const Case cases[] = {{LockKind::kPosix, LockMode::kShared, "posix", "API_BYTE_RANGE_SHARED"},
                        {LockKind::kOfd, LockMode::kExclusive, "ofd", "API_BYTE_RANGE_EXCLUSIVE"},
                        {LockKind::kFlock, LockMode::kShared, "flock", "API_BYTE_RANGE_SHARED"},
                        {LockKind::kFcntl, LockMode::kExclusive, "", "API_BYTE_RANGE_EXCLUSIVE"},
                        {LockKind::kReadOp, LockMode::kShared, "", "API_BYTE_RANGE_READ_OP"},
                        {LockKind::kWriteOp, LockMode::kExclusive, "", "API_BYTE_RANGE_WRITE_OP"}};
  std::uint64_t key = 1;
  for (const Case& c : cases) {
    Grant held = grant(id, key, range(key, 0), 0, c.mode);
    held.kind = c.kind;
    world.locks.add(held);
    ++key;
  }
  const json listing = world.json("list");
  ASSERT_EQ(listing["grants"].size(), std::size(cases));
  for (std::size_t i = 0; i < std::size(cases); ++i) {
    const json& line = listing["grants"][i];
    EXPECT_EQ(line["kind"], cases[i].kind_text);
    EXPECT_EQ(line["mode"], json::array({cases[i].mode_text}));
    EXPECT_EQ(line["offset"], std::to_string(i + 1));
    EXPECT_EQ(line["size"], "0") << "to the maximum file size";
  }
}

TEST(ControlList, FilesOnAnotherDeviceHaveItInTheirId) {
  ControlWorld world;
  const FileId other = world.files.make("/other", S_IFREG | 0644, 0, 99);
  const FileId id = world.files.file("/f");
  world.locks.add(grant(other, 1, range(0, 1), 0));
  world.locks.add(grant(id, 2, range(0, 1), 0));
  const std::string text = "99:" + std::to_string(other.ino);
  EXPECT_EQ(paths(world.json("list?ref=" + text)), std::vector<std::string>{"/other"});
  EXPECT_EQ(world.json("list?ref=" + text)["grants"][0]["file_id"], text);
  EXPECT_EQ(paths(world.json("list?ref=" + std::to_string(id.ino))),
            std::vector<std::string>{"/f"});
  EXPECT_EQ(paths(world.json("list?ref=7:" + std::to_string(id.ino))),
            std::vector<std::string>{"/f"});
}

TEST(ControlList, OddNamesGiveValidJson) {
  ControlWorld world;
  const FileId quoted = world.files.file("/a\"\n\\b");
  const FileId bytes = world.files.file("/caf\xE9");
  world.locks.add(grant(quoted, 1, range(0, 1), 0));
  Grant held = grant(bytes, 2, range(0, 1), 0);
  held.holder.comm.fill('x');  // no NUL at the end
  world.locks.add(held);
  const std::string text = world.cat("list");
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 4);
  const json listing = parse_json(text);
  EXPECT_EQ(listing["grants"][0]["path"], "/a\"\n\\b");
  EXPECT_EQ(listing["grants"][1]["path"], "/caf\uFFFD");
  EXPECT_EQ(listing["grants"][1]["comm"], std::string(16, 'x'));
  EXPECT_EQ(paths(world.json("list?ref=%2Fcaf%E9")), std::vector<std::string>{"/caf\uFFFD"});
}

TEST(ControlList, FiltersByEachKey) {
  ControlWorld world;
  const FileId a = world.files.file("/a");
  const FileId b = world.files.file("/b");
  Grant one = grant(a, 1, range(0, 1), 1000, LockMode::kShared);
  one.holder.pid = 11;
  Grant two = grant(b, 2, range(0, 1), 1001);
  two.holder.pid = 22;
  world.locks.add(one);
  world.locks.add(two);
  const auto only = [&world](const std::string& query) {
    return paths(world.json("list?" + query));
  };
  const std::vector<std::string> none;
  const std::vector<std::string> just_a{"/a"};
  const std::vector<std::string> both{"/a", "/b"};
  EXPECT_EQ(only("ref=%2Fa"), just_a);
  EXPECT_EQ(only("ref=%2Fmnt%2Fdata%2Fa"), just_a) << "with the mount point in front";
  EXPECT_EQ(only("pid=11"), just_a);
  EXPECT_EQ(only("uid=1000"), just_a);
  EXPECT_EQ(only("mode=shared"), just_a);
  EXPECT_EQ(only("owner_id=" + to_string(one.owner)), just_a);
  EXPECT_EQ(only("owner_name=build7"), both);
  EXPECT_EQ(only("owner_name=other"), none);
  EXPECT_EQ(only("owner_address=127.0.0.1"), both);
  EXPECT_EQ(only("owner_address="), none);
  EXPECT_EQ(only("snapshot="), both);
  EXPECT_EQ(only("snapshot=daily"), none);
  EXPECT_EQ(only("pid=11&uid=1001"), none);
  EXPECT_EQ(only(""), both);
}

TEST(ControlList, RefThatIsNotThere) {
  ControlWorld world;
  world.files.directory("/private", 1000, 0700);
  world.files.file("/private/f", 1000);
  world.files.make("/link", S_IFLNK | 0777, 0);
  EXPECT_EQ(world.walk("list?ref=%2Fnone").error().value(), ENOENT);
  EXPECT_EQ(world.walk("list?ref=%2Flink").error().value(), ELOOP);
  EXPECT_EQ(world.walk("list?ref=%2Fprivate%2Ff", kBob).error().value(), EACCES);
  EXPECT_TRUE(world.walk("list?ref=%2Fprivate%2Ff", kAlice).ok());
  EXPECT_TRUE(world.walk("list?ref=999999").ok()) << "a number is not checked";
}

TEST(ControlList, APathInTheMountGoesBeforeTheMountPointInFront) {
  ControlWorld world;
  world.files.directory("/mnt");
  world.files.directory("/mnt/data");
  const FileId inner = world.files.file("/mnt/data/f");
  const FileId outer = world.files.file("/f");
  world.locks.add(grant(inner, 1, range(0, 1), 0));
  world.locks.add(grant(outer, 2, range(0, 1), 0));
  EXPECT_EQ(paths(world.json("list?ref=%2Fmnt%2Fdata%2Ff")),
            std::vector<std::string>{"/mnt/data/f"});
  EXPECT_EQ(world.walk("list?ref=%2Fmnt%2Fdatabase").error().value(), ENOENT);
}

TEST(ControlList, PagesByLimitAndAfterGiveEveryGrantOnce) {
  ControlWorld world;
  std::vector<std::string> all;
  for (int i = 0; i < 1000; ++i) {
    const std::string path = "/f" + std::to_string(i);
    const FileId id = world.files.file(path);
    world.locks.add(grant(id, static_cast<std::uint64_t>(i) + 1, range(0, 1), i % 3 == 0 ? 1 : 2));
    if (i % 3 == 0) all.push_back(path);
  }
  for (const std::string limit : {"1", "7", "100", "333", "334", "335", "5000"}) {
    std::vector<std::string> seen;
    std::string after;
    int pages = 0;
    do {
      const json page = world.json("list?uid=1&limit=" + limit + "&after=" + after);
      EXPECT_LE(page["grants"].size(), std::stoul(limit));
      for (const std::string& path : paths(page)) seen.push_back(path);
      after = page["paging"]["next"];
      ++pages;
    } while (!after.empty() && pages < 1000);
    EXPECT_EQ(seen, all) << "limit " << limit;
  }
}

TEST(ControlList, PagingOverChangesSkipsAndRepeatsNothingThatStayed) {
  ControlWorld world;
  std::vector<FileId> ids;
  for (int i = 0; i < 100; ++i) {
    ids.push_back(world.files.file("/f" + std::to_string(i)));
    world.locks.add(grant(ids.back(), static_cast<std::uint64_t>(i) + 1, range(0, 1), 0));
  }
  // While pages are made others come and go, before and after the place.
  std::uint64_t step = 1000;
  world.locks.on_list = [&] {
    world.locks.add(grant(ids[step % 100], step, range(50, 1), 5));
    world.locks.remove({1, step - 3, OwnerSpace::kRange});
    ++step;
  };
  std::vector<std::string> seen;
  std::string after;
  do {
    const json page = world.json("list?limit=7&after=" + after);
    for (const json& line : page["grants"]) {
      if (line["uid"] == 0) seen.push_back(line["path"]);
    }
    after = page["paging"]["next"];
  } while (!after.empty());
  ASSERT_EQ(seen.size(), 100U);
  for (int i = 0; i < 100; ++i)
    EXPECT_EQ(seen[static_cast<std::size_t>(i)], "/f" + std::to_string(i));
}

TEST(ControlList, WithoutLimitThereIsNoNext) {
  ControlWorld world;
  const FileId id = world.files.file("/f");
  for (std::uint64_t i = 1; i <= 600; ++i) world.locks.add(grant(id, i, range(i, 1), 0));
  const json listing = world.json("list");
  EXPECT_EQ(listing["grants"].size(), 600U);
  EXPECT_EQ(listing["paging"]["next"], "");
}

TEST(ControlList, AStoreThatCutsPagesShort) {
  ControlWorld world;
  const FileId id = world.files.file("/f");
  for (std::uint64_t i = 1; i <= 50; ++i) world.locks.add(grant(id, i, range(i, 1), 0));
  world.locks.cut_pages_to(1);
  EXPECT_EQ(world.json("list")["grants"].size(), 50U);
  EXPECT_EQ(world.json("list?limit=3")["grants"].size(), 3U);
}

TEST(ControlList, NonAdminsSeeTheirOwnAndWhatTheyCouldRead) {
  ControlWorld world;
  world.files.directory("/secret", 0, 0700);
  world.locks.add(grant(world.files.file("/open", 0, 0644), 1, range(0, 1), 1001));
  world.locks.add(grant(world.files.file("/closed", 0, 0600), 2, range(0, 1), 1001));
  world.locks.add(grant(world.files.file("/secret/f", 0, 0644), 3, range(0, 1), 1001));
  world.locks.add(grant(world.files.file("/mine", 0, 0600), 4, range(0, 1), 1000));
  const FileId deleted{FakeFiles::kDev, 5000};
  world.locks.add(grant(deleted, 5, range(0, 1), 1001));
  world.locks.add(grant(deleted, 6, range(5, 1), 1000));
  EXPECT_EQ(paths(world.json("list", kAlice)), (std::vector<std::string>{"/open", "/mine", ""}));
  EXPECT_EQ(world.json("list")["grants"].size(), 6U);
  world.files.admins.insert(1000);
  EXPECT_EQ(world.json("list", kAlice)["grants"].size(), 6U);
}

TEST(ControlList, WhatLiesOutsideTheMountIsListedForNobody) {
  ControlWorld world;
  const FileId id = world.files.file("/f");
  const FileId elsewhere{FakeFiles::kDev, 4242};
  world.files.outside.insert(elsewhere);
  world.locks.add(grant(id, 1, range(0, 1), 1000));
  world.locks.add(grant(elsewhere, 2, range(0, 1), 1000));
  EXPECT_EQ(world.json("list")["grants"].size(), 1U);
  EXPECT_EQ(world.json("list", kAlice)["grants"].size(), 1U);
}

TEST(ControlList, AGrantWithoutPathTakesThatOfTheFilesNext) {
  ControlWorld world;
  const FileId id = world.files.file("/f");
  world.locks.add(grant(id, 1, range(0, 1), 0));
  world.files.unnamed.insert(id);
  EXPECT_EQ(paths(world.json("list")), std::vector<std::string>{""});
}

TEST(ControlList, LocatesEachFileOnce) {
  ControlWorld world;
  const FileId a = world.files.file("/a");
  const FileId b = world.files.file("/b");
  for (std::uint64_t i = 1; i <= 200; ++i) {
    world.locks.add(grant(i <= 100 ? a : b, i, range(i, 1), 0));
  }
  world.cat("list");
  EXPECT_EQ(world.files.locates, 2U) << "lookup, open and reading share one rendering";
}

TEST(ControlList, SnapshotIsTheDirectoryThatMatchesTheGlob) {
  auto options = ControlWorld::default_options();
  options.snapshots = "/.snapshots/*/";
  ControlWorld world{options};
  world.files.directory("/.snapshots");
  world.files.directory("/.snapshots/daily1");
  world.files.directory("/.snapshots/daily1/db");
  world.locks.add(grant(world.files.file("/.snapshots/daily1/db/x"), 1, range(0, 1), 0));
  world.locks.add(grant(world.files.file("/.snapshots/plain"), 2, range(0, 1), 0));
  const json listing = world.json("list");
  EXPECT_EQ(listing["grants"][0]["snapshot_id"], "daily1");
  EXPECT_EQ(listing["grants"][1]["snapshot_id"], "") << "the file itself is no directory above it";
  EXPECT_EQ(paths(world.json("list?snapshot=daily1")),
            std::vector<std::string>{"/.snapshots/daily1/db/x"});
  EXPECT_EQ(paths(world.json("list?snapshot=")), std::vector<std::string>{"/.snapshots/plain"});
}

TEST(ControlWaiters, SayWhatBlocksThem) {
  ControlWorld world;
  const FileId id = world.files.file("/f");
  const Grant held = grant(id, 1, range(0, 0), 1001);
  Grant wanted = grant(id, 2, range(5, 10), 1000, LockMode::kShared);
  wanted.holder.pid = 99;
  world.locks.add(held);
  world.locks.add_waiter({wanted, held});
  world.locks.add_waiter({grant(id, 3, range(20, 1), 1000), std::nullopt});
  const json listing = world.json("waiters");
  ASSERT_EQ(listing["waiters"].size(), 2U);
  const json& first = listing["waiters"][0];
  EXPECT_EQ(first["blocked_at"], "2026-11-21T09:30:00.123456Z");
  EXPECT_FALSE(first.contains("acquired_at"));
  EXPECT_EQ(first["pid"], 99);
  const json& blocker = first["blocked_by"];
  EXPECT_EQ(blocker["owner_id"], to_string(held.owner));
  EXPECT_EQ(blocker["pid"], 4711);
  EXPECT_EQ(blocker["uid"], 1001);
  EXPECT_EQ(blocker["comm"], "sqlite3");
  EXPECT_EQ(blocker["kind"], "posix");
  EXPECT_EQ(blocker["mode"], json::array({"API_BYTE_RANGE_EXCLUSIVE"}));
  EXPECT_EQ(blocker["offset"], "0");
  EXPECT_EQ(blocker["size"], "0");
  EXPECT_TRUE(listing["waiters"][1]["blocked_by"].is_null());
  EXPECT_EQ(world.json("waiters?pid=99")["waiters"].size(), 1U);
}

TEST(ControlWaiters, ABlockerTheReaderMayNotSeeStaysNameless) {
  ControlWorld world;
  const FileId id = world.files.file("/f", 0, 0200);
  const Grant held = grant(id, 1, range(0, 100), 1001);
  world.locks.add(held);
  world.locks.add_waiter({grant(id, 2, range(5, 10), 1000), held});
  EXPECT_EQ(world.json("list", kAlice)["grants"].size(), 0U);
  const json listing = world.json("waiters", kAlice);
  ASSERT_EQ(listing["waiters"].size(), 1U);
  const json& blocker = listing["waiters"][0]["blocked_by"];
  EXPECT_EQ(blocker["owner_id"], "");
  EXPECT_EQ(blocker["pid"], 0);
  EXPECT_TRUE(blocker["uid"].is_null());
  EXPECT_EQ(blocker["comm"], "");
  EXPECT_EQ(blocker["size"], "100") << "as F_GETLK tells him";
  EXPECT_EQ(world.json("waiters", kBob)["waiters"].size(), 0U);
}

TEST(ControlList, ATableThatFailsIsAnError) {
  ControlWorld world;
  world.locks.fail_lists(EIO);
  EXPECT_EQ(world.walk("list").error().value(), EIO);
  EXPECT_EQ(world.walk("waiters").error().value(), EIO);
  EXPECT_EQ(world.tree().open(control::kControlBit | 3, O_RDONLY, kRoot).error().value(), EIO);
}

}  // namespace
}  // namespace latchfs::testing
