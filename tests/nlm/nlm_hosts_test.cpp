// Clients that restart, a service that restarts, shares.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "nlm_world.h"
#include "support/mount_fixture.h"

namespace latchfs::test {
namespace {

using nlm::LockCall;
using nlm::Proc;
using nlm::StatdProc;
using nlm::Status;

std::vector<FakeOutside::Call> statd_calls(NlmWorld& world, StatdProc procedure) {
  std::vector<FakeOutside::Call> out;
  for (auto& call : world.outside.calls(nlm::kStatdProgram)) {
    if (call.procedure == static_cast<std::uint32_t>(procedure)) out.push_back(std::move(call));
  }
  return out;
}

// The secret of SM_MON: the last sixteen bytes of its arguments.
nlm::Secret secret_of(const FakeOutside::Call& call) {
  nlm::Secret out{};
  EXPECT_GE(call.arguments.size(), out.size());
  call.arguments.copy(out.data(), out.size(), call.arguments.size() - out.size());
  return out;
}

TEST(NlmMonitor, AClientIsMonitoredFromItsFirstLockOn) {
  NlmWorld world;
  auto a = world.client("a");
  EXPECT_EQ(a.test(a.request(1, 0, 0)).status, Status::kGranted);
  EXPECT_EQ(a.unlock(a.request(1, 0, 0)), Status::kGranted);
  EXPECT_EQ(a.ask(Proc::kNmLock, nlm::Form::kLock, a.request(1, 0, 0)), Status::kGranted);
  EXPECT_TRUE(statd_calls(world, StatdProc::kMon).empty());
  EXPECT_EQ(a.lock(a.request(2, 0, 0)), Status::kGranted);
  EXPECT_EQ(a.lock(a.request(3, 0, 0)), Status::kGranted);
  auto b = world.client("b");  // of the same address
  EXPECT_EQ(b.lock(b.request(4, 0, 0)), Status::kGranted);
  const auto calls = statd_calls(world, StatdProc::kMon);
  ASSERT_EQ(calls.size(), 1U);
  EXPECT_EQ(calls[0].where.address, "127.0.0.1");
  EXPECT_NE(calls[0].arguments.find("127.0.0.1"), std::string::npos);
}

TEST(NlmMonitor, WhomStatdDoesNotMonitorHasOnlyUnmonitoredLocks) {
  NlmWorld world;
  world.outside.answer_by(
      [](const FakeOutside::Call&) -> Result<std::string> { return errno_code(ECONNREFUSED); });
  auto a = world.client("a");
  EXPECT_EQ(a.lock(a.request(1, 0, 0)), Status::kDeniedNolocks);
  EXPECT_EQ(a.ask_share(Proc::kShare, {"", "a", handle_of(1), "", 0, 1, false}),
            Status::kDeniedNolocks);
  EXPECT_EQ(a.ask(Proc::kNmLock, nlm::Form::kLock, a.request(1, 0, 0)), Status::kGranted);
  // statd's own refusal is one as well.
  NlmWorld other;
  other.outside.answer_by([](const FakeOutside::Call&) -> Result<std::string> {
    return std::string{"\0\0\0\1\0\0\0\1", 8};
  });
  auto b = other.client("b");
  EXPECT_EQ(b.lock(b.request(1, 0, 0)), Status::kDeniedNolocks);
}

TEST(NlmMonitor, ARestartedClientsLocksAreGivenBack) {
  NlmWorld world;
  auto a = world.client("a");
  NlmClient b{world.port(), {"b", true, "127.0.0.2"}};
  ASSERT_EQ(a.lock(a.request(1, 0, 10)), Status::kGranted);
  ASSERT_EQ(b.lock(b.request(2, 0, 10)), Status::kGranted);
  LockCall waits = a.request(2, 0, 10);
  waits.block = true;
  ASSERT_EQ(a.lock(waits), Status::kBlocked);
  waits = b.request(1, 5, 1);
  waits.block = true;
  // (b waits for a as a waits for b: only at other places.)
  ASSERT_EQ(b.lock(waits), Status::kDeadlock);
  waits.what.svid = 2;
  waits.what.owner = "2@b";
  ASSERT_EQ(b.lock(waits), Status::kBlocked);
  ASSERT_EQ(a.ask_share(Proc::kShare, {"", "a", handle_of(3), "", 3, 3, false}), Status::kGranted);

  const auto monitored = statd_calls(world, StatdProc::kMon);
  ASSERT_EQ(monitored.size(), 2U);
  nlm::StatusCall word{"127.0.0.1", 3, secret_of(monitored[0])};
  auto statd = world.client("statd");
  // A wrong secret, and somebody who is not this machine.
  nlm::StatusCall wrong = word;
  wrong.secret[3] ^= 1;
  EXPECT_EQ(statd.call(Proc::kSmNotify, nlm::encode_status_call(wrong)), "");
  EXPECT_EQ(world.grants(1).size(), 1U);

  EXPECT_EQ(statd.call(Proc::kSmNotify, nlm::encode_status_call(word)), "");
  EXPECT_EQ(world.grants(1), (std::vector<std::string>{"EX 5 1 2"})) << "b's turn";
  EXPECT_EQ(world.grants(2), (std::vector<std::string>{"EX 0 10 1"}));
  EXPECT_EQ(world.waiters(2), 0U);
  EXPECT_EQ(b.ask_share(Proc::kShare, {"", "b", handle_of(3), "", 3, 3, false}), Status::kGranted);

  // It locks again; the same word once more, late, takes nothing away, a newer one does.
  ASSERT_EQ(a.lock(a.request(4, 0, 10)), Status::kGranted);
  statd.call(Proc::kSmNotify, nlm::encode_status_call(word));
  EXPECT_EQ(world.grants(4).size(), 1U);
  word.state = 5;
  statd.call(Proc::kSmNotify, nlm::encode_status_call(word));
  EXPECT_TRUE(world.grants(4).empty());
}

// What it has asked for since, by the number of its life, is not what it lost.
TEST(NlmMonitor, AWordThatComesLateLeavesWhatTheClientHasLockedSince) {
  NlmWorld world;
  auto a = world.client("a");
  const auto ask = [&](std::int32_t life, LockCall call) {
    call.state = life;
    return a.lock(call);
  };
  ASSERT_EQ(ask(3, a.request(1, 0, 10)), Status::kGranted);
  ASSERT_EQ(ask(5, a.request(2, 0, 10)), Status::kGranted);
  ASSERT_EQ(ask(0, a.request(3, 0, 10)), Status::kGranted);
  // The same owner, in both lives: told apart only where the new one has all of it.
  ASSERT_EQ(ask(3, a.request(4, 5, 5)), Status::kGranted);
  ASSERT_EQ(ask(5, a.request(4, 0, 10)), Status::kGranted);
  ASSERT_EQ(ask(3, a.request(5, 0, 10)), Status::kGranted);
  ASSERT_EQ(ask(5, a.request(5, 20, 10)), Status::kGranted);
  // Waits, beside a lock of the same life or an earlier one.
  world.local_lock(6, *ByteRange::from_half_open(0, 10));
  for (std::int32_t svid = 1; svid <= 4; ++svid) {
    LockCall waits = a.request(6, 0, 10, svid);
    waits.block = true;
    ASSERT_EQ(ask(svid == 1 ? 3 : 5, waits), Status::kBlocked);
  }
  ASSERT_EQ(ask(5, a.request(6, 10, 10, 2)), Status::kGranted);
  ASSERT_EQ(ask(3, a.request(6, 20, 10, 3)), Status::kGranted);

  const auto monitored = statd_calls(world, StatdProc::kMon);
  ASSERT_EQ(monitored.size(), 1U);
  nlm::StatusCall word{"127.0.0.1", 5, secret_of(monitored[0])};
  auto statd = world.client("statd");
  EXPECT_EQ(statd.call(Proc::kSmNotify, nlm::encode_status_call(word)), "");
  EXPECT_TRUE(world.grants(1).empty());
  EXPECT_EQ(world.grants(2), (std::vector<std::string>{"EX 0 10 1"}));
  EXPECT_TRUE(world.grants(3).empty());
  EXPECT_EQ(world.grants(4), (std::vector<std::string>{"EX 0 10 1"}));
  EXPECT_TRUE(world.grants(5).empty());
  EXPECT_EQ(world.waiters(6), 2U);
  EXPECT_EQ(world.grants(6), (std::vector<std::string>{"EX 0 10 4711", "EX 10 10 2"}));
  // Who waits still is granted in turn.
  world.local_unlock(6, *ByteRange::from_half_open(0, 10));
  EXPECT_TRUE(NlmWorld::await([&] { return world.service->desk().figures().waiting == 1; }));
  EXPECT_EQ(world.waiters(6), 1U);

  word.state = 7;
  EXPECT_EQ(statd.call(Proc::kSmNotify, nlm::encode_status_call(word)), "");
  EXPECT_EQ(world.service->desk().figures().held, 0U);
  EXPECT_TRUE(world.grants(6).empty());
  // One that goes down has no new life, and FREE_ALL means all.
  ASSERT_EQ(ask(8, a.request(1, 0, 10)), Status::kGranted);
  word.state = 8;
  EXPECT_EQ(statd.call(Proc::kSmNotify, nlm::encode_status_call(word)), "");
  ASSERT_EQ(ask(9, a.request(2, 0, 10)), Status::kGranted);
  EXPECT_EQ(a.call(Proc::kFreeAll, nlm::encode_free_call({"a", 9})), "");
  EXPECT_EQ(world.service->desk().figures().held, 0U);
}

// As after a disk that came back from a copy: then nobody is left who asked.
TEST(NlmMonitor, ANumberThatComesAgainIsOfAnotherLife) {
  NlmWorld world;
  auto a = world.client("a");
  LockCall call = a.request(1, 0, 10);
  call.state = 7;
  ASSERT_EQ(a.lock(call), Status::kGranted);
  const auto monitored = statd_calls(world, StatdProc::kMon);
  ASSERT_EQ(monitored.size(), 1U);
  auto statd = world.client("statd");
  const nlm::StatusCall word{"127.0.0.1", 7, secret_of(monitored[0])};
  EXPECT_EQ(statd.call(Proc::kSmNotify, nlm::encode_status_call(word)), "");
  EXPECT_TRUE(world.grants(1).empty());
  EXPECT_EQ(world.service->desk().figures().held, 0U);
}

// What it asked for before it restarted, and what a mount held up until after, is nobody's.
TEST(NlmMonitor, WhatWasHeldUpWhileItsClientRestartedLocksNothing) {
  auto options = NlmWorld::quick();
  options.server.threads = 8;  // two of them for a mount
  NlmWorld world{options};
  auto a = world.client("a");
  auto b = world.client("b");
  auto again = world.client("a");
  ASSERT_EQ(a.lock(a.request(1, 0, 10)), Status::kGranted);
  world.files.hangs = true;
  a.send(a.message(Proc::kLock, nlm::encode_lock_call(nlm::Form::kLock, a.request(2, 0, 10))));
  b.send(b.message(Proc::kShare,
                   nlm::encode_share_call({"", "a", handle_of(3), "owner", 3, 3, false})));
  EXPECT_TRUE(NlmWorld::await([&] { return world.files.hanging == 2; }));
  world.service->desk().client_restarted("127.0.0.1", 5);
  world.files.hangs = false;
  EXPECT_TRUE(a.receive(std::chrono::minutes{1}));
  EXPECT_TRUE(b.receive(std::chrono::minutes{1}));
  EXPECT_TRUE(world.grants(1).empty());
  EXPECT_TRUE(world.grants(2).empty());
  EXPECT_EQ(world.service->desk().figures().held, 0U);
  EXPECT_EQ(again.lock(again.request(2, 0, 10)), Status::kGranted);
}

// A first lock is not taken for one of an earlier life because its host becomes known meanwhile.
TEST(NlmMonitor, AHostThatBecomesKnownMeanwhileHasItsFirstLock) {
  auto options = NlmWorld::quick();
  options.desk.admission_ns = 3'600'000'000'000;
  NlmWorld world{options};
  auto other = world.client("other");
  auto a = world.client("a");
  auto beside = world.client("a");
  ASSERT_EQ(other.lock(other.request(1, 0, 10)), Status::kGranted);
  world.files.hangs = true;
  a.send(a.message(Proc::kLock, nlm::encode_lock_call(nlm::Form::kLock, a.request(2, 0, 10))));
  EXPECT_TRUE(NlmWorld::await([&] { return world.files.hanging == 1; }));
  EXPECT_EQ(beside.lock(beside.request(1, 10, 10)), Status::kGranted) << "a file that is open";
  world.files.hangs = false;
  EXPECT_TRUE(a.receive(std::chrono::minutes{1}));
  EXPECT_EQ(world.grants(2), (std::vector<std::string>{"EX 0 10 1"}));
}

TEST(NlmMonitor, OnlyStatdOfThisMachineIsHeard) {
  auto options = NlmWorld::quick();
  options.dispatcher.root_port_reserved = true;
  NlmWorld world{options};
  auto a = world.client("a");
  ASSERT_EQ(a.lock(a.request(1, 0, 10)), Status::kGranted);
  const auto monitored = statd_calls(world, StatdProc::kMon);
  ASSERT_EQ(monitored.size(), 1U);
  const nlm::StatusCall word{"127.0.0.1", 3, secret_of(monitored[0])};
  const auto reply = a.exchange(a.message(Proc::kSmNotify, nlm::encode_status_call(word)));
  ASSERT_TRUE(reply);
  const auto decoded = nlm::decode_reply(*reply);
  ASSERT_TRUE(decoded);
  EXPECT_EQ(decoded->accept, nlm::Accept::kSystemError);
  EXPECT_EQ(world.grants(1).size(), 1U);
}

TEST(NlmMonitor, WhoHoldsNothingForAWhileIsMonitoredNoMore) {
  auto options = NlmWorld::quick();
  options.hosts.idle_ns = 1;
  NlmWorld world{options};
  auto a = world.client("a");
  auto b = world.client("b");
  ASSERT_EQ(a.lock(a.request(1, 0, 10)), Status::kGranted);
  ASSERT_EQ(b.lock(b.request(2, 0, 10)), Status::kGranted);
  EXPECT_EQ(a.unlock(a.request(1, 0, 10)), Status::kGranted);
  EXPECT_TRUE(NlmWorld::await([&] { return world.service->hosts().size() == 1; }));
  EXPECT_TRUE(statd_calls(world, StatdProc::kUnmon).empty()) << "b is at the same address";
  EXPECT_EQ(b.unlock(b.request(2, 0, 10)), Status::kGranted);
  EXPECT_TRUE(NlmWorld::await([&] { return statd_calls(world, StatdProc::kUnmon).size() == 1; }));
  EXPECT_EQ(a.lock(a.request(1, 0, 10)), Status::kGranted);
  EXPECT_EQ(statd_calls(world, StatdProc::kMon).size(), 2U);
}

TEST(NlmGrace, OnlyWhatIsReclaimedIsGiven) {
  auto options = NlmWorld::quick();
  options.desk.grace_ns = 3'600'000'000'000;
  NlmWorld world{options};
  auto a = world.client("a");
  LockCall call = a.request(1, 0, 0);
  EXPECT_EQ(a.lock(call), Status::kDeniedGracePeriod);
  EXPECT_EQ(a.ask(Proc::kNmLock, nlm::Form::kLock, call), Status::kDeniedGracePeriod);
  EXPECT_EQ(a.test(call).status, Status::kDeniedGracePeriod);
  EXPECT_EQ(a.cancel(call), Status::kDeniedGracePeriod);
  EXPECT_EQ(a.unlock(call), Status::kDeniedGracePeriod);
  nlm::ShareCall share{"c", "a", handle_of(1), "o", 0, 1, false};
  EXPECT_EQ(a.ask_share(Proc::kShare, share), Status::kDeniedGracePeriod);
  EXPECT_EQ(a.ask_share(Proc::kUnshare, share), Status::kDeniedGracePeriod);
  call.reclaim = true;
  EXPECT_EQ(a.lock(call), Status::kGranted);
  EXPECT_EQ(a.lock(call), Status::kGranted);
  share.reclaim = true;
  EXPECT_EQ(a.ask_share(Proc::kShare, share), Status::kGranted);
  auto b = world.client("b");
  LockCall theirs = b.request(1, 0, 0);
  theirs.reclaim = true;
  theirs.block = true;
  EXPECT_EQ(b.lock(theirs), Status::kDenied) << "nobody waits for what he had";
  EXPECT_EQ(world.grants(1).size(), 1U);
}

TEST(NlmGrace, AfterItNothingIsReclaimed) {
  NlmWorld world;
  auto a = world.client("a");
  LockCall call = a.request(1, 0, 10);
  call.reclaim = true;
  EXPECT_EQ(a.lock(call), Status::kDeniedGracePeriod);
  call.reclaim = false;
  EXPECT_EQ(a.lock(call), Status::kGranted);
  call.reclaim = true;
  EXPECT_EQ(a.lock(call), Status::kGranted) << "his own";
  call.what.length = 11;
  EXPECT_EQ(a.lock(call), Status::kDeniedGracePeriod);
}

TEST(NlmGrace, ItEnds) {
  auto options = NlmWorld::quick();
  options.desk.grace_ns = 50'000'000;
  NlmWorld world{options};
  auto a = world.client("a");
  EXPECT_TRUE(NlmWorld::await([&] { return a.lock(a.request(1, 0, 0)) == Status::kGranted; }));
}

// The service dies, or ends, while one client holds a lock and another one only did.
TEST(NlmRestart, WhoHeldLocksIsToldToReclaimThem) {
  const TempDir state;
  auto options = NlmWorld::quick();
  options.monitor.state_dir = state.path();
  options.monitor.own_name = "server";
  {
    NlmWorld world{options};
    EXPECT_EQ(statd_calls(world, StatdProc::kUnmonAll).size(), 1U);
    EXPECT_TRUE(statd_calls(world, StatdProc::kNotify).empty()) << "nobody";
    auto a = world.client("a");
    NlmClient b{world.port(), {"b", false, "127.0.0.2"}};
    ASSERT_EQ(a.lock(a.request(1, 0, 0)), Status::kGranted);
    ASSERT_EQ(b.lock(b.request(2, 0, 0)), Status::kGranted);
    ASSERT_EQ(b.unlock(b.request(2, 0, 0)), Status::kGranted);
    EXPECT_TRUE(std::filesystem::exists(state.path() + "/monitored/127.0.0.2"));
  }
  EXPECT_TRUE(std::filesystem::exists(state.path() + "/monitored/127.0.0.1"));
  EXPECT_FALSE(std::filesystem::exists(state.path() + "/monitored/127.0.0.2"));
  // (As a death would have left it.)
  std::ofstream{state.path() + "/monitored/127.0.0.3"} << "127.0.0.1\n";
  {
    NlmWorld world{options};
    EXPECT_TRUE(
        NlmWorld::await([&] { return statd_calls(world, StatdProc::kNotify).size() == 2; }));
    std::set<std::string> told;
    for (const auto& call : statd_calls(world, StatdProc::kNotify)) {
      told.insert(call.where.address);
      EXPECT_EQ(call.where.local, "127.0.0.1");
      EXPECT_NE(call.arguments.find("server"), std::string::npos);
    }
    EXPECT_EQ(told, (std::set<std::string>{"127.0.0.1", "127.0.0.3"}));
    EXPECT_TRUE(NlmWorld::await([&] {
      return std::filesystem::is_empty(state.path() + "/notify") &&
             std::filesystem::is_empty(state.path() + "/monitored");
    }));
  }
  NlmWorld world{options};
  EXPECT_TRUE(statd_calls(world, StatdProc::kNotify).empty());
}

TEST(NlmRestart, WhoCannotBeToldIsToldLater) {
  const TempDir state;
  auto options = NlmWorld::quick();
  options.monitor.state_dir = state.path();
  std::filesystem::create_directories(state.path() + "/notify");
  std::ofstream{state.path() + "/notify/127.0.0.3"} << "127.0.0.1\n";
  std::ofstream{state.path() + "/notify/no address"} << "127.0.0.1\n";
  std::atomic<int> tries{0};
  FakeOutside outside;
  outside.answer_by([&](const FakeOutside::Call& call) -> Result<std::string> {
    if (call.procedure == static_cast<std::uint32_t>(StatdProc::kNotify) && ++tries == 1) {
      return errno_code(ETIMEDOUT);
    }
    return FakeOutside::granted_answer(call);
  });
  const NlmWorld world{options, &outside};
  EXPECT_TRUE(NlmWorld::await(
      [&] { return !std::filesystem::exists(state.path() + "/notify/127.0.0.3"); }));
  EXPECT_EQ(tries, 2);
}

// What one has against what the next one asks for: denied where either denies what the other does.
TEST(NlmShare, EveryModeAgainstEveryMode) {
  NlmWorld world;
  auto a = world.client("a");
  auto b = world.client("b");
  for (std::uint32_t deny = 0; deny < 4; ++deny) {
    for (std::uint32_t access = 0; access < 4; ++access) {
      nlm::ShareCall first{"1", "a", handle_of(1), "owner", deny, access, false};
      ASSERT_EQ(a.ask_share(Proc::kShare, first), Status::kGranted);
      for (std::uint32_t other_deny = 0; other_deny < 4; ++other_deny) {
        for (std::uint32_t other_access = 0; other_access < 4; ++other_access) {
          SCOPED_TRACE(testing::Message() << deny << access << other_deny << other_access);
          nlm::ShareCall second{"2", "b", handle_of(1), "owner", other_deny, other_access, false};
          // By the words of the protocol, bit by bit.
          bool clash = false;
          for (const std::uint32_t bit : {1U, 2U}) {
            clash |= (deny & bit) == bit && (other_access & bit) == bit;
            clash |= (other_deny & bit) == bit && (access & bit) == bit;
          }
          EXPECT_EQ(b.ask_share(Proc::kShare, second), clash ? Status::kDenied : Status::kGranted);
          EXPECT_EQ(b.ask_share(Proc::kUnshare, second), Status::kGranted);
        }
      }
    }
  }
  EXPECT_EQ(world.service->desk().figures().held, 1U) << "one share, changed sixteen times";
  EXPECT_EQ(a.ask_share(Proc::kUnshare, {"", "a", handle_of(1), "other", 0, 0, false}),
            Status::kGranted);
  EXPECT_EQ(world.service->desk().figures().held, 1U);
  EXPECT_EQ(a.ask_share(Proc::kUnshare, {"", "a", handle_of(1), "owner", 0, 0, false}),
            Status::kGranted);
  EXPECT_EQ(world.service->desk().figures().held, 0U);
  EXPECT_EQ(a.ask_share(Proc::kUnshare, {"", "a", handle_of(1), "owner", 0, 0, false}),
            Status::kGranted);
}

}  // namespace
}  // namespace latchfs::test
