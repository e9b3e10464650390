#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "base/log.h"
#include "support/control_world.h"

namespace latchfs::testing {
namespace {

using nlohmann::json;

class ControlRelease : public ::testing::Test {
 protected:
  ControlRelease() {
    world.files.directory("/a");
    file = world.files.file("/a/b", 0, 0644);
    held = grant(file, 0xAB, range(0, 100), 1000);
    world.locks.add(held);
    owner = to_string(held.owner);
  }

  std::string query(const std::string& offset = "0", const std::string& size = "0",
                    const std::string& ref = "%2Fa%2Fb") const {
    return "ref=" + ref + "&offset=" + offset + "&size=" + size + "&owner_id=" + owner;
  }
  std::string object(const std::string& offset = "0", const std::string& size = "0",
                     const std::string& ref = "/a/b") const {
    return dump(json{{"ref", ref}, {"offset", offset}, {"size", size}, {"owner_id", owner}});
  }
  json reply(const Caller& caller = kRoot) { return world.json("reply", caller); }
  void expect_untouched() {
    EXPECT_TRUE(world.locks.breaks().empty());
    ASSERT_EQ(world.locks.grants().size(), 1U);
    EXPECT_EQ(world.locks.grants()[0].range, held.range);
  }

  ControlWorld world;
  FileId file;
  Grant held;
  std::string owner;
};

TEST_F(ControlRelease, JsonAndQueryForm) {
  EXPECT_EQ(world.echo(object() + "\n"), 0);
  EXPECT_TRUE(world.locks.grants().empty());
  world.locks.add(held);
  EXPECT_EQ(world.echo(object()), 0) << "without newline";
  world.locks.add(held);
  EXPECT_EQ(world.echo(query() + "\n"), 0);
  world.locks.add(held);
  EXPECT_EQ(world.echo(query()), 0) << "complete at close";
  world.locks.add(held);
  EXPECT_EQ(world.echo(query() + "\r\n"), 0);
  world.locks.add(held);
  const std::string numbers = dump(
      json{{"ref", file.ino}, {"offset", 0}, {"size", 100}, {"owner_id", owner}, {"snapshot", ""}},
      2);
  EXPECT_EQ(world.echo("\n " + numbers + " \n\n"), 0) << "integers, white space, a file id";
  EXPECT_TRUE(world.locks.grants().empty());
}

TEST_F(ControlRelease, PartOfALock) {
  EXPECT_EQ(world.echo(query("10", "20")), 0);
  const auto rest = world.locks.grants();
  ASSERT_EQ(rest.size(), 2U);
  EXPECT_EQ(rest[0].range, range(0, 10));
  EXPECT_EQ(rest[1].range, range(30, 70));
  const json answer = reply();
  EXPECT_EQ(answer["ref"], "/a/b");
  EXPECT_EQ(answer["count"], 1);
  ASSERT_EQ(answer["released"].size(), 1U);
  EXPECT_EQ(answer["released"][0]["offset"], "10");
  EXPECT_EQ(answer["released"][0]["size"], "20");
  EXPECT_EQ(answer["released"][0]["owner_id"], owner);
  EXPECT_EQ(answer["released"][0]["path"], "/a/b");
  EXPECT_EQ(answer["released"][0]["file_id"], std::to_string(file.ino));
  EXPECT_FALSE(answer["released"][0].contains("waiters"));
  EXPECT_FALSE(answer.contains("error"));
}

TEST_F(ControlRelease, TheMountPointMayStandInFront) {
  EXPECT_EQ(world.echo(object("0", "0", "/mnt/data/a/b")), 0);
  EXPECT_TRUE(world.locks.grants().empty());
}

TEST_F(ControlRelease, AllFourAreRequired) {
  for (const std::string key : {"ref", "offset", "size", "owner_id"}) {
    json request = parse_json(object());
    request.erase(key);
    EXPECT_EQ(world.echo(dump(request)), EINVAL) << key;
    EXPECT_NE(reply()["error"]["user_message"].get<std::string>().find(key + " is missing"),
              std::string::npos);
    EXPECT_EQ(reply()["error"]["code"], "400");
  }
  expect_untouched();
}

TEST_F(ControlRelease, BadInputIsEinvalAndChangesNothing) {
  const auto with = [this](const std::string& key, const json& value) {
    json request = parse_json(object());
    request[key] = value;
    return dump(request);
  };
  const std::vector<std::string> bad{"[]",
                                     "\"x\"",
                                     "17",
                                     "null",
                                     "}",
                                     "{]",
                                     "{}",
                                     "{\"ref\" \"/a/b\"}",
                                     "nonsense",
                                     "=",
                                     "&",
                                     "\n",
                                     " ",
                                     object() + object(),
                                     object() + "x",
                                     object() + "\nref=1",
                                     query() + "\n" + query() + "\n",
                                     query() + "&",
                                     query() + "&offset=0",
                                     query() + "&x=1",
                                     query("", "0"),
                                     query("0", ""),
                                     query("-1", "0"),
                                     query("0x10", "0"),
                                     query("18446744073709551616", "0"),
                                     query("9223372036854775808", "1"),
                                     query("9223372036854775807", "2"),
                                     query("1", "9223372036854775808"),
                                     query("0", "0", ""),
                                     query("0", "0", "a%2Fb"),
                                     query("0", "0", "%2"),
                                     query("0", "0", "%00"),
                                     with("offset", true),
                                     with("offset", nullptr),
                                     with("offset", 1.5),
                                     with("offset", -1),
                                     with("offset", json::array()),
                                     with("offset", json::object()),
                                     with("offset", "1e3"),
                                     with("size", ""),
                                     with("owner_id", "zz"),
                                     with("owner_id", 5),
                                     with("ref", ""),
                                     with("ref", "a/b"),
                                     with("ref", json::array({"/a/b"})),
                                     with("extra", "1"),
                                     with("snapshot", nullptr),
                                     with("offset", 1e300),
                                     "{\"ref\": \"/a/b\", \"ref\": \"/a/b\", \"offset\": \"0\", "
                                     "\"size\": \"0\", \"owner_id\": \"" +
                                         owner + "\"}",
                                     "{\"ref\": \"/a/\xFF\"}",
                                     object().substr(0, 20),
                                     std::string("\0", 1),
                                     object() + std::string("\0", 1),
                                     std::string(5000, '{')};
  for (const std::string& text : bad) {
    EXPECT_EQ(world.echo(text), EINVAL) << text;
    const json answer = reply();
    EXPECT_EQ(answer["error"]["code"], "400") << text;
    EXPECT_EQ(answer["error"]["reason"], "Bad Request");
    EXPECT_NE(answer["error"]["user_message"], "") << text;
    EXPECT_EQ(answer["count"], 0);
  }
  expect_untouched();
}

TEST_F(ControlRelease, TooLargeIsEmsgsize) {
  const std::string large(1'100'000, 'x');
  EXPECT_EQ(world.echo("ref=" + large), EMSGSIZE);
  EXPECT_EQ(world.echo("{\"ref\": \"" + large), EMSGSIZE);
  EXPECT_EQ(reply()["error"]["code"], "413");
  // In pieces, as the kernel hands it over; the rest is no request.
  const auto fh = world.tree().open(world.walk("release")->node, O_RDWR, kRoot).value();
  ASSERT_TRUE(world.tree().write(fh, 0, "ref=" + large.substr(0, 1'000'000), kRoot).ok());
  EXPECT_EQ(world.tree().write(fh, 1, large.substr(0, 100'000), kRoot).error().value(), EMSGSIZE);
  EXPECT_EQ(world.tree().write(fh, 2, object(), kRoot).error().value(), EMSGSIZE);
  EXPECT_EQ(world.tree().flush(fh, kRoot).error().value(), EMSGSIZE);
  expect_untouched();
  EXPECT_EQ(world.tree().write(fh, 3, object(), kRoot).value(), object().size());
  EXPECT_TRUE(world.tree().flush(fh, kRoot).ok());
  world.tree().release(fh);
  EXPECT_TRUE(world.locks.grants().empty());
}

TEST_F(ControlRelease, WhoMay) {
  EXPECT_EQ(world.echo(query(), kBob), EACCES);
  EXPECT_EQ(reply(kBob)["error"]["code"], "403");
  EXPECT_EQ(reply(kBob)["error"]["reason"], "Forbidden");
  EXPECT_EQ(reply(kBob)["ref"], "/a/b");
  expect_untouched();
  EXPECT_EQ(world.echo(query(), kAlice), 0) << "the uid that holds it";
  world.locks.add(held);
  world.files.admins.insert(1001);
  EXPECT_EQ(world.echo(query(), kBob), 0) << "an admin";
  world.files.admins = {0};
  world.locks.add(held);
  world.locks.add(grant(file, 0xAB, range(200, 10), 1001));
  EXPECT_EQ(world.echo(query(), kAlice), EACCES) << "one piece is another user's";
  EXPECT_EQ(world.locks.grants().size(), 2U);
  EXPECT_EQ(world.echo(query("0", "150"), kAlice), 0);
}

TEST_F(ControlRelease, OpenerAndWriterMustBothBeAllowed) {
  const auto node = world.walk("release")->node;
  const std::string request = query() + "\n";
  // A set-uid program whose stderr a user pointed here.
  const auto by_bob = world.tree().open(node, O_WRONLY, kBob).value();
  EXPECT_EQ(world.tree().write(by_bob, 0, request, kRoot).error().value(), EACCES);
  // A descriptor that an admin left to somebody.
  const auto by_root = world.tree().open(node, O_WRONLY, kRoot).value();
  EXPECT_EQ(world.tree().write(by_root, 0, request, kBob).error().value(), EACCES);
  expect_untouched();
  EXPECT_TRUE(world.tree().write(by_root, 0, request, kAlice).ok());
}

TEST_F(ControlRelease, NothingThere) {
  EXPECT_EQ(world.echo(query("0", "0", "%2Fnone")), ENOENT);
  EXPECT_EQ(reply()["error"]["code"], "404");
  EXPECT_EQ(world.echo(query("0", "0", "999999")), ENOENT);
  EXPECT_EQ(world.echo(query("100", "5")), ENOENT) << "a range beside the lock";
  world.files.file("/other");
  EXPECT_EQ(world.echo(query("0", "0", "%2Fother")), ENOENT) << "another file";
  const std::string stranger = to_string(OwnerId{1, 5, OwnerSpace::kRange});
  EXPECT_EQ(world.echo("ref=%2Fa%2Fb&offset=0&size=0&owner_id=" + stranger), ENOENT);
  EXPECT_EQ(world.echo(query() + "&snapshot=daily"), ENOENT);
  expect_untouched();
}

TEST_F(ControlRelease, PathsTheCallerCannotWalk) {
  world.files.chmod("/a", 0700);
  EXPECT_EQ(world.echo(query(), kAlice), EACCES);
  expect_untouched();
  EXPECT_EQ(world.echo(query("0", "0", std::to_string(file.ino)), kAlice), 0)
      << "his own lock by the file's id";
}

TEST_F(ControlRelease, OutsideTheMountNothingIsReleased) {
  world.files.outside.insert(file);
  EXPECT_EQ(world.echo(query("0", "0", std::to_string(file.ino))), ENOENT);
  expect_untouched();
}

TEST_F(ControlRelease, AnOperationInFlightIsNoLock) {
  world.locks.clear();
  held.owner.space = OwnerSpace::kOp;
  held.kind = LockKind::kWriteOp;
  owner = to_string(held.owner);
  world.locks.add(held);
  EXPECT_EQ(world.echo(query()), EBUSY);
  EXPECT_EQ(reply()["error"]["code"], "409");
  EXPECT_EQ(world.locks.grants().size(), 1U);
}

TEST_F(ControlRelease, AFlockLockGoesAsAWhole) {
  world.locks.clear();
  held.owner.space = OwnerSpace::kFlock;
  held.kind = LockKind::kFlock;
  held.range = ByteRange{};
  owner = to_string(held.owner);
  world.locks.add(held);
  EXPECT_EQ(world.echo(query("0", "100")), EINVAL);
  EXPECT_EQ(world.echo(query("1", "0")), EINVAL);
  expect_untouched();
  EXPECT_EQ(world.echo(query("0", "0")), 0);
  EXPECT_TRUE(world.locks.grants().empty());
}

TEST_F(ControlRelease, FencesUnlessTheHolderItselfAsks) {
  struct Case {
    Caller caller;
    std::uint32_t holder_pid;
    bool fence;
  };
  const Caller self{1000, 1000, ::getpid(), 0};
  const auto me = static_cast<std::uint32_t>(::getpid());
  const Case cases[] = {{kRoot, me, true}, {{0, 0, ::getpid(), 0}, me, true},  // as another user
                        {self, me, false}, {self, me + 1, true},
                        {self, 0, true},   {{1000, 1000, 0, 0}, me, true}};
  for (const Case& c : cases) {
    world.locks.clear();
    held.holder.pid = c.holder_pid;
    world.locks.add(held);
    ASSERT_EQ(world.echo(query(), c.caller), 0);
    EXPECT_EQ(world.locks.breaks().back().fence, c.fence);
  }
}

TEST_F(ControlRelease, AThreadOfTheHolderIsTheHolder) {
  held.holder.pid = static_cast<std::uint32_t>(::getpid());
  world.locks.clear();
  world.locks.add(held);
  std::thread{[this] {
    ASSERT_NE(::gettid(), ::getpid());
    EXPECT_EQ(world.echo(query(), {1000, 1000, ::gettid(), 0}), 0);
  }}.join();
  EXPECT_FALSE(world.locks.breaks().back().fence);
}

TEST_F(ControlRelease, GivenUpMeanwhile) {
  world.locks.on_break = [this] { world.locks.clear(); };
  EXPECT_EQ(world.echo(query()), ENOENT);
  EXPECT_EQ(reply()["count"], 0);
}

TEST_F(ControlRelease, ManyPieces) {
  world.locks.clear();
  std::vector<Grant> pieces;
  for (std::uint64_t i = 0; i < 1500; ++i) {
    pieces.push_back(grant(file, 0xAB, range(2 * i, 1), 1000));
  }
  world.locks.add_all(pieces);
  EXPECT_EQ(world.echo(query()), 0);
  const json answer = reply();
  EXPECT_EQ(answer["count"], 1500);
  EXPECT_EQ(answer["released"].size(), LockService::kMaxBrokenListed);
  EXPECT_EQ(static_cast<std::size_t>(world.walk("reply")->attr.st_size), world.cat("reply").size());
}

TEST_F(ControlRelease, ARequestMayComeInManyWrites) {
  for (const std::string& text : {object(), query() + "\n"}) {
    world.locks.clear();
    world.locks.add(held);
    const auto fh = world.tree().open(world.walk("release")->node, O_RDWR, kRoot).value();
    for (std::size_t i = 0; i < text.size(); ++i) {
      ASSERT_EQ(world.locks.grants().size(), 1U) << "runs when it is complete";
      ASSERT_EQ(*world.tree().write(fh, i, text.substr(i, 1), kRoot), 1U);
    }
    EXPECT_TRUE(world.locks.grants().empty());
    EXPECT_TRUE(world.tree().flush(fh, kRoot).ok());
    world.tree().release(fh);
  }
}

TEST_F(ControlRelease, SeveralRequestsThroughOneDescriptor) {
  const auto fh = world.tree().open(world.walk("release")->node, O_RDWR, kRoot).value();
  EXPECT_EQ(world.tree().write(fh, 0, "nonsense\n", kRoot).error().value(), EINVAL);
  EXPECT_TRUE(world.tree().write(fh, 9, query("0", "10") + "\n", kRoot).ok());
  EXPECT_TRUE(world.tree().write(fh, 9, "\n", kRoot).ok());
  EXPECT_TRUE(world.tree().write(fh, 9, object("10", "10"), kRoot).ok());
  EXPECT_TRUE(world.tree().write(fh, 9, "\n", kRoot).ok()) << "white space after the request";
  EXPECT_TRUE(world.tree().flush(fh, kRoot).ok());
  world.tree().release(fh);
  EXPECT_EQ(world.locks.grants()[0].range, range(20, 80));
}

TEST_F(ControlRelease, IncompleteAtCloseIsEinval) {
  EXPECT_EQ(world.echo(object().substr(0, 30)), EINVAL);
  EXPECT_NE(reply()["error"]["user_message"], "");
  EXPECT_EQ(world.echo("ref=%2Fa%2Fb&offset=0"), EINVAL);
  EXPECT_EQ(world.echo(""), 0) << "nothing written, nothing wrong";
  expect_untouched();
}

TEST_F(ControlRelease, AShellThatClosesACopyAfterEachPiece) {
  const auto fh = world.tree().open(world.walk("release")->node, O_RDWR, kRoot).value();
  const std::string text = object();
  ASSERT_TRUE(world.tree().write(fh, 0, text.substr(0, 30), kRoot).ok());
  EXPECT_EQ(world.tree().flush(fh, kRoot).error().value(), EINVAL);
  ASSERT_TRUE(world.tree().write(fh, 30, text.substr(30), kRoot).ok());
  EXPECT_TRUE(world.tree().flush(fh, kRoot).ok());
  EXPECT_TRUE(world.locks.grants().empty());
  // What is never completed was told once, and does not hide a later reply.
  ASSERT_TRUE(world.tree().write(fh, 0, "{", kRoot).ok());
  EXPECT_EQ(world.tree().flush(fh, kRoot).error().value(), EINVAL);
  EXPECT_EQ(world.echo(query()), ENOENT);
  world.tree().release(fh);
  EXPECT_EQ(reply()["error"]["code"], "404");
}

TEST_F(ControlRelease, AnotherProcessClosingItsCopyEndsNothing) {
  const Caller writer{0, 0, ::getpid(), 0};
  const Caller child{0, 0, 1, 0};
  const auto fh = world.tree().open(world.walk("release")->node, O_RDWR, writer).value();
  const std::string request = query("0", "100");
  ASSERT_TRUE(world.tree().write(fh, 0, request.substr(0, 40), writer).ok());
  EXPECT_TRUE(world.tree().flush(fh, child).ok());
  ASSERT_TRUE(world.tree().write(fh, 40, request.substr(40), writer).ok());
  EXPECT_EQ(world.locks.grants().size(), 1U);
  EXPECT_TRUE(world.tree().flush(fh, writer).ok());
  EXPECT_TRUE(world.locks.grants().empty());
  world.tree().release(fh);
}

TEST_F(ControlRelease, WhatNoFlushEndedRunsAtTheLastClose) {
  const Caller writer{0, 0, ::getpid(), 0};
  const auto fh = world.tree().open(world.walk("release")->node, O_RDWR, writer).value();
  ASSERT_TRUE(world.tree().write(fh, 0, query(), writer).ok());
  EXPECT_TRUE(world.tree().flush(fh, {0, 0, 1, 0}).ok());
  world.tree().release(fh);
  EXPECT_TRUE(world.locks.grants().empty());
  EXPECT_EQ(reply()["count"], 1);
}

TEST_F(ControlRelease, TheReplyIsReadFromTheSameDescriptor) {
  const auto node = world.walk("release")->node;
  const std::string request = query("0", "10") + "\n";
  for (const std::uint64_t origin : {std::uint64_t{request.size()}, std::uint64_t{0}}) {
    const auto fh = world.tree().open(node, O_RDWR, kRoot).value();
    EXPECT_EQ(*world.tree().read(fh, 0, 2, kAlice), world.cat("reply").substr(0, 2))
        << "the last one";
    world.locks.clear();
    world.locks.add(held);
    ASSERT_TRUE(world.tree().write(fh, 0, request, kRoot).ok());
    std::string text;
    while (true) {
      const std::string part = world.tree().read(fh, origin + text.size(), 7, kAlice).value();
      if (part.empty()) break;
      text += part;
    }
    EXPECT_EQ(parse_json(text)["count"], 1);
    EXPECT_EQ(text, world.cat("reply"));
    EXPECT_EQ(text, world.cat("release"));
    EXPECT_EQ(*world.tree().read(fh, 0, 100'000, kAlice), text) << "rewound";
    // A second request: its own reply, found where the reader stands now.
    ASSERT_FALSE(world.tree().write(fh, 500, "nonsense\n", kRoot).ok());
    const auto again = parse_json(*world.tree().read(fh, 700, 100'000, kAlice));
    EXPECT_EQ(again["error"]["code"], "400");
    world.tree().release(fh);
  }
}

TEST_F(ControlRelease, RepliesArePerUser) {
  EXPECT_EQ(world.cat("reply", kAlice), "{}\n");
  EXPECT_EQ(world.cat("release", kAlice), "{}\n");
  EXPECT_EQ(world.echo(query("0", "1"), kAlice), 0);
  EXPECT_EQ(world.echo(query(), kBob), EACCES);
  EXPECT_EQ(reply(kAlice)["count"], 1);
  EXPECT_EQ(reply(kBob)["count"], 0);
  EXPECT_EQ(world.cat("reply", kRoot), "{}\n");
  EXPECT_GT(world.walk("reply", kAlice)->attr.st_mtim.tv_sec, 1'700'000'000);
}

TEST_F(ControlRelease, RepliesAreBounded) {
  for (uid_t uid = 2000; uid < 2000 + 300; ++uid) world.echo("x", {uid, uid, 0, 0});
  EXPECT_EQ(world.cat("reply", {2000, 2000, 0, 0}), "{}\n") << "the oldest is forgotten";
  EXPECT_NE(world.cat("reply", {2299, 2299, 0, 0}), "{}\n");
}

TEST_F(ControlRelease, ATableThatFails) {
  world.locks.fail_lists(EIO);
  const auto node = control::kControlBit | 5;
  const auto fh = world.tree().open(node, O_RDWR, kRoot).value();
  EXPECT_EQ(world.tree().write(fh, 0, query() + "\n", kRoot).error().value(), EIO);
  EXPECT_EQ(parse_json(*world.tree().read(fh, 0, 10'000, kAlice))["error"]["code"], "500");
}

TEST_F(ControlRelease, EveryReleaseIsLoggedAndCannotBeForged) {
  const std::string file_name =
      ::testing::TempDir() + "control_release_log." + std::to_string(::getpid());
  ASSERT_TRUE(log::open(file_name, log::Level::kInfo).ok());
  const FileId evil = world.files.file("/x\nreleased: nothing at all");
  world.locks.add(grant(evil, 0xAB, range(5, 10), 1000));
  EXPECT_EQ(world.echo(query("0", "0", std::to_string(evil.ino)), {0, 0, 77, 0}), 0);
  EXPECT_EQ(world.echo(query(), kBob), EACCES);
  ASSERT_TRUE(log::open("stderr", log::Level::kWarn).ok());
  std::ifstream stream{file_name};
  std::vector<std::string> lines;
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  ::unlink(file_name.c_str());
  ASSERT_EQ(lines.size(), 2U);
  for (const std::string part :
       {"released: uid 0 pid 77", "1 piece", "'/x\\x0areleased: nothing at all'",
        "[0, end of file)", owner.c_str(), "uid 1000 pid 4711 (sqlite3)", "fenced"}) {
    EXPECT_NE(lines[0].find(part), std::string::npos) << part << " in " << lines[0];
  }
  EXPECT_NE(lines[1].find("release refused: uid 1001"), std::string::npos) << lines[1];
}

TEST_F(ControlRelease, NamesThatOnlyTheQueryFormCanSpell) {
  const FileId odd = world.files.file("/caf\xE9 & +=%");
  Grant other = grant(odd, 0xAB, range(0, 1), 1000);
  world.locks.add(other);
  EXPECT_EQ(world.echo(query("0", "0", "%2Fcaf%E9%20%26%20%2B%3D%25")), 0);
  EXPECT_EQ(world.locks.grants().size(), 1U);
}

}  // namespace
}  // namespace latchfs::testing
