// What one client may have of everything, and what is done where there is no more.
#include <gtest/gtest.h>

#include "nlm_world.h"
#include "store/shm/shm_store.h"
#include "support/store_fixture.h"

namespace latchfs::test {
namespace {

using nlm::LockCall;
using nlm::Proc;
using nlm::Status;

LockCall blocking(LockCall call) {
  call.block = true;
  return call;
}

// A client that has not been heard of.
Result<std::string> silent(const FakeOutside::Call& call) {
  if (call.program == nlm::kStatdProgram) return std::string(8, '\0');
  return errno_code(ETIMEDOUT);
}

TEST(NlmLimits, AnAddressHasSoManyWhateverItCallsItself) {
  auto options = NlmWorld::quick();
  options.desk.most_waiting = 3;
  options.desk.most_shares = 2;
  options.desk.most_held = 4;
  options.desk.most_locks = 6;
  options.hosts.most_of_address = 5;
  NlmWorld world{options};
  auto a = world.client("a");
  const auto as = [&](int n) {
    return NlmClient{world.port(), {"name" + std::to_string(n), false, "127.0.0.2"}};
  };
  ASSERT_EQ(a.lock(a.request(1, 0, 0)), Status::kGranted);
  for (int i = 0; i < 3; ++i) {
    auto b = as(i);
    EXPECT_EQ(b.lock(blocking(b.request(1, 0, 10, i))), Status::kBlocked);
    EXPECT_EQ(b.lock(blocking(b.request(1, 0, 10, i))), Status::kBlocked) << "the same";
    EXPECT_EQ(b.ask_share(Proc::kShare, {"", b.options.name, handle_of(2), "", 0, 1, false}),
              i < 2 ? Status::kGranted : Status::kDeniedNolocks);
  }
  auto b = as(3);
  EXPECT_EQ(b.lock(blocking(b.request(1, 0, 10))), Status::kDeniedNolocks);
  // Four files, by whichever owner.
  for (int i = 0; i < 5; ++i) {
    EXPECT_EQ(b.lock(b.request(static_cast<std::uint64_t>(10 + i), 0, 1)),
              i < 4 ? Status::kGranted : Status::kDeniedNolocks);
  }
  EXPECT_EQ(b.lock(b.request(10, 0, 1, 2)), Status::kDeniedNolocks);
  // And six locks: a part more is one more, what merges is not.
  EXPECT_EQ(b.lock(b.request(10, 5, 1)), Status::kGranted);
  EXPECT_EQ(b.lock(b.request(10, 4, 1)), Status::kGranted);
  EXPECT_EQ(b.lock(b.request(10, 9, 1)), Status::kGranted);
  EXPECT_EQ(b.lock(b.request(10, 20, 1)), Status::kDeniedNolocks);
  EXPECT_EQ(b.unlock(b.request(10, 4, 2)), Status::kGranted);
  EXPECT_EQ(b.lock(b.request(10, 20, 1)), Status::kGranted);
  // Five names, where the others hold something.
  auto c = as(4);
  auto d = as(5);
  EXPECT_EQ(c.ask_share(Proc::kShare, {"", c.options.name, handle_of(3), "", 0, 1, false}),
            Status::kDeniedNolocks);
  EXPECT_EQ(world.service->hosts().size(), 6U);
  EXPECT_EQ(d.lock(blocking(d.request(1, 0, 1))), Status::kDeniedNolocks);
  EXPECT_LE(world.service->hosts().size(), 6U) << "the idle one made room";
  // None of which is another machine's trouble.
  EXPECT_EQ(a.lock(a.request(20, 0, 1)), Status::kGranted);
  // All of it can be given back, and then is there again.
  for (int i = 0; i < 3; ++i) {
    auto one = as(i);
    EXPECT_EQ(one.cancel(one.request(1, 0, 10, i)), Status::kGranted);
  }
  for (std::uint64_t node = 10; node < 14; ++node) {
    EXPECT_EQ(b.unlock(b.request(node, 0, 0)), Status::kGranted);
  }
  EXPECT_EQ(b.lock(b.request(15, 0, 1)), Status::kGranted);
  EXPECT_EQ(b.lock(blocking(b.request(1, 0, 10))), Status::kBlocked);
}

// An admin's release, of which the client's machine is not told.
TEST(NlmBooks, AFileWhoseLocksWereBrokenIsLetGo) {
  auto options = NlmWorld::quick();
  options.desk.compare_ns = 0;
  NlmWorld world{options};
  auto a = world.client("a");
  auto b = world.client("b");
  ASSERT_EQ(a.lock(a.request(1, 0, 10)), Status::kGranted);
  ASSERT_EQ(a.lock(a.request(1, 20, 10)), Status::kGranted);
  ASSERT_EQ(b.lock(b.request(1, 40, 10)), Status::kGranted);
  ASSERT_EQ(b.lock(b.request(2, 0, 10)), Status::kGranted);
  const auto release = [&](std::uint64_t node, std::uint64_t begin, ByteRange range) {
    ListQuery query;
    query.file = FileId{7, node};
    const auto page = world.store->list(query);
    for (const Grant& grant : page->grants) {
      if (grant.range.begin() != begin) continue;
      EXPECT_TRUE(world.store->break_range(grant.file, grant.owner, range, false));
    }
  };
  release(1, 0, *ByteRange::from_half_open(0, 10));
  release(2, 0, ByteRange{});
  world.service->desk().let_go();
  EXPECT_TRUE(NlmWorld::await([&] { return world.service->desk().figures().held == 1; }));
  world.service->desk().let_go();
  EXPECT_EQ(world.service->desk().figures().held, 1U) << "two locks are left there";
  EXPECT_EQ(world.grants(1).size(), 2U);
  release(1, 20, ByteRange{});
  release(1, 40, ByteRange{});
  EXPECT_TRUE(NlmWorld::await([&] {
    world.service->desk().let_go();
    return world.service->desk().figures().held == 0 && world.files.open_files() == 0;
  }));
  EXPECT_EQ(a.unlock(a.request(1, 0, 0)), Status::kGranted);
  EXPECT_EQ(a.lock(a.request(1, 0, 0)), Status::kGranted);
}

// The table has no room to split a lock: it is given back when there is some.
TEST(NlmDebts, WhatTheTableCannotTakeBackNowItTakesLater) {
  nlm::Waits waits;
  ShmStore::Options tight;
  tight.table = unique_table();
  tight.table_max = 256ULL << 20;
  tight.max_locks_per_user = 3;
  const auto store = ShmStore::attach(tight, waits);
  ASSERT_TRUE(store) << store.error().message();
  FakeFiles files;
  FakeOutside outside;
  outside.answer_by(silent);
  const auto service = nlm::Service::open(NlmWorld::quick(), **store, waits, files, outside);
  ASSERT_TRUE(service) << service.error().message();
  (*service)->start();
  const auto grants = [&] { return (*store)->list({}).value().grants.size(); };
  NlmClient b{(*service)->port(), {"b"}};
  NlmClient c{(*service)->port(), {"c"}};
  c.options.credentials.uid = 1001;

  // The lock on either side of what is waited for; granted, it is one with them.
  ASSERT_EQ(b.lock(b.request(1, 0, 10)), Status::kGranted);
  ASSERT_EQ(b.lock(b.request(1, 20, 10)), Status::kGranted);
  ASSERT_EQ(c.lock(c.request(1, 10, 10, 2)), Status::kGranted);
  ASSERT_EQ(b.lock(blocking(b.request(1, 10, 10))), Status::kBlocked);
  ASSERT_EQ(c.unlock(c.request(1, 10, 10, 2)), Status::kGranted);
  outside.await(nlm::kNlmProgram, 1);
  EXPECT_EQ(grants(), 1U);
  // All others go elsewhere: there is none to split with.
  ASSERT_EQ(b.lock(b.request(2, 0, 1)), Status::kGranted);
  ASSERT_EQ(b.lock(b.request(2, 5, 1)), Status::kGranted);
  EXPECT_EQ(b.cancel(b.request(1, 10, 10)), Status::kGranted);
  (*service)->desk().let_go();
  EXPECT_EQ(grants(), 3U) << "still whole";
  ASSERT_EQ(b.unlock(b.request(2, 0, 0)), Status::kGranted);
  // (The service's own thread may be trying just now.)
  EXPECT_TRUE(NlmWorld::await([&] {
    (*service)->desk().let_go();
    return grants() == 2;
  })) << "its two sides";
  EXPECT_EQ(c.lock(c.request(1, 10, 10, 2)), Status::kGranted);

  // So it is with what is unlocked, unless it is locked again before.
  ASSERT_EQ(b.lock(b.request(3, 0, 30)), Status::kGranted);
  EXPECT_EQ(b.unlock(b.request(3, 10, 10)), Status::kDeniedNolocks);
  ASSERT_EQ(b.unlock(b.request(1, 0, 0)), Status::kGranted);
  EXPECT_EQ(b.lock(b.request(3, 10, 10)), Status::kGranted);
  (*service)->desk().let_go();
  EXPECT_EQ(c.lock(c.request(3, 10, 10, 2)), Status::kDenied) << "wanted again";
  ASSERT_EQ(b.lock(b.request(4, 0, 1)), Status::kGranted);
  ASSERT_EQ(b.lock(b.request(4, 5, 1)), Status::kGranted);
  EXPECT_EQ(b.unlock(b.request(3, 10, 10)), Status::kDeniedNolocks);
  ASSERT_EQ(b.unlock(b.request(4, 0, 0)), Status::kGranted);
  EXPECT_TRUE(NlmWorld::await([&] {
    (*service)->desk().let_go();
    return c.lock(c.request(3, 10, 10, 2)) == Status::kGranted;
  }));
  EXPECT_EQ(b.unlock(b.request(3, 0, 0)), Status::kGranted);
}

TEST(NlmLimits, AHostHasSoManyWaitersAndShares) {
  auto options = NlmWorld::quick();
  options.desk.most_waiting = 3;
  options.desk.most_shares = 2;
  NlmWorld world{options};
  auto a = world.client("a");
  auto b = world.client("b");
  ASSERT_EQ(a.lock(a.request(1, 0, 0)), Status::kGranted);
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(b.lock(blocking(b.request(1, 0, 10, i))), Status::kBlocked);
  }
  EXPECT_EQ(b.lock(blocking(b.request(1, 0, 10, 3))), Status::kDeniedNolocks);
  EXPECT_EQ(b.cancel(b.request(1, 0, 10, 2)), Status::kGranted);
  EXPECT_EQ(b.lock(blocking(b.request(1, 0, 10, 3))), Status::kBlocked);
  for (std::uint64_t node = 1; node <= 2; ++node) {
    EXPECT_EQ(b.ask_share(Proc::kShare, {"", "b", handle_of(node), "", 0, 1, false}),
              Status::kGranted);
  }
  EXPECT_EQ(b.ask_share(Proc::kShare, {"", "b", handle_of(3), "", 0, 1, false}),
            Status::kDeniedNolocks);
}

TEST(NlmLimits, SoManyHostsAndIdleOnesMakeRoom) {
  auto options = NlmWorld::quick();
  options.hosts.most = 4;
  NlmWorld world{options};
  std::vector<NlmClient> clients;
  for (int i = 0; i < 5; ++i) clients.push_back(world.client("host" + std::to_string(i)));
  for (int i = 0; i < 4; ++i) {
    NlmClient& c = clients[static_cast<std::size_t>(i)];
    EXPECT_EQ(c.lock(c.request(static_cast<std::uint64_t>(i + 1), 0, 0)), Status::kGranted);
  }
  EXPECT_EQ(clients[4].lock(clients[4].request(9, 0, 0)), Status::kDeniedNolocks);
  EXPECT_EQ(clients[1].unlock(clients[1].request(2, 0, 0)), Status::kGranted);
  EXPECT_EQ(clients[4].lock(clients[4].request(9, 0, 0)), Status::kGranted);
  EXPECT_LE(world.service->hosts().size(), 4U);
}

}  // namespace
}  // namespace latchfs::test
