// All that one machine on the network holds: who it is, and taking it away.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "support/control_world.h"

namespace latchfs::testing {
namespace {

using nlohmann::json;

class ControlReleaseOfClient : public ::testing::Test {
 protected:
  ControlReleaseOfClient() {
    file = world.files.file("/a", 0, 0644);
    other = world.files.file("/b", 0, 0644);
    const auto client = world.locks.add_client({"client7", "192.0.2.7"});
    for (std::uint64_t i = 0; i < 3; ++i) {
      world.locks.add(of(client, grant(file, i + 1, range(i * 10, 5), 1000)));
    }
    world.locks.add(of(client, grant(other, 1, range(0, 5), 1000)));
    world.locks.add(grant(file, 99, range(100, 5), 1000));  // of this machine
    world.locks.add(
        of(world.locks.add_client({"client8", "192.0.2.8"}), grant(file, 98, range(200, 5), 1000)));
  }
  static Grant of(std::uint32_t client, Grant grant) {
    grant.holder.client = client;
    return grant;
  }
  static std::string request(const std::string& address = "192.0.2.7") {
    return dump(json{{"owner_address", address}});
  }
  json reply(const Caller& caller = kRoot) { return world.json("reply", caller); }

  ControlWorld world;
  FileId file, other;
};

TEST_F(ControlReleaseOfClient, TakesAllThatItHoldsAndNothingElse) {
  EXPECT_EQ(world.echo(request() + "\n"), 0);
  const auto left = world.locks.grants();
  ASSERT_EQ(left.size(), 2U);
  EXPECT_EQ(left[0].owner.key, 99U);
  EXPECT_EQ(left[1].owner.key, 98U);
  const json answer = reply();
  EXPECT_EQ(answer["owner_address"], "192.0.2.7");
  EXPECT_EQ(answer["count"], 4);
  EXPECT_EQ(answer["ambiguous"], 0);
  ASSERT_EQ(answer["released"].size(), 4U);
  EXPECT_EQ(answer["released"][0]["owner_name"], "client7");
  EXPECT_EQ(answer["released"][3]["path"], "/b");
  // No descriptor of a service's owner is ever closed, which would lift a fence.
  for (const auto& call : world.locks.breaks()) EXPECT_FALSE(call.fence);
  EXPECT_EQ(world.echo("owner_address=192.0.2.8"), 0) << "the query form";
  EXPECT_EQ(world.locks.grants().size(), 1U);
  EXPECT_EQ(world.echo(request()), ENOENT) << "nothing left";
}

TEST_F(ControlReleaseOfClient, TakesOnlyHisOwnForWhoIsNoAdmin) {
  world.locks.add(of(1, grant(other, 7, range(50, 5), 1001)));
  EXPECT_EQ(world.echo(request(), kBob), 0);
  EXPECT_EQ(reply(kBob)["count"], 1);
  EXPECT_EQ(world.locks.grants().size(), 6U);
  // That the client holds others' locks he does not learn.
  EXPECT_EQ(world.echo(request(), kBob), ENOENT);
  const json bob = reply(kBob);
  EXPECT_EQ(world.echo(request("192.0.2.9"), kBob), ENOENT);
  EXPECT_EQ(reply(kBob)["error"], bob["error"]);
  EXPECT_EQ(world.locks.grants().size(), 6U);
  EXPECT_EQ(world.echo(request(), kAlice), 0);
  EXPECT_EQ(reply(kAlice)["count"], 4);
}

TEST_F(ControlReleaseOfClient, RefusesWhatIsNotOneMachineElsewhere) {
  EXPECT_EQ(world.echo(request(world.options.node_address)), EINVAL);
  EXPECT_EQ(world.echo(request("")), EINVAL);
  EXPECT_EQ(world.echo(request("192.0.2.9")), ENOENT);
  EXPECT_EQ(world.echo(request("192.0.2.")), ENOENT);
  EXPECT_EQ(world.echo("owner_address=192.0.2.7&ref=%2Fa"), EINVAL);
  EXPECT_EQ(world.echo(R"({"owner_address": ["192.0.2.7"]})"), EINVAL);
  EXPECT_TRUE(world.locks.breaks().empty());
}

// A process of another machine has a number of its own there.
TEST_F(ControlReleaseOfClient, PidsAreThisMachinesUnlessAnotherIsNamed) {
  EXPECT_EQ(world.json("list?pid=4711")["grants"].size(), 1U);
  EXPECT_EQ(world.json("list?pid=4711")["grants"][0]["owner_name"], world.options.node_name);
  EXPECT_EQ(world.json("list?pid=4711&owner_address=192.0.2.7")["grants"].size(), 4U);
  EXPECT_EQ(world.json("list?pid=4712&owner_name=client7")["grants"].size(), 0U);
}

// Of several NFS clients with locks on one file nobody knows whose is which.
TEST_F(ControlReleaseOfClient, LeavesWhatMayBeAnotherClients) {
  const FileId shared = world.files.file("/shared", 0, 0644);
  const FileId sure = world.files.file("/sure", 0, 0644);
  const FileId unknown = world.files.file("/unknown", 0, 0644);
  world.files.nfs_locked[shared] = {{"one", "192.0.2.21"}, {"two", "192.0.2.22"}};
  world.files.nfs_locked[sure] = {{"one", "192.0.2.21"}};
  world.files.nfs_locked[unknown] = {};
  world.locks.add(grant(shared, 50, range(0, 1), 1000));
  world.locks.add(grant(unknown, 52, range(0, 1), 1000));
  EXPECT_EQ(world.echo(request("192.0.2.21")), ENOENT);
  EXPECT_EQ(reply()["ambiguous"], 1);
  world.locks.add(grant(sure, 51, range(0, 1), 1000));
  EXPECT_EQ(world.echo(request("192.0.2.21")), 0);
  EXPECT_EQ(reply()["count"], 1);
  EXPECT_EQ(reply()["ambiguous"], 1);
  ASSERT_EQ(world.locks.breaks().size(), 1U);
  EXPECT_EQ(world.locks.breaks()[0].file, sure);
  EXPECT_TRUE(world.locks.breaks()[0].fence) << "of a descriptor of the NFS server's";

  const auto list = world.json("list")["grants"];
  const auto of_file = [&list](FileId id) {
    for (const auto& one : list) {
      if (one["file_id"] == std::to_string(id.ino)) return one;
    }
    return json{};
  };
  EXPECT_EQ(of_file(shared)["owner_name"], "one, two");
  EXPECT_EQ(of_file(shared)["owner_address"], "192.0.2.21, 192.0.2.22");
  EXPECT_EQ(of_file(unknown)["owner_name"], "");
  EXPECT_EQ(of_file(unknown)["owner_address"], "");
  EXPECT_EQ(world.json("list?owner_address=192.0.2.22")["grants"].size(), 1U);
  EXPECT_EQ(world.json("list?owner_name=two&owner_address=192.0.2.21")["grants"].size(), 0U);
  EXPECT_EQ(world.json("list?owner_name=client7")["grants"].size(), 4U);
  EXPECT_EQ(world.json("list?owner_name=" + world.options.node_name)["grants"].size(), 1U);
}

TEST_F(ControlReleaseOfClient, ListsAThousandAndCountsAll) {
  for (std::uint64_t i = 0; i < 1500; ++i) {
    world.locks.add(of(1, grant(other, 100 + i, range(1000 + i * 10, 5), 1000)));
  }
  EXPECT_EQ(world.echo(request()), 0);
  EXPECT_EQ(reply()["count"], 1504);
  EXPECT_EQ(reply()["released"].size(), LockService::kMaxBrokenListed);
  EXPECT_EQ(world.locks.grants().size(), 2U);
}

}  // namespace
}  // namespace latchfs::testing
