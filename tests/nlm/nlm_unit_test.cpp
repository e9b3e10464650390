// The parts by themselves: handles, hashes, ranges, addresses, duplicates, timed calls, options,
// and calls over the network.
#include <arpa/inet.h>
#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <thread>

#include "base/clock.h"
#include "nlm/duplicates.h"
#include "nlm/net_outside.h"
#include "nlm/range_union.h"
#include "nlm/siphash.h"
#include "nlm_world.h"
#include "nlmd/options.h"
#include "support/store_fixture.h"

namespace latchfs::test {
namespace {

using nlm::Duplicates;
using nlm::Form;
using nlm::Fsid;
using nlm::NfsHandle;
using std::chrono::milliseconds;

TEST(NlmHandle, IsReadAsNfsdWritesIt) {
  const std::string plain{"\1\0\1\x81\7\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0", 20};
  const auto handle = nlm::parse_handle(plain);
  ASSERT_TRUE(handle);
  EXPECT_EQ(handle->fsid, Fsid::parse("7"));
  EXPECT_FALSE(handle->root);
  EXPECT_EQ(handle->node, 0x100000002U);
  EXPECT_EQ(handle->generation, 3U);
  EXPECT_EQ(nlm::handle_bytes(*handle), plain);
  // With the parent behind it, it is the same file.
  std::string parent = plain + std::string(12, '\5');
  parent[3] = '\x82';
  ASSERT_TRUE(nlm::parse_handle(parent));
  EXPECT_EQ(*nlm::parse_handle(parent), *handle);
  const std::string root{"\1\0\1\0\7\0\0\0", 8};
  ASSERT_TRUE(nlm::parse_handle(root));
  EXPECT_TRUE(nlm::parse_handle(root)->root);
  EXPECT_EQ(nlm::handle_bytes(*nlm::parse_handle(root)), root);
  const std::string uuid = std::string{"\1\0\6\x81", 4} + "0123456789abcdef" + plain.substr(8);
  ASSERT_TRUE(nlm::parse_handle(uuid));
  EXPECT_EQ(nlm::parse_handle(uuid)->fsid, Fsid::parse("30313233-34353637-38396162-63646566"));
  EXPECT_EQ(nlm::handle_bytes(*nlm::parse_handle(uuid)), uuid);
}

TEST(NlmHandle, AnythingElseIsRefused) {
  const std::string good = handle_of(5);
  ASSERT_TRUE(nlm::parse_handle(good));
  for (std::size_t size = 0; size < good.size(); ++size) {
    EXPECT_FALSE(nlm::parse_handle(good.substr(0, size))) << size;
  }
  EXPECT_FALSE(nlm::parse_handle(good + "x"));
  for (const auto& [place, only] : {std::pair{0, "\1"}, {1, "\0"}, {2, "\1"}, {3, "\x81"}}) {
    for (int byte = 0; byte < 256; ++byte) {
      std::string changed = good;
      changed[static_cast<std::size_t>(place)] = static_cast<char>(byte);
      EXPECT_EQ(nlm::parse_handle(changed).ok(), static_cast<char>(byte) == *only)
          << place << " " << byte;
    }
  }
}

TEST(NlmHandle, BytesOfChanceAreAHandleOrNone) {
  for (const std::uint64_t seed : seeds({1})) {
    SCOPED_TRACE("seed=" + std::to_string(seed));
    std::mt19937_64 random{seed};
    for (int i = 0; i < 20'000; ++i) {
      std::string bytes(random() % 70, '\0');
      for (char& c : bytes) c = static_cast<char>(random() % 5 == 0 ? random() : random() % 8);
      const auto handle = nlm::parse_handle(bytes);
      if (!handle) continue;
      const auto again = nlm::parse_handle(nlm::handle_bytes(*handle));
      ASSERT_TRUE(again);
      ASSERT_EQ(*again, *handle);
    }
  }
}

TEST(NlmFsid, IsANumberOrAUuid) {
  EXPECT_EQ(to_string(*Fsid::parse("0")), "0");
  EXPECT_EQ(to_string(*Fsid::parse("4294967295")), "4294967295");
  EXPECT_EQ(to_string(*Fsid::parse("01234567:89ABcdef:01234567:89abcdef")),
            "0123456789abcdef0123456789abcdef");
  EXPECT_EQ(to_string(*Fsid::parse("11111111111111111111111111111111")),
            "11111111111111111111111111111111");
  for (const char* wrong : {"", "-1", "4294967296", "1x", "0123456789abcdef0123456789abcde",
                            "0123456789abcdef0123456789abcdef0", "root"}) {
    EXPECT_FALSE(Fsid::parse(wrong)) << wrong;
  }
}

// The vector of the paper (appendix A).
TEST(NlmHash, IsSipHash24) {
  nlm::HashKey key{0x0706050403020100, 0x0f0e0d0c0b0a0908};
  std::string bytes;
  for (char c = 0; c < 15; ++c) bytes += c;
  EXPECT_EQ(nlm::siphash(key, bytes), 0xa129ca6149be45e5U);
  EXPECT_NE(nlm::siphash(nlm::random_key(), bytes), nlm::siphash(nlm::random_key(), bytes));
}

TEST(NlmRanges, AgreeWithAModelOfBytes) {
  for (const std::uint64_t seed : seeds()) {
    SCOPED_TRACE("seed=" + std::to_string(seed));
    std::mt19937_64 random{seed};
    nlm::RangeUnion real;
    std::array<bool, 32> model{};
    for (int i = 0; i < 400; ++i) {
      const std::size_t begin = random() % model.size();
      const std::size_t end = begin + 1 + random() % (model.size() - begin);
      const ByteRange range = *ByteRange::from_half_open(begin, end);
      const bool add = random() % 2 == 0;
      add ? real.add(range) : real.remove(range);
      std::fill(model.begin() + begin, model.begin() + end, add);
      std::size_t parts = 0;
      for (std::size_t b = 0; b < model.size(); ++b) {
        parts += model[b] && (b == 0 || !model[b - 1]) ? 1 : 0;
        for (std::size_t e = b + 1; e <= model.size(); ++e) {
          const bool all =
              std::all_of(model.begin() + b, model.begin() + e, [](bool x) { return x; });
          ASSERT_EQ(real.covers(*ByteRange::from_half_open(b, e)), all);
        }
      }
      ASSERT_EQ(real.parts(), parts);
      std::array<bool, 32> inside{};
      for (const ByteRange part : real.within(range)) {
        for (std::uint64_t b = part.begin(); b < part.end(); ++b) {
          ASSERT_TRUE(range.begin() <= b && b < range.end() && !inside[b]);
          inside[b] = true;
        }
      }
      for (std::size_t b = begin; b < end; ++b) ASSERT_EQ(inside[b], model[b]);
      ASSERT_EQ(real.empty(), parts == 0);
    }
  }
}

TEST(NlmNetwork, ContainsByBits) {
  const auto in = [](const char* network, const char* address) {
    return nlm::Network::parse(network)->contains(*nlm::Endpoint::parse(address, 1));
  };
  EXPECT_TRUE(in("192.0.2.0/24", "192.0.2.255"));
  EXPECT_FALSE(in("192.0.2.0/24", "192.0.3.0"));
  EXPECT_TRUE(in("192.0.2.128/25", "192.0.2.128"));
  EXPECT_FALSE(in("192.0.2.128/25", "192.0.2.127"));
  EXPECT_TRUE(in("192.0.2.7", "192.0.2.7"));
  EXPECT_FALSE(in("192.0.2.7", "192.0.2.6"));
  EXPECT_TRUE(in("0.0.0.0/0", "203.0.113.9"));
  EXPECT_FALSE(in("0.0.0.0/0", "2001:db8::1"));
  EXPECT_TRUE(in("2001:db8::/33", "2001:db8:7fff::1"));
  EXPECT_FALSE(in("2001:db8::/33", "2001:db8:8000::1"));
  EXPECT_TRUE(in("192.0.2.0/24", "::ffff:192.0.2.1")) << "the same machine";
  for (const char* wrong :
       {"", "x", "192.0.2.0/33", "192.0.2.0/", "192.0.2.0/-1", "::/129", "host"}) {
    EXPECT_FALSE(nlm::Network::parse(wrong)) << wrong;
  }
}

TEST(NlmCodec, EveryFieldComesBack) {
  nlm::LockCall call;
  call.cookie = std::string{"c\0okie", 6};
  call.block = call.exclusive = call.reclaim = true;
  call.what = {"caller", std::string(64, '\x81'), std::string{"o\0", 2}, -5, ~0ULL, 1ULL << 63};
  call.state = -7;
  for (const Form form : {Form::kLock, Form::kTest, Form::kCancel, Form::kUnlock}) {
    const auto back = nlm::decode_lock_call(form, nlm::encode_lock_call(form, call));
    ASSERT_TRUE(back);
    EXPECT_EQ(back->cookie, call.cookie);
    EXPECT_EQ(back->what.caller, call.what.caller);
    EXPECT_EQ(back->what.handle, call.what.handle);
    EXPECT_EQ(back->what.owner, call.what.owner);
    EXPECT_EQ(back->what.svid, call.what.svid);
    EXPECT_EQ(back->what.offset, call.what.offset);
    EXPECT_EQ(back->what.length, call.what.length);
    EXPECT_EQ(back->exclusive, form != Form::kUnlock);
    EXPECT_EQ(back->block, form == Form::kLock || form == Form::kCancel);
    EXPECT_EQ(back->reclaim, form == Form::kLock);
    EXPECT_EQ(back->state, form == Form::kLock ? -7 : 0);
  }
  const nlm::TestAnswer test{"c", nlm::Status::kDenied, {true, -1, "oh", 5, 6}};
  const auto back = nlm::decode_test_answer(nlm::encode_test_answer(test));
  ASSERT_TRUE(back);
  EXPECT_EQ(back->holder.svid, -1);
  EXPECT_EQ(back->holder.owner, "oh");
  EXPECT_EQ(back->holder.offset, 5U);
  EXPECT_EQ(back->holder.length, 6U);
  // A status there is none of.
  const auto odd = nlm::decode_answer(std::string{"\0\0\0\0\0\0\0\x63", 8});
  ASSERT_TRUE(odd);
  EXPECT_EQ(odd->status, nlm::Status::kFailed);
  // What has no room.
  call.what.owner = std::string(1025, 'x');
  EXPECT_THROW(static_cast<void>(nlm::encode_lock_call(Form::kLock, call)), std::length_error);
}

// What may come from the network, changed by chance: read, or refused, and never what cannot be.
TEST(NlmCodec, BytesOfChanceAreReadOrRefused) {
  nlm::LockCall call;
  call.cookie = "cookie";
  call.what = {"caller", handle_of(1), "owner", 1, 0, 0};
  const std::string reply = nlm::encode_reply(1, nlm::Accept::kSuccess, "results");
  const std::vector<std::string> originals{
      nlm::encode_lock_call(Form::kLock, call),
      nlm::encode_answer({"c", nlm::Status::kGranted}),
      nlm::encode_test_answer({"c", nlm::Status::kDenied, {true, 1, "o", 2, 3}}),
      nlm::encode_share_call({"c", "a", "h", "o", 1, 2, false}),
      nlm::encode_share_answer({"c", nlm::Status::kGranted, 0}),
      nlm::encode_status_call({"name", 1, {}}),
      nlm::encode_free_call({"name", 1}),
      std::string(8, '\0'),
      reply,
      nlm::encode_reply(1, nlm::Accept::kProgramMismatch, "", 4),
      nlm::encode_call_as(1, 2, 3, 4, {true, 5, 6, {7, 8}}, "arguments")};
  for (const std::uint64_t seed : seeds({1})) {
    SCOPED_TRACE("seed=" + std::to_string(seed));
    std::mt19937_64 random{seed};
    for (int i = 0; i < 20'000; ++i) {
      std::string bytes = originals[random() % originals.size()];
      for (std::size_t n = random() % 4; n > 0; --n) {
        bytes[random() % bytes.size()] =
            static_cast<char>(random() % 3 == 0 ? random() : random() % 8);
      }
      if (random() % 4 == 0) bytes.resize(random() % (bytes.size() + 8));
      for (const Form form : {Form::kLock, Form::kTest, Form::kCancel, Form::kUnlock}) {
        if (const auto got = nlm::decode_lock_call(form, bytes)) {
          ASSERT_LE(got->what.owner.size(), 1024U);
          ASSERT_TRUE(nlm::decode_lock_call(form, nlm::encode_lock_call(form, *got)));
        }
      }
      if (const auto got = nlm::decode_answer(bytes)) {
        ASSERT_LE(got->status, nlm::Status::kFailed);
      }
      if (const auto got = nlm::decode_test_answer(bytes)) {
        ASSERT_LE(got->status, nlm::Status::kFailed);
      }
      if (const auto got = nlm::decode_share_call(bytes)) {
        ASSERT_LE(got->deny, 3U);
        ASSERT_LE(got->access, 3U);
      }
      static_cast<void>(nlm::decode_share_answer(bytes));
      static_cast<void>(nlm::decode_status_call(bytes));
      static_cast<void>(nlm::decode_free_call(bytes));
      static_cast<void>(nlm::decode_monitor_answer(bytes));
      static_cast<void>(nlm::decode_reply(bytes));
      const auto decoded = nlm::decode_call(bytes);
      if (const auto* got = std::get_if<nlm::CallMessage>(&decoded)) {
        ASSERT_LE(got->credentials.groups.size(), 16U);
      }
    }
  }
}

TEST(NlmDuplicates, AnswersAreKeptForAWhileAndSoMany) {
  Duplicates some{3, 3'600'000'000'000};
  Duplicates::Said said;
  EXPECT_EQ(some.ask(1, said), Duplicates::Seen::kNew);
  EXPECT_EQ(some.ask(1, said), Duplicates::Seen::kUnderWay);
  some.answered(1, {"one", {}, {}});
  EXPECT_EQ(some.ask(1, said), Duplicates::Seen::kAnswered);
  EXPECT_EQ(said.reply, "one");
  EXPECT_EQ(some.ask(2, said), Duplicates::Seen::kNew);
  some.dropped(2);
  EXPECT_EQ(some.ask(2, said), Duplicates::Seen::kNew) << "it may be asked again";
  for (const std::uint64_t request : {3, 4, 5}) {
    EXPECT_EQ(some.ask(request, said), Duplicates::Seen::kNew);
    some.answered(request, {});
  }
  EXPECT_EQ(some.ask(1, said), Duplicates::Seen::kNew) << "the oldest answer went";
  EXPECT_EQ(some.ask(5, said), Duplicates::Seen::kAnswered);
  Duplicates short_lived{3, -1};
  EXPECT_EQ(short_lived.ask(1, said), Duplicates::Seen::kNew);
  short_lived.answered(1, {});
  EXPECT_EQ(short_lived.ask(1, said), Duplicates::Seen::kNew);
}

// One that does not end, asked first, and all the others'.
TEST(NlmDuplicates, ARequestThatDoesNotEndKeepsNobodyWaiting) {
  Duplicates some{3, 3'600'000'000'000};
  Duplicates::Said said;
  ASSERT_EQ(some.ask(1, said), Duplicates::Seen::kNew);
  for (std::uint64_t request = 2; request < 100; ++request) {
    ASSERT_EQ(some.ask(request, said), Duplicates::Seen::kNew) << request;
    some.answered(request, {});
  }
  EXPECT_EQ(some.ask(99, said), Duplicates::Seen::kAnswered);
  EXPECT_EQ(some.ask(2, said), Duplicates::Seen::kNew) << "of the answers the oldest went";
  EXPECT_EQ(some.ask(1, said), Duplicates::Seen::kUnderWay);
}

// However many addresses there are where nobody answers.
TEST(NlmOutcalls, WhoAnsweredHasThreadsAndPlacesThatTheDeadDoNotTake) {
  std::atomic<bool> end{false};
  std::atomic<int> stuck{0};
  std::atomic<int> done{0};
  constexpr std::int64_t kHour = 3'600'000'000'000;
  nlm::Outcalls calls{{4, 100, 40, kHour}};
  ASSERT_TRUE(calls.at(0, "alive", [&] { ++done; }));
  ASSERT_TRUE(NlmWorld::await([&] { return done == 1; }));
  int taken = 0;
  for (int i = 0; i < 100; ++i) {
    const bool place = calls.at(0, "dead " + std::to_string(i), [&] {
      ++stuck;
      EXPECT_TRUE(NlmWorld::await([&] { return end.load(); }));
    });
    taken += place ? 1 : 0;
  }
  EXPECT_GE(taken, 50);
  EXPECT_LE(taken, 52) << "half of the places, and two that have begun";
  for (int i = 0; i < 10; ++i) ASSERT_TRUE(calls.at(0, "alive", [&] { ++done; }));
  EXPECT_TRUE(NlmWorld::await([&] { return done == 11; }));
  EXPECT_TRUE(NlmWorld::await([&] { return stuck == 2; }));
  EXPECT_FALSE(end);
  // Of one peer no more than so many.
  int own = 0;
  while (own < 100 && calls.at(monotonic_ns() + kHour, "alive", [] {})) ++own;
  EXPECT_EQ(own, 40);
  end = true;
  EXPECT_TRUE(NlmWorld::await([&] { return stuck == taken; }));
}

TEST(NlmPlaces, WhereNobodyComesOutNoMoreGoIn) {
  constexpr std::int64_t kHour = 3'600'000'000'000;
  nlm::Places hopeless{{2, 3, 0}};
  {
    const auto one = hopeless.enter("a");
    const auto two = hopeless.enter("a");
    EXPECT_TRUE(one && two);
    EXPECT_FALSE(hopeless.enter("a"));
    const auto three = hopeless.enter("b");
    EXPECT_TRUE(three);
    EXPECT_FALSE(hopeless.enter("c")) << "three in all";
  }
  EXPECT_TRUE(hopeless.enter("a"));
  // While there is hope it is waited for.
  nlm::Places patient{{1, 3, kHour}};
  auto first = std::make_optional(patient.enter("a"));
  std::atomic<bool> in{false};
  std::thread other{[&] {
    const auto stay = patient.enter("a");
    EXPECT_TRUE(stay);
    in = true;
  }};
  EXPECT_TRUE(patient.enter("b"));
  EXPECT_FALSE(in);
  first.reset();
  other.join();
  EXPECT_TRUE(in);
}

TEST(NlmOutcalls, OneOfAPeerAtATimeAndOthersBesideIt) {
  std::atomic<int> running{0};
  std::atomic<int> most{0};
  std::atomic<int> done{0};
  std::atomic<bool> other{false};
  {
    nlm::Outcalls calls{{4, 100}};
    const std::function<void()> one = [&] {
      most = std::max<int>(most, ++running);
      // The other peer's runs while this one takes its time.
      EXPECT_TRUE(NlmWorld::await([&] { return other.load(); }));
      --running;
      ++done;
    };
    for (int i = 0; i < 20; ++i) ASSERT_TRUE(calls.at(0, "a", one));
    ASSERT_TRUE(calls.at(0, "b", [&] { other = true; }));
    EXPECT_TRUE(NlmWorld::await([&] { return done == 20; }));
    ASSERT_TRUE(calls.at(monotonic_ns() + 3'600'000'000'000, "a", [&] { ++done; }));
    calls.stop();
    EXPECT_FALSE(calls.at(0, "a", one));
  }
  EXPECT_EQ(most, 1);
  EXPECT_EQ(done, 20) << "what is not due is dropped at the end";
  nlm::Outcalls few{{1, 4}};
  EXPECT_TRUE(few.at(monotonic_ns() + 3'600'000'000'000, "", [] {}));
  EXPECT_TRUE(few.at(monotonic_ns() + 3'600'000'000'000, "", [] {}));
  EXPECT_FALSE(few.at(0, "", [] {}));
}

TEST(NlmOutcalls, InTheOrderOfTheirTimes) {
  std::vector<int> order;
  std::atomic<int> done{0};
  nlm::Outcalls calls{{1, 100}};
  const std::int64_t now = monotonic_ns();
  for (const int i : {3, 1, 2}) {
    ASSERT_TRUE(calls.at(now + i * 20'000'000, "", [&, i] {
      order.push_back(i);
      ++done;
    }));
  }
  EXPECT_TRUE(NlmWorld::await([&] { return done == 3; }));
  EXPECT_EQ(order, (std::vector<int>{1, 2, 3}));
}

// A client's machine: its rpcbind, and a lock manager that says what it is told to.
class FakeMachine {
 public:
  explicit FakeMachine(std::string address = "127.0.0.1") : address_{std::move(address)} {
    service_ = start([this](std::string_view message, const nlm::Peer&) -> std::string {
      const auto decoded = nlm::decode_call(message);
      const auto* call = std::get_if<nlm::CallMessage>(&decoded);
      if (call == nullptr || deaf-- > 0) return {};
      ++heard;
      return nlm::encode_reply(call->xid, accept, call->arguments);
    });
    rpcbind = start([this](std::string_view message, const nlm::Peer&) -> std::string {
      const auto decoded = nlm::decode_call(message);
      const auto* call = std::get_if<nlm::CallMessage>(&decoded);
      if (call == nullptr) return {};
      ++asked;
      if (call->version == 3) {  // GETADDR: "::1.HIGH.LOW"
        const unsigned number = registered ? service_->port() : 0;
        std::string text =
            "::1." + std::to_string(number / 256) + "." + std::to_string(number % 256);
        if (!registered) text.clear();
        const std::uint32_t size = htonl(static_cast<std::uint32_t>(text.size()));
        text.insert(0, reinterpret_cast<const char*>(&size), sizeof size);
        text.append((4 - text.size() % 4) % 4, '\0');
        return nlm::encode_reply(call->xid, nlm::Accept::kSuccess, text);
      }
      const std::uint32_t port = htonl(registered ? service_->port() : 0);
      return nlm::encode_reply(call->xid, nlm::Accept::kSuccess,
                               {reinterpret_cast<const char*>(&port), sizeof port});
    });
  }

  std::atomic<int> heard{0};
  std::atomic<int> asked{0};
  std::atomic<int> deaf{0};
  std::atomic<bool> registered{true};
  nlm::Accept accept{nlm::Accept::kSuccess};
  std::unique_ptr<nlm::Server> rpcbind;

 private:
  std::unique_ptr<nlm::Server> start(nlm::Server::Handler handler) {
    nlm::Server::Options options;
    options.listen = {{address_, false}};
    options.threads = 2;
    auto server = nlm::Server::open(options, std::move(handler));
    if (!server) throw std::runtime_error{"no server"};
    (*server)->start();
    return std::move(*server);
  }
  const std::string address_;
  std::unique_ptr<nlm::Server> service_;
};

TEST(NlmOutside, CallsWhereRpcbindSaysByEitherTransport) {
  for (const bool tcp : {false, true}) {
    FakeMachine machine;
    nlm::NetOutside outside{machine.rpcbind->port()};
    const nlm::Where where{"127.0.0.1", "127.0.0.1", tcp};
    const auto call = [&] {
      return outside.call(where, 100021, 4, 5, "echo", milliseconds{20'000});
    };
    unsigned unanswered = 77;
    auto said = outside.exchange(where, 100021, 4, 5, "echo", milliseconds{600'000}, unanswered);
    ASSERT_TRUE(said) << said.error().message();
    EXPECT_EQ(unanswered, 0U);
    EXPECT_EQ(*said, "echo");
    ASSERT_TRUE(call());
    EXPECT_EQ(machine.asked, 1) << "remembered";
    EXPECT_TRUE(outside.tell(where, 100021, 4, 15, "told", milliseconds{20'000}));
    EXPECT_TRUE(NlmWorld::await([&] { return machine.heard == 3; }));
    machine.registered = false;
    nlm::NetOutside fresh{machine.rpcbind->port()};
    said = fresh.call(where, 100021, 4, 5, "echo", milliseconds{20'000});
    EXPECT_EQ(said.error(), errno_code(ENOENT));
    machine.registered = true;
    machine.accept = nlm::Accept::kSystemError;
    EXPECT_EQ(call().error(), errno_code(EPROTO));
  }
}

TEST(NlmOutside, CallsByIpv6) {
  for (const bool tcp : {false, true}) {
    FakeMachine machine{"::1"};
    nlm::NetOutside outside{machine.rpcbind->port()};
    const nlm::Where where{"::1", "::1", tcp};
    const auto said = outside.call(where, 100021, 4, 5, "echo", milliseconds{20'000});
    ASSERT_TRUE(said) << said.error().message();
    EXPECT_EQ(*said, "echo");
    machine.registered = false;
    nlm::NetOutside fresh{machine.rpcbind->port()};
    EXPECT_EQ(fresh.call(where, 100021, 4, 5, "", milliseconds{20'000}).error(),
              errno_code(ENOENT));
  }
}

TEST(NlmOutside, DatagramsAreSentAgainAndSilenceEnds) {
  FakeMachine machine;
  nlm::NetOutside outside{machine.rpcbind->port()};
  const nlm::Where where{"127.0.0.1", "", false};
  unsigned unanswered = 77;
  const auto call = [&](milliseconds patience) {
    return outside.exchange(where, 100021, 4, 5, "", patience, unanswered);
  };
  EXPECT_TRUE(call(milliseconds{600'000}));
  EXPECT_EQ(unanswered, 0U);
  EXPECT_TRUE(NlmWorld::await([&] {
    machine.deaf = 1;
    return call(milliseconds{3'000}).ok();
  }));
  EXPECT_GE(unanswered, 1U);
  machine.deaf = 1'000'000;
  EXPECT_EQ(call(milliseconds{30}).error(), errno_code(ETIMEDOUT));
  EXPECT_GE(unanswered, 1U);
  machine.rpcbind.reset();
  nlm::NetOutside nobody{1};
  EXPECT_FALSE(nobody.exchange(where, 100021, 4, 5, "", milliseconds{1'000}, unanswered));
  EXPECT_EQ(unanswered, 0U) << "it was never called: rpcbind is not there";
}

TEST(NlmOptions, AreRead) {
  const auto parse = [](std::vector<std::string> args) { return nlmd::parse_options(args); };
  const auto good = parse({"--export=7=/mnt/a",
                           "--export",
                           "0123456789abcdef0123456789abcdef=/b",
                           "--listen=0.0.0.0",
                           "--listen=::1",
                           "--port=4045",
                           "--register",
                           "--allow=192.0.2.0/24",
                           "--table=t",
                           "--grace=0",
                           "--no-statd",
                           "--no-root-squash",
                           "--anon-uid=5",
                           "--anon-gid=6",
                           "--insecure-locks",
                           "--insecure-ports",
                           "--max-locks-per-user=9",
                           "--state-dir=/s",
                           "-f",
                           "--log=stderr",
                           "--log-level=warn",
                           "--grant-patience=3"});
  const auto* o = std::get_if<nlmd::Options>(&good);
  ASSERT_NE(o, nullptr) << std::get<nlmd::UsageError>(good).message;
  EXPECT_EQ(o->exports.at(*Fsid::parse("7")), "/mnt/a");
  EXPECT_EQ(o->exports.size(), 2U);
  EXPECT_EQ(o->listen, (std::vector<std::string>{"0.0.0.0", "::1"}));
  EXPECT_EQ(o->port, 4045);
  EXPECT_EQ(o->allow.size(), 1U);
  EXPECT_TRUE(o->take_lockds_place && o->insecure_locks && o->insecure_ports && o->foreground);
  EXPECT_FALSE(o->statd || o->root_squash);
  EXPECT_EQ(o->grace, 0U);
  EXPECT_EQ(o->grant_patience, 3U);
  EXPECT_EQ(o->anonymous_uid, 5U);
  EXPECT_EQ(o->anonymous_gid, 6U);
  EXPECT_EQ(o->max_locks_per_user, 9U);
  EXPECT_TRUE(std::holds_alternative<nlmd::Help>(parse({"--help"})));
  EXPECT_TRUE(std::holds_alternative<nlmd::Version>(parse({"-V"})));
  const std::vector<std::vector<std::string>> wrong{
      {},
      {"--export=1=/a"},
      {"--listen=127.0.0.1"},
      {"--frobnicate"},
      {"--frobnicate=1"},
      {"--port"},
      {"file"},
      {"--export=x=/a", "--listen=::"},
      {"--export=1=a", "--listen=::"},
      {"--export=1", "--listen=::"},
      {"--export=1=/a", "--export=1=/b", "--listen=::"},
      {"--export=1=/a", "--listen=localhost"},
      {"--export=1=/a", "--listen=::", "--port=65536"},
      {"--export=1=/a", "--listen=::", "--grace=-1"},
      {"--export=1=/a", "--listen=::", "--allow=10.0.0.0/40"},
      {"--export=1=/a", "--listen=::", "--table=a/b"},
      {"--export=1=/a", "--listen=::", "--state-dir=here"},
      {"--export=1=/a", "--listen=::", "--log-level=loud"},
  };
  for (const auto& args : wrong) {
    std::string text;
    for (const std::string& arg : args) text += arg + " ";
    EXPECT_TRUE(std::holds_alternative<nlmd::UsageError>(parse(args))) << text;
  }
}

}  // namespace
}  // namespace latchfs::test
