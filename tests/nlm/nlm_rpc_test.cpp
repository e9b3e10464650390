// The envelope: what is no call, calls of other programs, broken records, floods of them.
#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <thread>

#include "nlm_world.h"
#include "support/store_fixture.h"

namespace latchfs::test {
namespace {

using nlm::Accept;
using nlm::Form;
using nlm::Proc;
using nlm::Status;
using std::chrono::milliseconds;

std::string words(const std::vector<std::uint32_t>& values) {
  std::string out;
  for (const std::uint32_t value : values) {
    for (int shift = 24; shift >= 0; shift -= 8) out += static_cast<char>(value >> shift);
  }
  return out;
}

std::string lock_arguments() {
  nlm::LockCall call;
  call.cookie = "cookie";
  call.exclusive = true;
  call.what = {"a", handle_of(1), "1@a", 1, 0, 0};
  return nlm::encode_lock_call(Form::kLock, call);
}

// A socket on which nothing is answered is answered after it: by this the tests wait for nothing.
void expect_alive(NlmWorld& world, bool tcp = false) {
  auto a = world.client("alive", tcp);
  // (A datagram in a flood of others may be lost: asked again, as clients do.)
  EXPECT_TRUE(NlmWorld::await([&] {
    return a.exchange(a.message(Proc::kNull, ""), milliseconds{tcp ? 60'000 : 500}).has_value();
  }));
}

class NlmRpc : public ::testing::TestWithParam<bool> {
 protected:
  NlmClient client() { return world.client("a", GetParam()); }
  std::string answer(std::string_view message) {
    auto a = client();
    return a.exchange(message).value_or("no answer");
  }
  NlmWorld world;
};
INSTANTIATE_TEST_SUITE_P(Transport, NlmRpc, ::testing::Bool(),
                         [](const auto& one) { return one.param ? "Tcp" : "Udp"; });

TEST_P(NlmRpc, OtherProgramsVersionsAndProceduresAreRefusedByTheBook) {
  // xid, call, RPC version, program, version, procedure, two authenticators of no length
  EXPECT_EQ(answer(words({7, 0, 2, 100003, 3, 0, 0, 0, 0, 0})), words({7, 1, 0, 0, 0, 1}));
  for (const std::uint32_t version : {0U, 1U, 3U, 5U, 0xffffffffU}) {
    EXPECT_EQ(answer(words({7, 0, 2, 100021, version, 0, 0, 0, 0, 0})),
              words({7, 1, 0, 0, 0, 2, 4, 4}));
  }
  for (const std::uint32_t procedure : {17U, 18U, 19U, 24U, 1000U, 0xffffffffU}) {
    EXPECT_EQ(answer(words({7, 0, 2, 100021, 4, procedure, 0, 0, 0, 0})),
              words({7, 1, 0, 0, 0, 3}));
  }
  EXPECT_EQ(answer(words({7, 0, 3, 100021, 4, 0, 0, 0, 0, 0})), words({7, 1, 1, 0, 2, 2}));
  EXPECT_EQ(answer(words({7, 0, 2, 100021, 4, 0, 0, 0, 0, 0})), words({7, 1, 0, 0, 0, 0}));
}

TEST_P(NlmRpc, CredentialsOfOtherKindsAreRefused) {
  const std::string bad = words({7, 1, 1, 1, 1});  // denied, AUTH_ERROR, AUTH_BADCRED
  EXPECT_EQ(answer(words({7, 0, 2, 100021, 4, 0, 6, 0, 0, 0})), bad) << "RPCSEC_GSS";
  EXPECT_EQ(answer(words({7, 0, 2, 100021, 4, 0, 3, 4, 0, 0, 0})), bad) << "AUTH_DH";
  EXPECT_EQ(answer(words({7, 0, 2, 100021, 4, 0, 1, 0, 0, 0})), bad) << "AUTH_SYS without a word";
  // stamp, name, uid, gid, 17 groups
  std::vector<std::uint32_t> many{7, 0, 2, 100021, 4, 0, 1, 4 * (5 + 17), 0, 0, 1, 1, 17};
  many.resize(many.size() + 17);
  many.insert(many.end(), {0, 0});
  EXPECT_EQ(answer(words(many)), bad) << "more than sixteen groups";
}

TEST_P(NlmRpc, ArgumentsThatAreNoneAreGarbage) {
  const std::string garbage = words({7, 1, 0, 0, 0, 4});
  const auto call = [&](Proc procedure, std::string_view arguments) {
    return answer(words({7, 0, 2, 100021, 4, static_cast<std::uint32_t>(procedure), 0, 0, 0, 0}) +
                  std::string{arguments});
  };
  for (const Proc procedure :
       {Proc::kTest, Proc::kLock, Proc::kCancel, Proc::kUnlock, Proc::kGranted, Proc::kTestMsg,
        Proc::kLockMsg, Proc::kCancelMsg, Proc::kUnlockMsg, Proc::kGrantedMsg, Proc::kGrantedRes,
        Proc::kSmNotify, Proc::kShare, Proc::kUnshare, Proc::kNmLock, Proc::kFreeAll}) {
    EXPECT_EQ(call(procedure, ""), garbage) << static_cast<std::uint32_t>(procedure);
    EXPECT_EQ(call(procedure, words({0xffffffff, 1, 2, 3})), garbage);
  }
  const std::string whole = lock_arguments();
  for (std::size_t size = 0; size < whole.size(); ++size) {
    ASSERT_EQ(call(Proc::kLock, whole.substr(0, size)), garbage) << size;
  }
  EXPECT_TRUE(world.grants(1).empty());
  EXPECT_NE(call(Proc::kLock, whole), garbage);
  EXPECT_EQ(world.grants(1).size(), 1U);
  // Fields of 1,025 bytes.
  nlm::ShareCall share{"", "a", handle_of(1), "", 0, 0, false};
  share.deny = 4;
  EXPECT_EQ(call(Proc::kShare, nlm::encode_share_call(share)), garbage);
  share.deny = 0;
  share.access = 0xffffffff;
  EXPECT_EQ(call(Proc::kShare, nlm::encode_share_call(share)), garbage);
}

TEST_P(NlmRpc, WhatIsNoCallIsNotAnswered) {
  auto a = client();
  a.send("");
  a.send("x");
  a.send(words({7, 0}));
  a.send(words({7, 1, 0, 0, 0, 0}));          // a reply
  a.send(words({7, 2, 2, 100021, 4, 0}));     // nothing there is
  a.send(words({7, 0, 2, 100021, 4, 0, 0}));  // cut
  a.send(words({7, 0, 2, 100021, 4, 0, 0, 401, 0, 0}));
  a.send(words({7, 0, 2, 100021, 4, 0, 1, 400, 0, 0}));  // credentials that are not there
  EXPECT_EQ(a.exchange(words({8, 0, 2, 100021, 4, 0, 0, 0, 0, 0})), words({8, 1, 0, 0, 0, 0}));
}

TEST_P(NlmRpc, AnAnswerIsNoLongerThanTheQuestion) {
  auto a = client();
  auto holder = world.client("holder");
  auto request = holder.request(1, 0, 0);
  request.what.owner = std::string(1024, 'o');
  ASSERT_EQ(holder.lock(request), Status::kGranted);
  a.options.credentials = {};
  const std::string question =
      a.message(Proc::kTest, nlm::encode_lock_call(Form::kTest, a.request(1, 0, 0)));
  const auto said = a.exchange(question);
  ASSERT_TRUE(said);
  EXPECT_LE(said->size(), question.size());
}

TEST(NlmRecords, FragmentsMakeOneRecordAndSeveralRecordsAreAnsweredInTheirOrder) {
  NlmWorld world;
  auto a = world.client("a", true);
  const std::string null = words({7, 0, 2, 100021, 4, 0, 0, 0, 0, 0});
  std::string bytes;
  for (const char c : null) bytes += words({1}) + c;
  bytes += words({0x80000000});
  a.send_raw(bytes);
  EXPECT_EQ(a.receive(milliseconds{60'000}), words({7, 1, 0, 0, 0, 0}));
  bytes.clear();
  for (std::uint32_t xid = 0; xid < 200; ++xid) {
    bytes += words({0x80000000 | 40, xid, 0, 2, 100021, 4, 0, 0, 0, 0, 0});
  }
  a.send_raw(bytes);
  for (std::uint32_t xid = 0; xid < 200; ++xid) {
    ASSERT_EQ(a.receive(milliseconds{60'000}), words({xid, 1, 0, 0, 0, 0}));
  }
}

TEST(NlmRecords, WhatIsTooLongEndsTheConnection) {
  NlmWorld world;
  for (const std::string& bytes :
       {words({0xffffffff}), words({0x80000000 | 8193}), words({0x7fffffff}),
        words({8192}) + std::string(8192, 'x') + words({0x80000001}), [] {
          std::string empty;
          for (int i = 0; i < 65; ++i) empty += words({0});
          return empty;
        }()}) {
    auto a = world.client("a", true);
    a.send_raw(bytes);
    EXPECT_TRUE(a.closed());
  }
  auto datagram = world.client("a");
  datagram.send(std::string(8193, '\0'));
  datagram.send(std::string(60'000, '\0'));
  expect_alive(world);
  EXPECT_TRUE(NlmWorld::await([&] { return world.service->server().connections() == 0; }));
}

TEST(NlmConnections, WhoIsSlowWithARecordIsCutOffAndNobodyElseWaits) {
  auto options = NlmWorld::quick();
  options.server.record_ns = 200'000'000;
  NlmWorld world{options};
  std::vector<NlmClient> slow;
  for (int i = 0; i < 20; ++i) {
    slow.push_back(world.client("slow", true));
    slow.back().send_raw(i % 2 == 0 ? words({0x80000000 | 40, 7}) : std::string{"\x80"});
  }
  expect_alive(world, true);
  for (NlmClient& one : slow) EXPECT_TRUE(one.closed());
  EXPECT_TRUE(NlmWorld::await([&] { return world.service->server().connections() == 0; }));
}

TEST(NlmConnections, WhoSaysNothingIsClosedSomeDay) {
  auto options = NlmWorld::quick();
  options.server.idle_ns = 100'000'000;
  NlmWorld world{options};
  auto a = world.client("a", true);
  // (Or before it is heard.)
  EXPECT_TRUE(NlmWorld::await([&] {
    a = world.client("a", true);
    return a.exchange(a.message(Proc::kNull, "")).has_value();
  }));
  EXPECT_TRUE(a.closed());
}

TEST(NlmConnections, TooManyCostTheOnesLeastUsed) {
  auto options = NlmWorld::quick();
  options.server.most_connections = 8;
  options.server.most_of_one_address = 4;
  NlmWorld world{options};
  auto first = world.client("first", true);
  EXPECT_EQ(first.call(Proc::kNull, ""), "");
  std::vector<NlmClient> many;
  for (int i = 0; i < 4; ++i) {
    many.push_back(world.client("many", true));
    EXPECT_EQ(many.back().call(Proc::kNull, ""), "");
  }
  EXPECT_TRUE(first.closed());
  EXPECT_TRUE(NlmWorld::await([&] { return world.service->server().connections() == 4; }));
  for (NlmClient& one : many) EXPECT_EQ(one.call(Proc::kNull, ""), "");
  // Of other addresses: their own share, and eight of all.
  std::vector<NlmClient> others;
  for (int i = 2; i < 7; ++i) {
    others.push_back(NlmClient{world.port(), {"o", true, "127.0.0." + std::to_string(i)}});
    EXPECT_EQ(others.back().call(Proc::kNull, ""), "");
  }
  EXPECT_TRUE(many.front().closed());
  EXPECT_EQ(many.back().call(Proc::kNull, ""), "");
  for (NlmClient& one : others) EXPECT_EQ(one.call(Proc::kNull, ""), "");
}

TEST(NlmConnections, WhoDoesNotReadHoldsUpHimselfAlone) {
  auto options = NlmWorld::quick();
  options.server.threads = 1;
  options.server.record_ns = 1'000'000'000;
  NlmWorld world{options};
  auto rude = world.client("rude", true);
  std::string record = words({0x80000000 | 40, 7, 0, 2, 100021, 4, 0, 0, 0, 0, 0});
  std::string bytes;
  for (int i = 0; i < 1000; ++i) bytes += record;
  std::thread sender{[&] {
    // Until it is closed: answers fill both buffers, then questions do.
    for (int i = 0; i < 100'000; ++i) rude.send_raw(bytes);
  }};
  for (int i = 0; i < 20; ++i) expect_alive(world, i % 2 == 0);
  EXPECT_TRUE(NlmWorld::await([&] { return world.service->server().connections() == 0; }));
  sender.join();
}

TEST(NlmAllow, OnlyWhomItIsForIsAnswered) {
  auto options = NlmWorld::quick();
  options.server.allow = {*nlm::Network::parse("127.0.1.0/24")};
  NlmWorld world{options};
  for (const bool tcp : {false, true}) {
    NlmClient in{world.port(), {"in", tcp, "127.0.1.9"}};
    EXPECT_EQ(in.lock(in.request(1, 0, 0)), Status::kGranted);
    EXPECT_EQ(in.unlock(in.request(1, 0, 0)), Status::kGranted);
    // (This machine's statd may always call.)
    NlmClient out{world.port(), {"out", tcp, "127.0.2.9"}};
    EXPECT_EQ(out.call(Proc::kNull, ""), "");
    const auto reply =
        out.exchange(out.message(Proc::kLock, lock_arguments()), milliseconds{60'000});
    ASSERT_TRUE(reply);
    const auto decoded = nlm::decode_reply(*reply);
    ASSERT_TRUE(decoded);
    EXPECT_EQ(decoded->accept, Accept::kProcedureUnavailable);
  }
  EXPECT_TRUE(world.grants(1).empty());
}

TEST(NlmListen, AnAddressForStatdLocksNothing) {
  auto options = NlmWorld::quick();
  options.server.listen = {{"127.0.3.1", false}, {"127.0.0.1", true}};
  NlmWorld world{options};
  auto a = world.client("a");
  EXPECT_EQ(a.call(Proc::kNull, ""), "");
  EXPECT_THROW(a.lock(a.request(1, 0, 0)), std::runtime_error);
  options.server.listen = {{"not an address", false}};
  EXPECT_THROW(NlmWorld{options}, std::runtime_error);
  // A port that is taken.
  options.server.listen = {{"127.0.0.1", false}};
  options.server.port = world.port();
  EXPECT_THROW(NlmWorld{options}, std::runtime_error);
}

TEST(NlmListen, ByIpv6AsWell) {
  auto options = NlmWorld::quick();
  options.server.listen = {{"::1", false}, {"127.0.0.1", false}};
  options.server.allow = {*nlm::Network::parse("::1/128")};
  NlmWorld world{options};
  for (const bool tcp : {false, true}) {
    NlmClient a{world.port(), {"a", tcp, "::1", {true, 1000, 1000, {}}, "::1"}};
    EXPECT_EQ(a.lock(a.request(1, 0, 0)), Status::kGranted);
    NlmClient b{world.port(), {"b", tcp, "::1", {true, 1000, 1000, {}}, "::1"}};
    auto call = b.request(1, 0, 0);
    call.block = true;
    EXPECT_EQ(b.lock(call), Status::kBlocked);
    EXPECT_EQ(a.unlock(a.request(1, 0, 0)), Status::kGranted);
    const std::size_t nth = tcp ? 2 : 1;
    const auto calls = world.outside.await(nlm::kNlmProgram, nth);
    ASSERT_EQ(calls.size(), nth);
    EXPECT_EQ(calls.back().where.address, "::1");
    EXPECT_EQ(calls.back().where.local, "::1");
    EXPECT_TRUE(NlmWorld::await([&] { return world.service->desk().figures().waiting == 0; }));
    EXPECT_EQ(b.unlock(call), Status::kGranted);
    EXPECT_THROW(world.client("c", tcp).lock(a.request(1, 0, 0)), std::runtime_error);
  }
}

// Records of chance: calls that are right but for some bytes, cut, lengthened, or noise. The
// service answers the next real one, and has no lock or waiter that belongs to nobody.
TEST(NlmRandom, RecordsOfChanceBreakNothing) {
  auto options = NlmWorld::quick();
  options.server.most_of_one_address = 512;
  NlmWorld world{options};
  const std::vector<Proc> procedures{
      Proc::kNull,       Proc::kTest,    Proc::kLock,       Proc::kCancel,        Proc::kUnlock,
      Proc::kGranted,    Proc::kTestMsg, Proc::kLockMsg,    Proc::kCancelMsg,     Proc::kUnlockMsg,
      Proc::kGrantedMsg, Proc::kTestRes, Proc::kGrantedRes, Proc::kSmNotify,      Proc::kShare,
      Proc::kUnshare,    Proc::kNmLock,  Proc::kFreeAll,    static_cast<Proc>(18)};
  for (const std::uint64_t seed : seeds({1, 2, 3})) {
    SCOPED_TRACE("seed=" + std::to_string(seed));
    std::mt19937_64 random{seed};
    const auto below = [&](std::size_t n) { return static_cast<std::size_t>(random() % n); };
    auto udp = world.client("random");
    std::optional<NlmClient> tcp;
    for (int i = 0; i < 4000; ++i) {
      if (!tcp || below(50) == 0) tcp.emplace(world.client("random", true));
      const Proc procedure = procedures[below(procedures.size())];
      nlm::LockCall call = udp.request(1 + below(3), random() >> below(64), random() >> below(64),
                                       static_cast<std::int32_t>(below(4)));
      call.block = below(2) == 0;
      call.exclusive = below(2) == 0;
      call.reclaim = below(4) == 0;
      if (below(8) == 0) call.what.owner = std::string(below(1025), 'x');
      std::string arguments;
      switch (procedure) {
        case Proc::kShare:
        case Proc::kUnshare:
          arguments = nlm::encode_share_call({"", "random", call.what.handle, "o",
                                              static_cast<std::uint32_t>(below(4)),
                                              static_cast<std::uint32_t>(below(4)), false});
          break;
        case Proc::kFreeAll:
          arguments = nlm::encode_free_call({below(2) == 0 ? "random" : "other", 1});
          break;
        case Proc::kTestRes:
        case Proc::kGrantedRes:
          arguments = nlm::encode_answer({std::string(below(20), 'c'), Status::kDenied});
          break;
        case Proc::kSmNotify:
          arguments = nlm::encode_status_call({"127.0.0.1", 1, {}});
          break;
        default:
          arguments = nlm::encode_lock_call(static_cast<Form>(below(4)), call);
      }
      std::string message = udp.message(procedure, arguments);
      const std::size_t how = below(6);
      if (how == 0) message.resize(below(message.size() + 1));
      if (how == 1) message.append(below(4000), static_cast<char>(below(256)));
      if (how >= 2 && how < 5) {
        for (std::size_t n = 1 + below(4); n > 0; --n) {
          message[below(message.size())] = static_cast<char>(below(256));
        }
      }
      if (how == 5) {
        for (char& c : message) c = static_cast<char>(below(256));
      }
      if (below(2) == 0) {
        udp.send(message);
        if (below(4) == 0) udp.receive(milliseconds{0});
      } else if (below(8) == 0) {
        tcp->send_raw(message);  // its first word is a record's mark
      } else {
        tcp->send(message);
      }
    }
    expect_alive(world);
    expect_alive(world, true);
  }
  // What is held is held by the hosts that are known: when they all go, nothing is left. (Some
  // datagrams may still be on their way.)
  auto all = world.client("all", true);
  EXPECT_TRUE(NlmWorld::await([&] {
    for (const auto& host : world.service->hosts().at_address("127.0.0.1")) {
      all.call(Proc::kFreeAll, nlm::encode_free_call({host->name, 1}));
    }
    const auto figures = world.service->desk().figures();
    const auto stats = world.store->stats();
    return figures.held == 0 && figures.waiting == 0 && stats && stats->grants == 0 &&
           stats->waiters == 0;
  }));
}

}  // namespace
}  // namespace latchfs::test
