// A server in user space that opens and reads as root whatever its users ask for, writes as the
// user, and keeps one descriptor for all of them: NFS-Ganesha.
#include <fcntl.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "support/control_world.h"

namespace latchfs::testing {
namespace {

constexpr pid_t kServerPid = 4242;
constexpr Caller kServer{0, 0, kServerPid, 022};
constexpr Caller kServerForAlice{1000, 1000, kServerPid, 022};
constexpr Caller kServerForBob{1001, 1001, kServerPid, 022};

class ControlUserServer : public ::testing::Test {
 protected:
  ControlUserServer() {
    world.files.user_server = kServerPid;
    world.files.directory("/private", 1000, 0700);
    world.locks.add(grant(world.files.file("/private/secret", 1000), 1, range(0, 10), 1000));
    world.locks.add(grant(world.files.file("/open", 1000), 2, range(0, 10), 1000));
    world.files.file("/bobs", 1001);
  }
  std::uint64_t open(const char* name, int flags = O_RDWR) {
    return world.tree().open(world.walk(name, kServer)->node, flags, kServer).value();
  }
  int write(std::uint64_t fh, std::uint64_t offset, std::string_view text, const Caller& caller) {
    const auto done = world.tree().write(fh, offset, text, caller);
    return done ? 0 : done.error().value();
  }
  std::string read(std::uint64_t fh) { return world.tree().read(fh, 0, 1 << 20, kServer).value(); }
  std::vector<std::string> filelocked() {
    std::vector<std::string> out;
    const auto listing = world.json("filelock");
    for (const auto& one : listing["filelocks"]) out.push_back(one["path"]);
    return out;
  }
  static std::string release_of(std::uint64_t key, const char* file) {
    return "ref=" + std::string{file} +
           "&offset=0&size=10&owner_id=" + to_string(OwnerId{1, key, OwnerSpace::kRange}) + "\n";
  }

  ControlWorld world;
};

TEST_F(ControlUserServer, ReadsWhatEverybodyMaySee) {
  EXPECT_EQ(world.json("list")["grants"].size(), 2U) << "root itself";
  const auto seen = world.json("list", kServer);
  ASSERT_EQ(seen["grants"].size(), 1U);
  EXPECT_EQ(seen["grants"][0]["path"], "/open");
  EXPECT_EQ(static_cast<std::size_t>(world.walk("list", kServer)->attr.st_size),
            world.cat("list", kServer).size());
  EXPECT_FALSE(world.walk("list?ref=%2Fprivate%2Fsecret", kServer).ok());
  EXPECT_EQ(world.json("list?ref=%2Fopen", kServer)["grants"].size(), 1U);
  EXPECT_EQ(world.json("list?uid=1000", kServer)["grants"].size(), 1U);
  // A directory that the server looked up for who may.
  EXPECT_EQ(world.json("files/private/secret", kServer)["grants"].size(), 0U);
  EXPECT_EQ(world.json("files/open", kServer)["grants"].size(), 1U);
}

TEST_F(ControlUserServer, ShowsNobodysReply) {
  EXPECT_EQ(world.echo(release_of(2, "%2Fopen")), 0);
  ASSERT_EQ(world.json("reply")["count"], 1);
  for (const char* name : {"reply", "release", "unfilelock"}) {
    EXPECT_EQ(world.cat(name, kServer), "{}\n") << name;
  }
  // Nor through the descriptor that all its users share.
  const auto fh = open("release");
  EXPECT_EQ(write(fh, 0, release_of(1, "%2Fprivate%2Fsecret"), kServerForAlice), 0);
  EXPECT_EQ(read(fh), "{}\n");
  EXPECT_EQ(world.json("reply", kAlice)["count"], 1);
  world.tree().release(fh);
}

TEST_F(ControlUserServer, NobodyIsAUserLikeOthers) {
  constexpr Caller kNobody{65534, 65534, 0, 022};
  world.locks.add(grant(world.files.file("/nobodys", 65534, 0600), 3, range(0, 10), 65534));
  EXPECT_EQ(world.json("list", kNobody)["grants"].size(), 2U);
  EXPECT_EQ(world.json("list", kServer)["grants"].size(), 1U);
  EXPECT_EQ(world.echo_to("filelock", "/nobodys\n", kNobody), 0);
  EXPECT_EQ(world.json("filelock", kServer)["filelocks"].size(), 0U);
  EXPECT_EQ(world.echo(release_of(3, "%2Fnobodys"), kNobody), 0);
  EXPECT_EQ(world.cat("reply", kServer), "{}\n");
}

// NFSv3's CREATE opens as the user, and everybody uses what it opened.
TEST_F(ControlUserServer, AlsoWhatItOpensAsAUserIsForAll) {
  const auto node = world.walk("filelock", kServerForAlice)->node;
  const auto fh = world.tree().open(node, O_RDWR, kServerForAlice).value();
  EXPECT_EQ(write(fh, 0, "/bobs\n", kServerForBob), 0);
  EXPECT_EQ(filelocked(), std::vector<std::string>{"/bobs"});
  EXPECT_EQ(write(fh, 0, "/private/secret\n", kServerForAlice), 0);
  EXPECT_EQ(parse_json(read(fh))["filelocks"].size(), 1U) << "what all may see";
  EXPECT_EQ(world.json("list", kServerForAlice)["grants"].size(), 1U);
  world.tree().release(fh);
}

TEST_F(ControlUserServer, DoesNotTakeAllThatMayBeOpen) {
  std::vector<std::uint64_t> all;
  const auto node = world.walk("status", kServer)->node;
  for (;;) {
    const auto fh = world.tree().open(node, O_RDONLY, kServer);
    if (!fh) {
      EXPECT_EQ(fh.error().value(), ENFILE);
      break;
    }
    all.push_back(*fh);
  }
  EXPECT_GT(all.size(), 1000U);
  EXPECT_FALSE(world.cat("status", kAlice).empty());
  for (const auto fh : all) world.tree().release(fh);
}

TEST_F(ControlUserServer, WritesAreTheUsers) {
  const auto fh = open("release");
  EXPECT_EQ(write(fh, 0, release_of(1, "%2Fprivate%2Fsecret"), kServerForBob), EACCES);
  EXPECT_EQ(write(fh, 0, release_of(2, "%2Fopen"), kServerForBob), EACCES);
  EXPECT_EQ(world.locks.grants().size(), 2U);
  EXPECT_EQ(write(fh, 0, release_of(2, "%2Fopen"), kServerForAlice), 0);
  EXPECT_EQ(world.locks.grants().size(), 1U);
  // Root of a client that is not squashed.
  EXPECT_EQ(write(fh, 0, release_of(1, "%2Fprivate%2Fsecret"), kServer), 0);
  EXPECT_TRUE(world.locks.grants().empty());
  world.tree().release(fh);
}

TEST_F(ControlUserServer, TheListOfFilelocksIsOfNow) {
  const auto fh = open("filelock");
  EXPECT_EQ(parse_json(read(fh))["filelocks"].size(), 0U);
  EXPECT_EQ(write(fh, 0, "/open\n", kServerForAlice), 0);
  EXPECT_EQ(parse_json(read(fh))["filelocks"].size(), 1U);
  EXPECT_EQ(write(fh, 0, "/bobs\n", kServerForBob), 0);
  EXPECT_EQ(parse_json(read(fh))["filelocks"].size(), 2U);
  world.tree().release(fh);
}

TEST_F(ControlUserServer, OneUsersTextIsNoPartOfAnothersRequest) {
  const auto fh = open("filelock");
  EXPECT_EQ(write(fh, 0, "/bobs", kServerForAlice), 0);
  EXPECT_EQ(write(fh, 5, "\n", kServerForBob), 0) << "an empty line";
  EXPECT_EQ(write(fh, 0, "{\"paths\": [", kServerForAlice), 0);
  EXPECT_EQ(write(fh, 0, "/bobs\n", kServerForBob), 0);
  EXPECT_EQ(filelocked(), std::vector<std::string>{"/bobs"});
  // One user's goes on where it was, and begins anew at 0.
  EXPECT_EQ(write(fh, 0, "/op", kServerForAlice), 0);
  EXPECT_EQ(write(fh, 3, "en\n", kServerForAlice), 0);
  EXPECT_EQ(filelocked().size(), 2U);
  EXPECT_EQ(write(fh, 0, "/nonsense", kServerForAlice), 0) << "asked when the next begins";
  EXPECT_EQ(write(fh, 0, "/private/secret\n", kServerForAlice), 0);
  EXPECT_EQ(filelocked().size(), 3U);
  // What is left at the end is asked as who wrote it.
  EXPECT_EQ(write(fh, 0, "/bobs", kServerForAlice), 0);
  world.tree().release(fh);
  EXPECT_EQ(filelocked().size(), 3U);
}

TEST_F(ControlUserServer, AnUnfinishedRequestEndsWhereTheNextBegins) {
  // An ordinary descriptor, kept open by a server that closes it later than its client.
  const auto fh = world.tree().open(world.walk("filelock")->node, O_WRONLY, kAlice).value();
  EXPECT_EQ(write(fh, 0, "/open", kAlice), 0);
  EXPECT_TRUE(filelocked().empty());
  EXPECT_EQ(write(fh, 0, "/private/secret", kAlice), 0);
  EXPECT_EQ(filelocked(), std::vector<std::string>{"/open"});
  world.tree().release(fh);
  EXPECT_EQ(filelocked().size(), 2U);
}

TEST_F(ControlUserServer, AProgramGoesOnWhereItWasRefused) {
  const auto fh = world.tree().open(world.walk("filelock")->node, O_WRONLY, kAlice).value();
  EXPECT_EQ(write(fh, 0, "/missing\n/op", kAlice), ENOENT);
  EXPECT_EQ(write(fh, 0, "en\n", kAlice), 0) << "write(2) has moved nothing";
  EXPECT_EQ(filelocked(), std::vector<std::string>{"/open"});
  // A server's next client is no such program.
  const auto shared = open("filelock", O_WRONLY);
  EXPECT_EQ(write(shared, 0, "/missing\n/private", kServerForAlice), ENOENT);
  EXPECT_EQ(write(shared, 0, "/private/secret\n", kServerForAlice), 0);
  EXPECT_EQ(filelocked().size(), 2U);
  world.tree().release(fh);
  world.tree().release(shared);
}

TEST_F(ControlUserServer, AnotherUsersWriteAtTheBeginningRunsNothingOfTheFirst) {
  const auto fh = world.tree().open(world.walk("filelock")->node, O_WRONLY, kAlice).value();
  EXPECT_EQ(write(fh, 0, "/open", kAlice), 0);
  EXPECT_EQ(write(fh, 0, "\n", kBob), 0);
  world.tree().release(fh);
  EXPECT_TRUE(filelocked().empty());
}

}  // namespace
}  // namespace latchfs::testing
