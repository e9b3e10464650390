// What does not answer, or asks too much, holds up itself alone: statd, a mount, a client. And who
// may ask at all.
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <rpc/rpc.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <thread>

#include "base/clock.h"
#include "nlm/net_outside.h"
#include "nlm_world.h"
#include "store/memory/memory_store.h"
#include "support/mount_fixture.h"

namespace latchfs::test {
namespace {

using nlm::LockCall;
using nlm::Proc;
using nlm::StatdProc;
using nlm::Status;
using std::chrono::milliseconds;

bool is_statd(const FakeOutside::Call& call, StatdProc procedure) {
  return call.program == nlm::kStatdProgram &&
         call.procedure == static_cast<std::uint32_t>(procedure);
}

// Four threads, one of which statd or a mount may have, at once and for good.
nlm::Service::Options impatient() {
  auto options = NlmWorld::quick();
  options.patience_ns = 0;
  return options;
}

std::string lock_message(NlmClient& client, std::uint64_t node) {
  return client.message(Proc::kLock,
                        nlm::encode_lock_call(nlm::Form::kLock, client.request(node, 0, 10)));
}

// Asks until it is answered, as clients do.
bool answered(NlmClient& client, std::uint64_t node) {
  return NlmWorld::await(
      [&] { return client.exchange(lock_message(client, node), milliseconds{200}).has_value(); });
}

TEST(NlmOutage, AStatdThatHangsHoldsUpNobodyThatIsKnown) {
  std::atomic<bool> hangs{false};
  std::atomic<int> hanging{0};
  NlmWorld world{impatient()};
  world.outside.answer_by([&](const FakeOutside::Call& call) -> Result<std::string> {
    if (is_statd(call, StatdProc::kMon) && hangs) {
      ++hanging;
      EXPECT_TRUE(NlmWorld::await([&] { return !hangs; }));
    }
    return FakeOutside::granted_answer(call);
  });
  auto known = world.client("known");
  ASSERT_EQ(known.lock(known.request(1, 0, 10)), Status::kGranted);
  hangs = true;
  std::vector<std::unique_ptr<NlmClient>> fresh;
  for (int i = 10; i < 20; ++i) {
    const std::string address = "127.0.0." + std::to_string(i);
    fresh.push_back(std::make_unique<NlmClient>(
        world.port(), NlmClient::Options{"client" + std::to_string(i), false, address}));
    fresh.back()->send(lock_message(*fresh.back(), 1000 + static_cast<std::uint64_t>(i)));
  }
  ASSERT_TRUE(NlmWorld::await([&] { return hanging > 0; }));
  EXPECT_EQ(known.unlock(known.request(1, 0, 10)), Status::kGranted);
  // (The others' files are being opened meanwhile, of which there is one at a time: then it is not
  // answered, and he asks again.)
  EXPECT_TRUE(answered(known, 2));
  EXPECT_EQ(world.grants(2).size(), 1U);
  EXPECT_EQ(known.call(Proc::kNull, ""), "");
  EXPECT_EQ(hanging, 1);
  hangs = false;
  // Who was not answered asks again.
  EXPECT_TRUE(answered(*fresh[9], 1019));
  EXPECT_EQ(world.grants(1019).size(), 1U);
}

TEST(NlmOutage, AMountThatHangsHoldsUpNoLocksThatAreHeld) {
  NlmWorld world{impatient()};
  auto a = world.client("a");
  ASSERT_EQ(a.lock(a.request(1, 0, 10)), Status::kGranted);
  world.files.hangs = true;
  auto b = world.client("b");
  for (std::uint64_t node = 10; node < 20; ++node) b.send(lock_message(b, node));
  ASSERT_TRUE(NlmWorld::await([&] { return world.files.hanging > 0; }));
  EXPECT_EQ(a.unlock(a.request(1, 0, 10)), Status::kGranted);
  EXPECT_EQ(a.call(Proc::kNull, ""), "");
  EXPECT_EQ(world.files.hanging, 1);
  world.files.hangs = false;
  EXPECT_TRUE(answered(a, 19));
  EXPECT_EQ(world.grants(19).size(), 1U);
}

// The parts without the sockets: all calls to clients are taken.
TEST(NlmOutage, AGrantForWhichThereIsNoPlaceIsKeptAndToldLater) {
  std::atomic<bool> end{false};
  std::atomic<bool> begun{false};
  nlm::Waits waits;
  const auto store = make_memory_store(waits);
  FakeFiles files;
  FakeOutside outside;
  nlm::Places places{{}};
  nlm::Outcalls others{{}};
  nlm::Outcalls grants{{1, 2}};
  nlm::Monitor monitor{{}, outside, others, places};
  nlm::Hosts hosts{{}, *store, monitor, others};
  nlm::LockDesk desk{{}, *store, waits, files, hosts, outside, grants};
  ASSERT_TRUE(grants.at(0, "x", [&] {
    begun = true;
    EXPECT_TRUE(NlmWorld::await([&] { return end.load(); }));
  }));
  ASSERT_TRUE(NlmWorld::await([&] { return begun.load(); }));
  ASSERT_TRUE(grants.at(0, "y", [] {}));
  ASSERT_FALSE(grants.at(0, "z", [] {}));

  const nlm::Source a{"192.0.2.1", "192.0.2.9", false};
  const nlm::Source b{"192.0.2.2", "192.0.2.9", false};
  LockCall first;
  first.exclusive = true;
  first.what = {"a", handle_of(1), "1@a", 1, 0, 10};
  LockCall second = first;
  second.block = true;
  second.what.caller = "b";
  ASSERT_EQ(desk.lock(first, a, {}, {}), Status::kGranted);
  ASSERT_EQ(desk.lock(second, b, {}, {}), Status::kBlocked);
  ASSERT_EQ(desk.unlock(first, a), Status::kGranted);
  // (The grant is in the table at once; its word comes by a thread, which finds no place.)
  desk.let_go();
  EXPECT_EQ(desk.lock(first, a, {}, {}), Status::kDenied);
  end = true;
  EXPECT_TRUE(NlmWorld::await([&] {
    desk.let_go();
    return outside.calls(nlm::kNlmProgram).size() == 1;
  }));
  EXPECT_EQ(desk.lock(first, a, {}, {}), Status::kDenied) << "b has it";
  EXPECT_TRUE(NlmWorld::await([&] { return desk.figures().waiting == 0; }));
  EXPECT_EQ(desk.unlock(second, b), Status::kGranted);
  EXPECT_EQ(desk.lock(first, a, {}, {}), Status::kGranted);
  grants.stop();
  others.stop();
}

// A desk without sockets; who takes the one thread there is for calls to b does not end before
// `end`.
class NlmBusyCalls : public ::testing::Test {
 protected:
  explicit NlmBusyCalls(std::size_t most_of_one) : grants{{1, 100'000, most_of_one}} {
    first.exclusive = true;
    first.what = {"a", "", "1@a", 1, 0, 10};
    second = first;
    second.block = true;
    second.what.caller = "b";
  }
  NlmBusyCalls() : NlmBusyCalls{2} {}
  ~NlmBusyCalls() override {
    end = true;
    grants.stop();
    others.stop();
  }
  void SetUp() override {
    ASSERT_TRUE(grants.at(0, b.address, [&] {
      begun = true;
      while (!end) std::this_thread::sleep_for(milliseconds{1});
    }));
    ASSERT_TRUE(NlmWorld::await([&] { return begun.load(); }));
  }
  static nlm::LockDesk::Options closing_at_once() {
    nlm::LockDesk::Options out;
    out.idle_file_ns = 0;
    return out;
  }
  // b waits for what a holds, and a gives it back.
  void grant_to_b(std::uint64_t node) {
    first.what.handle = second.what.handle = handle_of(node);
    ASSERT_EQ(desk.lock(first, a, {}, {}), Status::kGranted);
    ASSERT_EQ(desk.lock(second, b, {}, {}), Status::kBlocked);
    ASSERT_EQ(desk.unlock(first, a), Status::kGranted);
  }
  bool all_closed() {
    return NlmWorld::await([&] {
      desk.let_go();
      return files.open_files() == 0;
    });
  }

  const nlm::Source a{"192.0.2.1", "192.0.2.9", false};
  const nlm::Source b{"192.0.2.2", "192.0.2.9", false};
  LockCall first;
  LockCall second;
  std::atomic<bool> end{false};
  std::atomic<bool> begun{false};
  nlm::Waits waits;
  std::unique_ptr<LockService> store = make_memory_store(waits);
  FakeFiles files;
  FakeOutside outside;
  nlm::Places places{{}};
  nlm::Outcalls others{{}};
  nlm::Outcalls grants;
  nlm::Monitor monitor{{}, outside, others, places};
  nlm::Hosts hosts{{}, *store, monitor, others};
  nlm::LockDesk desk{closing_at_once(), *store, waits, files, hosts, outside, grants};
};

// A client for whose calls there is no place, and who does not wait for them: what is over is
// neither told later nor does it keep its file.
TEST_F(NlmBusyCalls, WhatIsOverWaitsForNoPlace) {
  for (int i = 0; i < 2; ++i) ASSERT_TRUE(grants.at(0, b.address, [] {}));
  ASSERT_FALSE(grants.at(0, b.address, [] {}));
  for (std::uint64_t node = 1001; node <= 2000; ++node) {
    ASSERT_NO_FATAL_FAILURE(grant_to_b(node)) << node;
    // The grant's word, which comes by a thread of its own.
    ASSERT_TRUE(NlmWorld::await([&] { return desk.figures().untold != 0; })) << node;
    ASSERT_EQ(desk.figures().waiting, 1U);
    ASSERT_EQ(desk.cancel(second, b), Status::kGranted);
    ASSERT_EQ(desk.figures().untold, 0U) << node;
    if (node % 100 != 0) continue;
    ASSERT_TRUE(all_closed()) << files.open_files();
  }
  EXPECT_TRUE(outside.calls(nlm::kNlmProgram).empty());
}

class NlmManyCalls : public NlmBusyCalls {
 protected:
  NlmManyCalls() : NlmBusyCalls{100'000} {}
};

// Nor is it kept by a call that has a place.
TEST_F(NlmManyCalls, WhatIsOverIsNotKeptByItsCall) {
  for (std::uint64_t node = 1001; node <= 1100; ++node) {
    ASSERT_NO_FATAL_FAILURE(grant_to_b(node)) << node;
    // Asked again, it is granted when the word has come.
    ASSERT_TRUE(NlmWorld::await([&] { return desk.lock(second, b, {}, {}) == Status::kGranted; }));
    ASSERT_EQ(desk.unlock(second, b), Status::kGranted);
  }
  EXPECT_TRUE(all_closed()) << files.open_files();
  EXPECT_EQ(desk.figures().untold, 0U);
}

// Who sends records without end, none of them the answer, is not listened to for ever.
TEST(NlmOutage, WhoSendsNoiseIsNotHeardForEver) {
  UniqueFd listener{::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)};
  const auto any = nlm::Endpoint::parse("127.0.0.1", 0);
  ASSERT_TRUE(any);
  ASSERT_EQ(::bind(listener.get(), any->data(), any->size()), 0);
  ASSERT_EQ(::listen(listener.get(), 1), 0);
  sockaddr_in bound{};
  socklen_t size = sizeof bound;
  ASSERT_EQ(::getsockname(listener.get(), reinterpret_cast<sockaddr*>(&bound), &size), 0);
  std::thread peer{[&] {
    const UniqueFd connection{::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC)};
    const std::string empty{"\x80\0\0\0", 4};
    while (::send(connection.get(), empty.data(), empty.size(), MSG_NOSIGNAL) == 4) {
    }
  }};
  unsigned unanswered = 0;
  const auto said = nlm::call_at(*nlm::Endpoint::parse("127.0.0.1", ntohs(bound.sin_port)), "",
                                 true, 100021, 4, 5, "", milliseconds{600'000}, unanswered);
  EXPECT_EQ(said.error(), errno_code(EPROTO));
  EXPECT_EQ(unanswered, 1U) << "it may have been heard";
  peer.join();
}

// Before a client is served, statd has forgotten what it was asked for by the run before, and
// those to be told are set apart.
TEST(NlmRestartOrder, StatdForgetsBeforeAnybodyIsServedOrTold) {
  const TempDir state;
  std::filesystem::create_directories(state.path() + "/monitored");
  std::ofstream{state.path() + "/monitored/127.0.0.3"} << "127.0.0.1\n";
  auto options = NlmWorld::quick();
  options.monitor.state_dir = state.path();
  nlm::Waits waits;
  const auto store = make_memory_store(waits);
  FakeFiles files;
  FakeOutside outside;
  std::atomic<int> forgotten{0};  // counted until the service ends
  std::unique_ptr<nlm::Service> service;
  outside.answer_by([&](const FakeOutside::Call& call) -> Result<std::string> {
    if (is_statd(call, StatdProc::kUnmonAll) && ++forgotten == 1) {
      EXPECT_TRUE(std::filesystem::is_empty(state.path() + "/monitored"));
      NlmClient early{service->port(), {"early"}};
      EXPECT_FALSE(early.exchange(lock_message(early, 1), milliseconds{300})) << "served already";
      for (const auto& before : outside.calls(nlm::kStatdProgram)) {
        EXPECT_TRUE(is_statd(before, StatdProc::kUnmonAll)) << before.procedure;
      }
    }
    return FakeOutside::granted_answer(call);
  });
  auto opened = nlm::Service::open(options, *store, waits, files, outside);
  ASSERT_TRUE(opened);
  service = std::move(*opened);
  service->start();
  EXPECT_EQ(forgotten, 1);
  EXPECT_TRUE(NlmWorld::await([&] { return std::filesystem::is_empty(state.path() + "/notify"); }));
  // What was asked meanwhile is answered now.
  EXPECT_TRUE(NlmWorld::await(
      [&] { return std::filesystem::exists(state.path() + "/monitored/127.0.0.1"); }));
}

std::int32_t state_told(const TempDir& state) {
  std::filesystem::create_directories(state.path() + "/notify");
  std::ofstream{state.path() + "/notify/127.0.0.3"} << "127.0.0.1\n";
  auto options = NlmWorld::quick();
  options.monitor.state_dir = state.path();
  options.monitor.own_name = "server";
  NlmWorld world{options};
  for (const auto& call : world.outside.await(nlm::kStatdProgram, 2)) {
    if (!is_statd(call, StatdProc::kNotify) || call.arguments.size() < 4) continue;
    std::uint32_t number = 0;
    call.arguments.copy(reinterpret_cast<char*>(&number), 4, call.arguments.size() - 4);
    return static_cast<std::int32_t>(ntohl(number));
  }
  return 0;
}

TEST(NlmRestartOrder, EachRestartHasAStateOfItsOwn) {
  const TempDir state;
  std::int32_t last = 0;
  for (int i = 0; i < 4; ++i) {
    const std::int32_t now = state_told(state);
    EXPECT_GT(now, last);
    EXPECT_EQ(now % 2, 1) << "up";
    last = now;
  }
}

TEST(NlmRestartOrder, WithoutStatdWhoHeldLocksIsToldAllTheSame) {
  const TempDir state;
  auto options = NlmWorld::quick();
  options.monitor.state_dir = state.path();
  options.monitor.statd = false;
  {
    NlmWorld world{options};
    auto a = world.client("a");
    ASSERT_EQ(a.lock(a.request(1, 0, 0)), Status::kGranted);
  }
  NlmWorld world{options};
  const auto calls = world.outside.await(nlm::kStatdProgram, 1);
  ASSERT_EQ(calls.size(), 1U);
  EXPECT_TRUE(is_statd(calls[0], StatdProc::kNotify));
  EXPECT_EQ(calls[0].where.address, "127.0.0.1");
}

TEST(NlmMonitorParts, AChangeThatWasNotDealtWithCountsAgain) {
  FakeOutside outside;
  nlm::Places places{{}};
  nlm::Outcalls calls{{}};
  nlm::Monitor monitor{{}, outside, calls, places};
  ASSERT_TRUE(monitor.watch("192.0.2.1", ""));
  const auto asked = outside.calls(nlm::kStatdProgram);
  ASSERT_EQ(asked.size(), 1U);
  nlm::StatusCall word{"192.0.2.1", 3, {}};
  asked[0].arguments.copy(reinterpret_cast<char*>(word.secret.data()), word.secret.size(),
                          asked[0].arguments.size() - word.secret.size());
  EXPECT_TRUE(monitor.changed(word));
  EXPECT_FALSE(monitor.changed(word));
  monitor.unnote_change(word);
  EXPECT_TRUE(monitor.changed(word));
}

TEST(NlmPorts, WhoSpeaksFromAnOrdinaryPortGetsNoLock) {
  auto options = NlmWorld::quick();
  options.dispatcher.insecure_ports = false;
  NlmWorld world{options};
  for (const bool tcp : {false, true}) {
    auto a = world.client("a", tcp);
    EXPECT_EQ(a.call(Proc::kNull, ""), "");
    for (const Proc procedure : {Proc::kTest, Proc::kLock, Proc::kCancel, Proc::kUnlock,
                                 Proc::kLockMsg, Proc::kNmLock, Proc::kShare, Proc::kUnshare}) {
      const auto reply = a.exchange(a.message(procedure, ""));
      ASSERT_TRUE(reply);
      // xid, reply, denied, authentication error, too weak
      EXPECT_EQ(reply->substr(4), std::string("\0\0\0\1\0\0\0\1\0\0\0\1\0\0\0\5", 16));
    }
    const auto reply = a.exchange(lock_message(a, 1));
    ASSERT_TRUE(reply);
    EXPECT_TRUE(world.grants(1).empty());
  }
}

TEST(NlmPorts, OneMayNotGiveAllBackFromAnOrdinaryPort) {
  auto options = NlmWorld::quick();
  options.dispatcher.root_port_reserved = true;
  NlmWorld world{options};
  auto a = world.client("a");
  ASSERT_EQ(a.lock(a.request(1, 0, 10)), Status::kGranted);
  const auto reply = a.exchange(a.message(Proc::kFreeAll, nlm::encode_free_call({"a", 5})));
  ASSERT_TRUE(reply);
  const auto decoded = nlm::decode_reply(*reply);
  ASSERT_TRUE(decoded);
  EXPECT_TRUE(decoded->denied);
  EXPECT_EQ(world.grants(1).size(), 1U);
}

TEST(NlmPorts, AReservedPortSuffices) {
  if (::geteuid() != 0) GTEST_SKIP() << "root may bind a reserved port";
  auto options = NlmWorld::quick();
  options.dispatcher.insecure_ports = false;
  options.dispatcher.root_port_reserved = true;
  NlmWorld world{options};
  NlmClient::Options who{"a"};
  who.reserved_port = true;
  NlmClient a{world.port(), who};
  ASSERT_EQ(a.lock(a.request(1, 0, 10)), Status::kGranted);
  EXPECT_EQ(a.call(Proc::kFreeAll, nlm::encode_free_call({"a", 5})), "");
  EXPECT_TRUE(world.grants(1).empty());
}

}  // namespace
}  // namespace latchfs::test
