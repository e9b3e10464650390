// A server that opens once what all its users read and write, each under his own name, and closes
// it later than they do: the kernel's NFS server.
#include <fcntl.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "control/shared_file.h"
#include "support/control_world.h"

namespace latchfs::testing {
namespace {

constexpr pid_t kServerPid = 4243;
constexpr Caller for_user(uid_t uid) { return {uid, uid, kServerPid, 022}; }
constexpr Caller kForRoot = for_user(0);
constexpr Caller kForAlice = for_user(1000);
constexpr Caller kForBob = for_user(1001);

class ControlSharedFile : public ::testing::Test {
 protected:
  ControlSharedFile() {
    world.files.kernel_server = kServerPid;
    world.files.directory("/private", 1000, 0700);
    world.locks.add(grant(world.files.file("/private/secret", 1000), 1, range(0, 10), 1000));
    world.locks.add(grant(world.files.file("/open", 1000), 2, range(0, 10), 1000));
    world.files.file("/bobs", 1001);
  }
  std::uint64_t open(const std::string& name, int flags, const Caller& caller) {
    return world.tree().open(world.walk(name, caller)->node, flags, caller).value();
  }
  int write(std::uint64_t fh, std::uint64_t offset, std::string_view text, const Caller& caller) {
    const auto done = world.tree().write(fh, offset, text, caller);
    return done ? 0 : done.error().value();
  }
  std::string read(std::uint64_t fh, const Caller& caller, std::uint64_t offset = 0) {
    return world.tree().read(fh, offset, 1 << 20, caller).value();
  }
  std::size_t grants_read(std::uint64_t fh, const Caller& caller) {
    return parse_json(read(fh, caller))["grants"].size();
  }
  // Of each filelock: its path and whose it is.
  std::map<std::string, uid_t> filelocked() {
    std::map<std::string, uid_t> out;
    const auto listing = world.json("filelock");
    for (const auto& one : listing["filelocks"]) out.emplace(one["path"], one["uid"]);
    return out;
  }
  static std::string release_of(std::uint64_t key, const char* file) {
    return "ref=" + std::string{file} +
           "&offset=0&size=10&owner_id=" + to_string(OwnerId{1, key, OwnerSpace::kRange}) + "\n";
  }
  using Locked = std::map<std::string, uid_t>;

  ControlWorld world;
};

TEST_F(ControlSharedFile, EachUserSeesWhatIsHis) {
  for (const char* name : {"list", "list?uid=1000", "list?ref=%2Fopen"}) {
    const auto roots = open(name, O_RDONLY, kForRoot);
    EXPECT_EQ(grants_read(roots, kForBob), 1U) << name;
    EXPECT_EQ(read(roots, kForBob).find("secret"), std::string::npos) << name;
    EXPECT_EQ(read(roots, kForRoot), world.cat(name)) << name;
    const auto bobs = open(name, O_RDONLY, kForBob);
    EXPECT_EQ(read(bobs, kForRoot), world.cat(name)) << "who opened narrows nobody's view";
    EXPECT_EQ(grants_read(bobs, kForBob), 1U) << name;
    world.tree().release(roots);
    world.tree().release(bobs);
  }
  const auto secret = open("files/private/secret", O_RDONLY, kForAlice);
  EXPECT_EQ(grants_read(secret, kForAlice), 1U);
  EXPECT_EQ(grants_read(secret, kForBob), 0U);
  world.tree().release(secret);
}

TEST_F(ControlSharedFile, ItsUserReadsHisOwnReply) {
  ASSERT_EQ(world.echo(release_of(2, "%2Fopen"), kAlice), 0);
  for (const char* name : {"reply", "release", "unfilelock"}) {
    const auto bobs = open(name, O_RDONLY, kForBob);
    const auto alices = open(name, O_RDONLY, kForAlice);
    for (const auto fh : {bobs, alices}) {
      EXPECT_EQ(read(fh, kForBob), "{}\n") << name;
      EXPECT_EQ(read(fh, kForAlice), world.cat(name, kAlice)) << name;
    }
    world.tree().release(bobs);
    world.tree().release(alices);
  }
  EXPECT_EQ(world.json("reply", kAlice)["count"], 1);
}

TEST_F(ControlSharedFile, EachUserAsksForHimself) {
  const auto locks = open("filelock", O_WRONLY, kForBob);
  EXPECT_EQ(write(locks, 0, "/open\n", kForAlice), 0) << "Bob's descriptor keeps nobody out";
  EXPECT_EQ(filelocked(), (Locked{{"/open", 1000}}));
  EXPECT_EQ(write(locks, 0, "/bobs\n", kForBob), 0);
  EXPECT_EQ(filelocked(), (Locked{{"/bobs", 1001}, {"/open", 1000}}));

  const auto releases = open("release", O_WRONLY, kForBob);
  EXPECT_EQ(write(releases, 0, release_of(2, "%2Fopen"), kForBob), EACCES);
  EXPECT_EQ(world.locks.grants().size(), 2U);
  EXPECT_EQ(write(releases, 0, release_of(2, "%2Fopen"), kForAlice), 0);
  EXPECT_EQ(write(releases, 0, release_of(1, "%2Fprivate%2Fsecret"), kForRoot), 0);
  EXPECT_TRUE(world.locks.grants().empty());
  // And nobody gains by what root has opened.
  world.locks.add(grant(world.files.file("/again", 1000), 3, range(0, 10), 1000));
  const auto roots = open("release", O_WRONLY, kForRoot);
  EXPECT_EQ(write(roots, 0, release_of(3, "%2Fagain"), kForBob), EACCES);
  EXPECT_EQ(world.locks.grants().size(), 1U);
  for (const auto fh : {locks, releases, roots}) world.tree().release(fh);
}

TEST_F(ControlSharedFile, TwoUsersWriteAtOnce) {
  const auto fh = open("filelock", O_WRONLY, kForBob);
  EXPECT_EQ(write(fh, 0, "/bo", kForBob), 0);
  EXPECT_EQ(write(fh, 0, "/op", kForAlice), 0);
  EXPECT_EQ(write(fh, 3, "bs\n", kForBob), 0);
  EXPECT_EQ(write(fh, 3, "en", kForAlice), 0);
  EXPECT_EQ(filelocked(), (Locked{{"/bobs", 1001}}));
  world.tree().release(fh);
  EXPECT_EQ(filelocked(), (Locked{{"/bobs", 1001}, {"/open", 1000}}));
}

TEST_F(ControlSharedFile, WhatWasRefusedIsNoPartOfTheNextRequest) {
  const auto fh = open("filelock", O_WRONLY, kForAlice);
  EXPECT_EQ(write(fh, 0, "/missing\n/private", kForAlice), ENOENT);
  EXPECT_EQ(write(fh, 0, "/open\n", kForAlice), 0);
  EXPECT_EQ(filelocked(), (Locked{{"/open", 1000}}));
  world.tree().release(fh);
}

TEST_F(ControlSharedFile, TextsAreAsTheyAreWhenReadFromTheirStart) {
  for (const Caller& caller : {kForAlice, kAlice}) {
    const auto reply = open("reply", O_RDONLY, caller);
    const auto status = open("status", O_RDONLY, caller);
    EXPECT_EQ(world.echo_to("filelock", "/missing\n", kAlice), ENOENT);
    const std::string first = read(reply, caller);
    EXPECT_EQ(first, world.cat("reply", kAlice));
    EXPECT_EQ(world.echo_to("filelock", "/nor-this\n", kAlice), ENOENT);
    EXPECT_EQ(read(reply, caller, 5), first.substr(5)) << "the rest of what was begun";
    EXPECT_EQ(read(reply, caller), world.cat("reply", kAlice));
    EXPECT_NE(read(reply, caller), first);

    const auto grants = [&] { return parse_json(read(status, caller))["counts"]["grants"]; };
    const auto before = grants();
    world.locks.add(
        grant(world.files.file("/more" + std::to_string(caller.pid), 1000), 9, range(0, 1), 1000));
    EXPECT_EQ(grants(), before.get<int>() + 1);
    world.tree().release(reply);
    world.tree().release(status);
  }
}

TEST_F(ControlSharedFile, HasRoomForSoManyUsers) {
  constexpr uid_t kFirst = 5000;
  const auto fh = open("filelock", O_WRONLY, kForBob);
  EXPECT_EQ(write(fh, 0, "/bobs", kForBob), 0);
  const auto most = static_cast<uid_t>(control::SharedFile::kMostUsers);
  for (uid_t i = 1; i < most; ++i) EXPECT_EQ(write(fh, 0, "/nothing", for_user(kFirst + i)), 0);
  EXPECT_TRUE(filelocked().empty());
  EXPECT_EQ(write(fh, 0, "/nothing", for_user(kFirst + most)), 0);
  EXPECT_EQ(filelocked(), (Locked{{"/bobs", 1001}})) << "who gave way has been heard";
  EXPECT_EQ(write(fh, 0, "/open\n", kForAlice), 0);
  EXPECT_EQ(filelocked().size(), 2U);
  world.tree().release(fh);
}

}  // namespace
}  // namespace latchfs::testing
