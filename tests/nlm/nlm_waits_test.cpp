// Requests that wait: blocked, granted by a call to the client, cancelled, given back.
#include <gtest/gtest.h>

#include <thread>

#include "nlm_world.h"

namespace latchfs::test {
namespace {

using nlm::Form;
using nlm::LockCall;
using nlm::Proc;
using nlm::Status;

const ByteRange kAll;

LockCall blocking(LockCall call) {
  call.block = true;
  return call;
}

// What a GRANTED call says.
LockCall granted_call(const FakeOutside::Call& call) {
  const auto decoded = nlm::decode_lock_call(Form::kTest, call.arguments);
  EXPECT_TRUE(decoded);
  return decoded.value_or(LockCall{});
}

// A client that has not been heard of.
Result<std::string> silent(const FakeOutside::Call& call) {
  if (call.program == nlm::kStatdProgram) return std::string(8, '\0');
  return errno_code(ETIMEDOUT);
}
Result<std::string> denies(const FakeOutside::Call& call) {
  if (call.program == nlm::kStatdProgram) return std::string(8, '\0');
  return nlm::encode_answer({granted_call(call).cookie, Status::kDenied});
}

class NlmWaits : public ::testing::Test {
 protected:
  // Nothing waits, and nobody is called any more.
  bool quiet() {
    return NlmWorld::await([&] { return world.service->desk().figures().waiting == 0; });
  }
  NlmWorld world;
  NlmClient a = world.client("a");
  NlmClient b = world.client("b");
};

TEST_F(NlmWaits, TheClientIsCalledWhenItsTurnComes) {
  ASSERT_EQ(a.lock(a.request(1, 0, 10)), Status::kGranted);
  LockCall call = blocking(b.request(1, 5, 10, 9));
  EXPECT_EQ(b.lock(call), Status::kBlocked);
  EXPECT_EQ(world.waiters(1), 1U);
  EXPECT_TRUE(world.outside.calls(nlm::kNlmProgram).empty());
  EXPECT_EQ(a.unlock(a.request(1, 0, 10)), Status::kGranted);
  const auto calls = world.outside.await(nlm::kNlmProgram, 1);
  ASSERT_EQ(calls.size(), 1U);
  EXPECT_FALSE(calls[0].told);
  EXPECT_EQ(calls[0].procedure, static_cast<std::uint32_t>(Proc::kGranted));
  EXPECT_EQ(calls[0].where.address, "127.0.0.1");
  EXPECT_EQ(calls[0].where.local, "127.0.0.1");
  EXPECT_FALSE(calls[0].where.tcp);
  const LockCall said = granted_call(calls[0]);
  EXPECT_TRUE(said.exclusive);
  EXPECT_EQ(said.what.caller, "b");
  EXPECT_EQ(said.what.handle, call.what.handle);
  EXPECT_EQ(said.what.owner, call.what.owner);
  EXPECT_EQ(said.what.svid, 9);
  EXPECT_EQ(said.what.offset, 5U);
  EXPECT_EQ(said.what.length, 10U);
  EXPECT_TRUE(quiet());
  EXPECT_EQ(world.grants(1), (std::vector<std::string>{"EX 5 10 9"}));
  EXPECT_EQ(b.unlock(call), Status::kGranted);
  EXPECT_EQ(world.service->desk().figures().held, 0U);
}

TEST_F(NlmWaits, ALocalUnlockGrantsToo) {
  world.local_lock(1, kAll);
  EXPECT_EQ(b.lock(blocking(b.request(1, 0, 0))), Status::kBlocked);
  world.local_unlock(1, kAll);
  EXPECT_EQ(world.outside.await(nlm::kNlmProgram, 1).size(), 1U);
  EXPECT_TRUE(quiet());
  EXPECT_TRUE(std::holds_alternative<Conflict>(world.local_lock(1, kAll)));
}

TEST_F(NlmWaits, NothingInTheWayIsNoWait) {
  EXPECT_EQ(b.lock(blocking(b.request(1, 0, 0))), Status::kGranted);
  EXPECT_TRUE(world.outside.calls(nlm::kNlmProgram).empty());
  EXPECT_EQ(world.service->desk().figures().waiting, 0U);
}

TEST_F(NlmWaits, ARequestAgainIsTheSameWaiter) {
  ASSERT_EQ(a.lock(a.request(1, 0, 0)), Status::kGranted);
  LockCall call = blocking(b.request(1, 0, 0));
  for (int i = 0; i < 5; ++i) EXPECT_EQ(b.lock(call), Status::kBlocked);
  EXPECT_EQ(world.waiters(1), 1U);
  call.block = false;
  EXPECT_EQ(b.lock(call), Status::kDenied);
  EXPECT_EQ(world.waiters(1), 1U);
  EXPECT_EQ(a.unlock(a.request(1, 0, 0)), Status::kGranted);
  EXPECT_EQ(world.outside.await(nlm::kNlmProgram, 1).size(), 1U);
  EXPECT_TRUE(quiet());
  EXPECT_EQ(b.lock(blocking(call)), Status::kGranted) << "his already";
}

TEST_F(NlmWaits, AskingAgainIsAsGoodAsAnsweringTheGrant) {
  world.outside.answer_by(silent);
  ASSERT_EQ(a.lock(a.request(1, 0, 0)), Status::kGranted);
  const LockCall call = blocking(b.request(1, 0, 0));
  EXPECT_EQ(b.lock(call), Status::kBlocked);
  EXPECT_EQ(a.unlock(a.request(1, 0, 0)), Status::kGranted);
  EXPECT_GE(world.outside.await(nlm::kNlmProgram, 3).size(), 3U) << "told again and again";
  EXPECT_EQ(b.lock(call), Status::kGranted);
  EXPECT_TRUE(quiet());
  EXPECT_EQ(world.grants(1).size(), 1U);
}

TEST_F(NlmWaits, AGrantIsToldUntilTheClientAnswers) {
  std::atomic<int> tries{0};
  world.outside.answer_by([&](const FakeOutside::Call& call) -> Result<std::string> {
    if (call.program == nlm::kNlmProgram && ++tries < 4) return errno_code(ETIMEDOUT);
    return FakeOutside::granted_answer(call);
  });
  ASSERT_EQ(a.lock(a.request(1, 0, 0)), Status::kGranted);
  EXPECT_EQ(b.lock(blocking(b.request(1, 0, 0))), Status::kBlocked);
  EXPECT_EQ(a.unlock(a.request(1, 0, 0)), Status::kGranted);
  EXPECT_TRUE(quiet());
  EXPECT_EQ(tries, 4);
  EXPECT_EQ(world.grants(1).size(), 1U);
}

TEST_F(NlmWaits, AGrantTheClientDeniesIsGivenBack) {
  world.outside.answer_by(denies);
  ASSERT_EQ(a.lock(a.request(1, 0, 0)), Status::kGranted);
  EXPECT_EQ(b.lock(blocking(b.request(1, 0, 0))), Status::kBlocked);
  EXPECT_EQ(a.unlock(a.request(1, 0, 0)), Status::kGranted);
  EXPECT_TRUE(quiet());
  EXPECT_TRUE(world.grants(1).empty());
  EXPECT_EQ(world.service->desk().figures().held, 0U);
}

// The first GRANTED finds the process that waits, the answer is lost; the next one finds nobody.
TEST_F(NlmWaits, WhoDeniesWhatItMayHaveHeardBeforeKeepsIt) {
  std::atomic<int> tries{0};
  world.outside.answer_by([&](const FakeOutside::Call& call) -> Result<std::string> {
    if (call.program == nlm::kNlmProgram && ++tries == 1) return errno_code(ETIMEDOUT);
    return denies(call);
  });
  ASSERT_EQ(a.lock(a.request(1, 0, 0)), Status::kGranted);
  EXPECT_EQ(b.lock(blocking(b.request(1, 0, 0, 9))), Status::kBlocked);
  EXPECT_EQ(a.unlock(a.request(1, 0, 0)), Status::kGranted);
  EXPECT_TRUE(quiet());
  EXPECT_EQ(tries, 2);
  EXPECT_EQ(world.grants(1), (std::vector<std::string>{"EX 0 0 9"}));
  EXPECT_EQ(b.unlock(b.request(1, 0, 0, 9)), Status::kGranted);
  EXPECT_TRUE(world.grants(1).empty());
}

TEST_F(NlmWaits, SoDoesWhoDeniesASecondCopyOfOneCall) {
  world.outside.answer_by(denies);
  world.outside.lost_copies = 1;
  ASSERT_EQ(a.lock(a.request(1, 0, 0)), Status::kGranted);
  EXPECT_EQ(b.lock(blocking(b.request(1, 0, 0))), Status::kBlocked);
  EXPECT_EQ(a.unlock(a.request(1, 0, 0)), Status::kGranted);
  EXPECT_TRUE(quiet());
  EXPECT_EQ(world.grants(1).size(), 1U);
}

TEST_F(NlmWaits, WhoCouldNotBeReachedAndThenDeniesLosesIt) {
  std::atomic<int> tries{0};
  world.outside.answer_by([&](const FakeOutside::Call& call) -> Result<std::string> {
    if (call.program == nlm::kNlmProgram && ++tries == 1) return errno_code(EHOSTUNREACH);
    return denies(call);
  });
  ASSERT_EQ(a.lock(a.request(1, 0, 0)), Status::kGranted);
  EXPECT_EQ(b.lock(blocking(b.request(1, 0, 0))), Status::kBlocked);
  EXPECT_EQ(a.unlock(a.request(1, 0, 0)), Status::kGranted);
  EXPECT_TRUE(quiet());
  EXPECT_TRUE(world.grants(1).empty());
}

TEST(NlmPatience, WhoMayHaveHeardOfItsGrantAndIsSilentKeepsIt) {
  auto options = NlmWorld::quick();
  options.desk.grant_patience_ns = 100'000'000;
  NlmWorld world{options};
  auto a = world.client("a");
  auto b = world.client("b");
  world.outside.answer_by(silent);
  ASSERT_EQ(a.lock(a.request(1, 0, 0)), Status::kGranted);
  EXPECT_EQ(b.lock(blocking(b.request(1, 0, 0, 9))), Status::kBlocked);
  EXPECT_EQ(a.unlock(a.request(1, 0, 0)), Status::kGranted);
  EXPECT_TRUE(NlmWorld::await([&] { return world.service->desk().figures().waiting == 0; }));
  EXPECT_EQ(world.grants(1), (std::vector<std::string>{"EX 0 0 9"}));
}

TEST(NlmPatience, AClientOutOfReachLosesItsGrantAndTheNextOneHasIt) {
  auto options = NlmWorld::quick();
  options.desk.grant_patience_ns = 300'000'000;
  NlmWorld world{options};
  auto a = world.client("a");
  auto b = world.client("b");
  auto c = world.client("c");
  world.outside.answer_by([](const FakeOutside::Call& call) -> Result<std::string> {
    if (call.program == nlm::kNlmProgram && granted_call(call).what.caller == "b") {
      return errno_code(EHOSTUNREACH);
    }
    return FakeOutside::granted_answer(call);
  });
  ASSERT_EQ(a.lock(a.request(1, 0, 0)), Status::kGranted);
  EXPECT_EQ(b.lock(blocking(b.request(1, 0, 0, 8))), Status::kBlocked);
  EXPECT_EQ(c.lock(blocking(c.request(1, 0, 0, 9))), Status::kBlocked);
  EXPECT_EQ(a.unlock(a.request(1, 0, 0)), Status::kGranted);
  EXPECT_TRUE(NlmWorld::await([&] {
    return world.grants(1) == std::vector<std::string>{"EX 0 0 9"} &&
           world.service->desk().figures().waiting == 0;
  }));
}

TEST_F(NlmWaits, AClientInItsOwnGracePeriodIsAskedLater) {
  std::atomic<int> tries{0};
  world.outside.answer_by([&](const FakeOutside::Call& call) -> Result<std::string> {
    if (call.program == nlm::kStatdProgram) return std::string(8, '\0');
    ++tries;
    return nlm::encode_answer({granted_call(call).cookie, Status::kDeniedGracePeriod});
  });
  ASSERT_EQ(a.lock(a.request(1, 0, 0)), Status::kGranted);
  const LockCall call = blocking(b.request(1, 0, 0));
  EXPECT_EQ(b.lock(call), Status::kBlocked);
  EXPECT_EQ(a.unlock(a.request(1, 0, 0)), Status::kGranted);
  EXPECT_TRUE(NlmWorld::await([&] { return tries == 1; }));
  EXPECT_EQ(world.grants(1).size(), 1U) << "it is still his";
  EXPECT_EQ(b.lock(call), Status::kGranted);
  EXPECT_TRUE(quiet());
}

TEST_F(NlmWaits, WhoWaitsByMessageIsToldByMessage) {
  ASSERT_EQ(a.lock(a.request(1, 0, 0)), Status::kGranted);
  LockCall call = blocking(b.request(1, 0, 0));
  EXPECT_EQ(b.call(Proc::kLockMsg, nlm::encode_lock_call(Form::kLock, call)), "");
  auto calls = world.outside.await(nlm::kNlmProgram, 1);
  ASSERT_EQ(calls.size(), 1U);
  const auto result = nlm::decode_answer(calls[0].arguments);
  ASSERT_TRUE(result);
  EXPECT_EQ(result->status, Status::kBlocked);
  EXPECT_EQ(a.unlock(a.request(1, 0, 0)), Status::kGranted);
  calls = world.outside.await(nlm::kNlmProgram, 3);  // and again, until the answer comes
  ASSERT_GE(calls.size(), 3U);
  EXPECT_TRUE(calls[1].told);
  EXPECT_EQ(calls[1].procedure, static_cast<std::uint32_t>(Proc::kGrantedMsg));
  const std::string cookie = granted_call(calls[1]).cookie;

  // A cookie of somebody's making does not count.
  std::string wrong = cookie;
  wrong.back() ^= 1;
  b.call(Proc::kGrantedRes, nlm::encode_answer({wrong, Status::kDenied}));
  b.call(Proc::kGrantedRes, nlm::encode_answer({"", Status::kDenied}));
  EXPECT_EQ(world.grants(1).size(), 1U);
  EXPECT_EQ(world.service->desk().figures().waiting, 1U);

  // The right one does, whichever of its addresses the client says it from.
  NlmClient other{world.port(), {"b", false, "127.0.0.2"}};
  other.call(Proc::kGrantedRes, nlm::encode_answer({cookie, Status::kGranted}));
  EXPECT_TRUE(quiet());
  EXPECT_EQ(world.grants(1).size(), 1U);
  b.call(Proc::kGrantedRes, nlm::encode_answer({cookie, Status::kDenied}));
  EXPECT_EQ(world.grants(1).size(), 1U) << "too late";
}

TEST(NlmMessages, AMessageThatDeniesTheGrantGivesItBack) {
  auto options = NlmWorld::quick();
  options.desk.first_pause_ns = 3'600'000'000'000;  // told once
  options.desk.grant_patience_ns = 2 * options.desk.first_pause_ns;
  NlmWorld world{options};
  auto a = world.client("a");
  auto b = world.client("b");
  ASSERT_EQ(a.lock(a.request(1, 0, 0)), Status::kGranted);
  b.call(Proc::kLockMsg, nlm::encode_lock_call(Form::kLock, blocking(b.request(1, 0, 0))));
  EXPECT_EQ(a.unlock(a.request(1, 0, 0)), Status::kGranted);
  const auto calls = world.outside.await(nlm::kNlmProgram, 2);
  ASSERT_GE(calls.size(), 2U);
  b.call(Proc::kGrantedRes, nlm::encode_answer({granted_call(calls[1]).cookie, Status::kDenied}));
  EXPECT_EQ(world.service->desk().figures().waiting, 0U);
  EXPECT_TRUE(world.grants(1).empty());
}

TEST_F(NlmWaits, AMessageThatDeniesTheThirdCopyDoesNot) {
  ASSERT_EQ(a.lock(a.request(1, 0, 0)), Status::kGranted);
  b.call(Proc::kLockMsg, nlm::encode_lock_call(Form::kLock, blocking(b.request(1, 0, 0))));
  EXPECT_EQ(a.unlock(a.request(1, 0, 0)), Status::kGranted);
  // (LOCK_RES; and who is told a third time has been entered as told twice.)
  const auto calls = world.outside.await(nlm::kNlmProgram, 4);
  ASSERT_GE(calls.size(), 4U);
  b.call(Proc::kGrantedRes, nlm::encode_answer({granted_call(calls[3]).cookie, Status::kDenied}));
  EXPECT_EQ(world.service->desk().figures().waiting, 0U);
  EXPECT_EQ(world.grants(1).size(), 1U);
}

// The answer to the second copy, which comes before the sender of that one knows that it is sent.
TEST_F(NlmWaits, NorDoesAMessageThatDeniesTheSecondCopyAtOnce) {
  std::atomic<int> copies{0};
  world.outside.when_told([&](const FakeOutside::Call& call) {
    if (call.procedure != static_cast<std::uint32_t>(Proc::kGrantedMsg) || ++copies != 2) return;
    world.service->desk().granted_answer({granted_call(call).cookie, Status::kDenied});
  });
  ASSERT_EQ(a.lock(a.request(1, 0, 0)), Status::kGranted);
  b.call(Proc::kLockMsg, nlm::encode_lock_call(Form::kLock, blocking(b.request(1, 0, 0, 9))));
  EXPECT_EQ(a.unlock(a.request(1, 0, 0)), Status::kGranted);
  EXPECT_TRUE(quiet());
  EXPECT_EQ(copies, 2);
  EXPECT_EQ(world.grants(1), (std::vector<std::string>{"EX 0 0 9"}));
}

TEST_F(NlmWaits, CancelEndsTheWait) {
  ASSERT_EQ(a.lock(a.request(1, 0, 0)), Status::kGranted);
  const LockCall call = blocking(b.request(1, 0, 10));
  EXPECT_EQ(b.cancel(call), Status::kDenied) << "nothing to cancel";
  EXPECT_EQ(b.lock(call), Status::kBlocked);
  LockCall other = call;
  other.what.length = 11;
  EXPECT_EQ(b.cancel(other), Status::kDenied);
  other = call;
  other.exclusive = false;
  EXPECT_EQ(b.cancel(other), Status::kDenied);
  other = call;
  other.what.svid = 2;
  EXPECT_EQ(b.cancel(other), Status::kDenied);
  EXPECT_EQ(world.waiters(1), 1U);
  EXPECT_EQ(b.cancel(call), Status::kGranted);
  EXPECT_EQ(world.waiters(1), 0U);
  EXPECT_EQ(b.cancel(call), Status::kDenied);
  EXPECT_EQ(a.unlock(a.request(1, 0, 0)), Status::kGranted);
  EXPECT_TRUE(world.grants(1).empty());
  EXPECT_TRUE(world.outside.calls(nlm::kNlmProgram).empty());
}

TEST_F(NlmWaits, CancelAfterAGrantNobodyHasHeardOfGivesItBack) {
  world.outside.answer_by(silent);
  ASSERT_EQ(a.lock(a.request(1, 0, 0)), Status::kGranted);
  const LockCall call = blocking(b.request(1, 0, 0));
  EXPECT_EQ(b.lock(call), Status::kBlocked);
  EXPECT_EQ(a.unlock(a.request(1, 0, 0)), Status::kGranted);
  world.outside.await(nlm::kNlmProgram, 1);
  EXPECT_EQ(world.grants(1).size(), 1U);
  EXPECT_EQ(b.cancel(call), Status::kGranted);
  EXPECT_TRUE(world.grants(1).empty());
  EXPECT_TRUE(quiet());
}

TEST_F(NlmWaits, UnlockEndsTheWaitForTheSame) {
  ASSERT_EQ(a.lock(a.request(1, 0, 0)), Status::kGranted);
  const LockCall call = blocking(b.request(1, 0, 10));
  EXPECT_EQ(b.lock(call), Status::kBlocked);
  EXPECT_EQ(b.unlock(call), Status::kGranted);
  EXPECT_EQ(world.waiters(1), 0U);
}

// An upgrade that waits, and what unlocking the shared lock it comes from does to it: nothing, as
// the range is another one.
TEST_F(NlmWaits, AnUpgradeWaitsWithItsSharedLock) {
  LockCall ours = a.request(1, 0, 10);
  LockCall theirs = b.request(1, 0, 10);
  ours.exclusive = theirs.exclusive = false;
  ASSERT_EQ(a.lock(ours), Status::kGranted);
  ASSERT_EQ(b.lock(theirs), Status::kGranted);
  ours.exclusive = true;
  EXPECT_EQ(a.lock(blocking(ours)), Status::kBlocked);
  EXPECT_EQ(world.grants(1).size(), 2U);
  EXPECT_EQ(a.cancel(ours), Status::kGranted);
  EXPECT_EQ(world.grants(1).size(), 2U) << "the shared lock stays";
  EXPECT_EQ(a.lock(blocking(ours)), Status::kBlocked);
  EXPECT_EQ(b.unlock(theirs), Status::kGranted);
  EXPECT_TRUE(quiet());
  EXPECT_EQ(world.grants(1), (std::vector<std::string>{"EX 0 10 1"}));
}

// What a wait brings goes when its client does not want it; what the owner held before stays.
TEST_F(NlmWaits, ACancelledUpgradeThatWasGrantedLeavesTheSharedLock) {
  world.outside.answer_by(silent);
  LockCall ours = a.request(1, 0, 10);
  LockCall theirs = b.request(1, 5, 10, 2);
  ours.exclusive = theirs.exclusive = false;
  ASSERT_EQ(a.lock(ours), Status::kGranted);
  ASSERT_EQ(b.lock(theirs), Status::kGranted);
  // Wider than what it comes from, on both sides of it.
  ours = a.request(1, 0, 30);
  EXPECT_EQ(a.lock(a.request(1, 20, 5)), Status::kGranted);
  EXPECT_EQ(a.lock(blocking(ours)), Status::kBlocked);
  EXPECT_EQ(b.unlock(theirs), Status::kGranted);
  world.outside.await(nlm::kNlmProgram, 1);
  EXPECT_EQ(world.grants(1), (std::vector<std::string>{"EX 0 30 1"}));
  EXPECT_EQ(a.cancel(ours), Status::kGranted);
  EXPECT_EQ(world.grants(1), (std::vector<std::string>{"SH 0 10 1", "EX 20 5 1"}));
  EXPECT_TRUE(quiet());
  EXPECT_EQ(a.unlock(a.request(1, 0, 0)), Status::kGranted);
  EXPECT_EQ(world.service->desk().figures().held, 0U);
}

TEST_F(NlmWaits, ADeniedUpgradeLeavesWhatIsHeldByThen) {
  std::atomic<bool> deny{false};
  world.outside.answer_by([&](const FakeOutside::Call& call) -> Result<std::string> {
    if (call.program == nlm::kStatdProgram || deny) return denies(call);
    return errno_code(EHOSTUNREACH);
  });
  LockCall ours = a.request(1, 0, 10);
  LockCall theirs = b.request(1, 0, 10, 2);
  ours.exclusive = theirs.exclusive = false;
  ASSERT_EQ(a.lock(ours), Status::kGranted);
  ASSERT_EQ(b.lock(theirs), Status::kGranted);
  ours.exclusive = true;
  EXPECT_EQ(a.lock(blocking(ours)), Status::kBlocked);
  EXPECT_EQ(b.unlock(theirs), Status::kGranted);
  world.outside.await(nlm::kNlmProgram, 1);
  // Meanwhile another thread there gives some back, and takes some.
  EXPECT_EQ(a.unlock(a.request(1, 0, 4)), Status::kGranted);
  EXPECT_EQ(a.lock(a.request(1, 1, 1)), Status::kGranted);
  deny = true;
  EXPECT_TRUE(quiet());
  EXPECT_EQ(world.grants(1), (std::vector<std::string>{"EX 1 1 1", "SH 4 6 1"}));
}

TEST_F(NlmWaits, WhoHasUnlockedWhatHeWasGrantedIsNotToldThatHeHasIt) {
  world.outside.answer_by(silent);
  ASSERT_EQ(a.lock(a.request(1, 0, 0)), Status::kGranted);
  const LockCall call = blocking(b.request(1, 0, 10, 2));
  EXPECT_EQ(b.lock(call), Status::kBlocked);
  EXPECT_EQ(a.unlock(a.request(1, 0, 0)), Status::kGranted);
  world.outside.await(nlm::kNlmProgram, 1);
  EXPECT_EQ(b.unlock(b.request(1, 0, 0, 2)), Status::kGranted);
  EXPECT_TRUE(world.grants(1).empty());
  EXPECT_EQ(b.lock(call), Status::kGranted);
  EXPECT_EQ(world.grants(1), (std::vector<std::string>{"EX 0 10 2"}));
}

// Cancelled, the same by another name: a client whose host name was set meanwhile.
TEST_F(NlmWaits, CancelAndUnlockByAnotherNameOfTheSameProcess) {
  ASSERT_EQ(a.lock(a.request(1, 0, 0, 1)), Status::kGranted);
  EXPECT_EQ(b.lock(blocking(b.request(1, 0, 10, 2))), Status::kBlocked);
  auto renamed = world.client("renamed");
  EXPECT_EQ(renamed.cancel(renamed.request(1, 0, 10, 3)), Status::kDenied);
  EXPECT_EQ(renamed.cancel(renamed.request(1, 0, 10, 2)), Status::kGranted);
  EXPECT_EQ(world.waiters(1), 0U);
  // Neither from elsewhere nor for another process.
  NlmClient other{world.port(), {"renamed", false, "127.0.0.2"}};
  EXPECT_EQ(other.unlock(other.request(1, 0, 0, 1)), Status::kGranted);
  EXPECT_EQ(renamed.unlock(renamed.request(1, 0, 0, 2)), Status::kGranted);
  EXPECT_EQ(world.grants(1).size(), 1U);
  EXPECT_EQ(renamed.unlock(renamed.request(1, 0, 0, 1)), Status::kGranted);
  EXPECT_TRUE(world.grants(1).empty());
  EXPECT_EQ(world.service->desk().figures().held, 0U);
  // Two whom it could be: neither.
  EXPECT_EQ(a.lock(a.request(1, 0, 10, 1)), Status::kGranted);
  EXPECT_EQ(b.lock(b.request(1, 10, 10, 1)), Status::kGranted);
  EXPECT_EQ(renamed.unlock(renamed.request(1, 0, 0, 1)), Status::kGranted);
  EXPECT_EQ(world.grants(1).size(), 2U);
}

// Several machines behind one address count their processes alike: who has locked by its name means
// itself, also where it has nothing.
TEST_F(NlmWaits, NobodyUnlocksForItsNeighbourOfTheSameAddress) {
  ASSERT_EQ(a.lock(a.request(1, 0, 10)), Status::kGranted);
  const LockCall call = blocking(b.request(1, 0, 10));
  ASSERT_EQ(b.lock(call), Status::kBlocked);
  EXPECT_EQ(b.cancel(call), Status::kGranted);
  EXPECT_EQ(b.unlock(call), Status::kGranted);
  EXPECT_EQ(b.cancel(call), Status::kDenied);
  EXPECT_EQ(world.grants(1), (std::vector<std::string>{"EX 0 10 1"}));
}

// Waiters and holders of many clients, cancelled, granted, asked again at random moments: at the
// end nothing is left, and nothing was granted twice.
TEST(NlmWaitsRace, NothingIsLeftOfWhatWasCancelledWhileItWasGranted) {
  NlmWorld world;
  constexpr int kClients = 4;
  constexpr int kRounds = 200;
  std::atomic<int> holders{0};
  std::atomic<bool> twice{false};
  std::atomic<int> failed{0};
  world.outside.answer_by([&](const FakeOutside::Call& call) -> Result<std::string> {
    if (call.program == nlm::kStatdProgram) return std::string(8, '\0');
    // A client that has forgotten what it waited for now and then.
    const LockCall said = granted_call(call);
    return nlm::encode_answer(
        {said.cookie, said.what.svid % 3 == 0 ? Status::kDenied : Status::kGranted});
  });
  std::vector<std::thread> threads;
  for (int n = 0; n < kClients; ++n) {
    threads.emplace_back([&, n] {
      auto me = world.client("client" + std::to_string(n), n % 2 == 0);
      for (int round = 0; round < kRounds; ++round) {
        const LockCall call = blocking(me.request(1, 0, 0, round));
        Status status = me.lock(call);
        for (int tries = 0; status == Status::kBlocked && tries < 3; ++tries)
          status = me.lock(call);
        if (status == Status::kBlocked) {
          me.cancel(call);  // granted or denied: whichever was faster
          me.unlock(call);
        } else if (status == Status::kGranted) {
          if (holders.fetch_add(1) != 0) twice = true;
          holders.fetch_sub(1);
          if (me.unlock(call) != Status::kGranted) ++failed;
        } else {
          ++failed;
        }
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(failed, 0);
  EXPECT_FALSE(twice);
  EXPECT_TRUE(NlmWorld::await([&] { return world.service->desk().figures().waiting == 0; }));
  EXPECT_TRUE(world.grants(1).empty());
  EXPECT_EQ(world.waiters(1), 0U);
  EXPECT_EQ(world.service->desk().figures().held, 0U);
}

}  // namespace
}  // namespace latchfs::test
