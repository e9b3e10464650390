// Each procedure and each status, by datagrams and by connections.
#include <gtest/gtest.h>

#include "nlm_world.h"

namespace latchfs::test {
namespace {

using nlm::Form;
using nlm::LockCall;
using nlm::Proc;
using nlm::Status;

ByteRange bytes(std::uint64_t begin, std::uint64_t end) {
  return *ByteRange::from_half_open(begin, end);
}

class NlmLocks : public ::testing::TestWithParam<bool> {
 protected:
  NlmClient client(const std::string& name) { return world.client(name, GetParam()); }
  NlmWorld world;
};
INSTANTIATE_TEST_SUITE_P(Transport, NlmLocks, ::testing::Bool(),
                         [](const auto& one) { return one.param ? "Tcp" : "Udp"; });

TEST_P(NlmLocks, NullAnswersNothing) {
  auto a = client("a");
  EXPECT_EQ(a.call(Proc::kNull, ""), "");
}

TEST_P(NlmLocks, LockAndUnlockAndWhatTheyExclude) {
  auto a = client("a");
  auto b = client("b");
  EXPECT_EQ(a.lock(a.request(1, 10, 10, 77)), Status::kGranted);
  EXPECT_EQ(world.grants(1), (std::vector<std::string>{"EX 10 10 77"}));
  EXPECT_EQ(b.lock(b.request(1, 19, 5)), Status::kDenied);
  EXPECT_EQ(b.lock(b.request(1, 20, 5)), Status::kGranted);
  EXPECT_EQ(b.lock(b.request(2, 0, 0)), Status::kGranted) << "another file";
  EXPECT_EQ(a.unlock(a.request(1, 12, 2, 77)), Status::kGranted);
  EXPECT_EQ(world.grants(1).size(), 3U) << "split in two";
  EXPECT_EQ(b.lock(b.request(1, 12, 2)), Status::kGranted);
  EXPECT_EQ(a.unlock(a.request(1, 0, 0, 77)), Status::kGranted);
  EXPECT_EQ(b.unlock(b.request(1, 0, 0)), Status::kGranted);
  EXPECT_EQ(b.unlock(b.request(2, 0, 0)), Status::kGranted);
  EXPECT_TRUE(world.grants(1).empty());
  EXPECT_EQ(world.service->desk().figures().held, 0U);
}

TEST_P(NlmLocks, SharedLocksGoTogetherAndAnUpgradeWaitsForTheOther) {
  auto a = client("a");
  auto b = client("b");
  LockCall ours = a.request(1, 0, 0);
  LockCall theirs = b.request(1, 0, 0);
  ours.exclusive = theirs.exclusive = false;
  EXPECT_EQ(a.lock(ours), Status::kGranted);
  EXPECT_EQ(b.lock(theirs), Status::kGranted);
  ours.exclusive = true;
  EXPECT_EQ(a.lock(ours), Status::kDenied);
  EXPECT_EQ(b.unlock(theirs), Status::kGranted);
  EXPECT_EQ(a.lock(ours), Status::kGranted);
  ours.exclusive = false;
  EXPECT_EQ(a.lock(ours), Status::kGranted) << "downgraded";
  EXPECT_EQ(b.lock(theirs), Status::kGranted);
}

TEST_P(NlmLocks, EachPartOfTheOwnerMakesAnotherOwner) {
  auto a = client("a");
  ASSERT_EQ(a.lock(a.request(1, 0, 10, 5)), Status::kGranted);
  EXPECT_EQ(a.lock(a.request(1, 0, 10, 5)), Status::kGranted) << "his own";
  EXPECT_EQ(a.lock(a.request(1, 0, 10, 6)), Status::kDenied) << "another process";
  LockCall call = a.request(1, 0, 10, 5);
  call.what.owner += "x";
  EXPECT_EQ(a.lock(call), Status::kDenied) << "other owner bytes";
  call = a.request(1, 0, 10, 5);
  call.what.caller = "b";
  EXPECT_EQ(a.lock(call), Status::kDenied) << "another machine";
  call.what.svid = 6;
  EXPECT_EQ(a.unlock(call), Status::kGranted);
  EXPECT_EQ(world.grants(1).size(), 1U) << "who has nothing gives nothing back";
}

TEST_P(NlmLocks, SomebodyElseWithTheSameNameGivesNothingBack) {
  auto a = client("a");
  ASSERT_EQ(a.lock(a.request(1, 0, 10)), Status::kGranted);
  NlmClient thief{world.port(), {"a", GetParam(), "127.0.0.2"}};
  EXPECT_EQ(thief.unlock(thief.request(1, 0, 0)), Status::kGranted);
  thief.call(Proc::kFreeAll, nlm::encode_free_call({"a", 5}));
  EXPECT_EQ(thief.lock(thief.request(1, 0, 10)), Status::kDenied);
  EXPECT_EQ(world.grants(1).size(), 1U);
}

TEST_P(NlmLocks, TestNamesWhoIsInTheWay) {
  auto a = client("a");
  auto b = client("b");
  EXPECT_EQ(b.test(b.request(1, 0, 0)).status, Status::kGranted);
  EXPECT_TRUE(world.grants(1).empty());
  LockCall shared = a.request(1, 100, 0, 55);
  shared.exclusive = false;
  ASSERT_EQ(a.lock(shared), Status::kGranted);
  const auto answer = b.test(b.request(1, 0, 200));
  EXPECT_EQ(answer.status, Status::kDenied);
  EXPECT_FALSE(answer.holder.exclusive);
  EXPECT_EQ(answer.holder.svid, 55);
  EXPECT_EQ(answer.holder.offset, 100U);
  EXPECT_EQ(answer.holder.length, 0U);
  EXPECT_EQ(answer.holder.owner, "");
  shared = b.request(1, 0, 0);
  shared.exclusive = false;
  EXPECT_EQ(b.test(shared).status, Status::kGranted);

  world.local_lock(2, bytes(5, 9));
  const auto local = b.test(b.request(2, 0, 0));
  EXPECT_EQ(local.status, Status::kDenied);
  EXPECT_TRUE(local.holder.exclusive);
  EXPECT_EQ(local.holder.svid, 4711);
  EXPECT_EQ(local.holder.offset, 5U);
  EXPECT_EQ(local.holder.length, 4U);
}

TEST_P(NlmLocks, RangesBeyondTheLastByteAreTooBig) {
  auto a = client("a");
  constexpr std::uint64_t kEof = ByteRange::kEof;
  for (const auto& [offset, length] : std::vector<std::pair<std::uint64_t, std::uint64_t>>{
           {kEof, 0}, {kEof, 1}, {~0ULL, 1}, {kEof - 1, 2}, {1, ~0ULL}, {0, kEof + 1}}) {
    SCOPED_TRACE(std::to_string(offset) + " " + std::to_string(length));
    const LockCall call = a.request(1, offset, length);
    EXPECT_EQ(a.lock(call), Status::kTooBig);
    EXPECT_EQ(a.unlock(call), Status::kTooBig);
    EXPECT_EQ(a.cancel(call), Status::kTooBig);
    EXPECT_EQ(a.test(call).status, Status::kTooBig);
  }
  EXPECT_EQ(a.lock(a.request(1, kEof - 1, 1)), Status::kGranted);
  EXPECT_EQ(a.lock(a.request(1, 0, kEof)), Status::kGranted);
  EXPECT_EQ(world.grants(1), (std::vector<std::string>{"EX 0 0 1"}));
}

TEST_P(NlmLocks, HandlesThatNameNoFileLockNothing) {
  auto a = client("a");
  const auto all = [&](const std::string& handle, Status lock, Status unlock) {
    LockCall call = a.request(1, 0, 0);
    call.what.handle = handle;
    EXPECT_EQ(a.lock(call), lock);
    EXPECT_EQ(a.test(call).status, lock);
    EXPECT_EQ(a.ask(Proc::kNmLock, Form::kLock, call), lock);
    EXPECT_EQ(a.unlock(call), unlock);
    EXPECT_EQ(a.ask_share(Proc::kShare, {"c", "a", handle, "o", 0, 1, false}), lock);
  };
  all(handle_of(FakeFiles::kGone), Status::kStaleHandle, Status::kGranted);
  all(handle_of(1, 2), Status::kStaleHandle, Status::kStaleHandle);
  all(handle_of(FakeFiles::kDirectory), Status::kFailed, Status::kGranted);
  all(handle_of(FakeFiles::kAway), Status::kDeniedNolocks, Status::kGranted);
  all("", Status::kFailed, Status::kFailed);
  all("nonsense", Status::kFailed, Status::kFailed);
  all(std::string(1024, '\1'), Status::kFailed, Status::kFailed);
  all(handle_of(1).substr(0, 19), Status::kFailed, Status::kFailed);
  all(handle_of(1) + "x", Status::kFailed, Status::kFailed);
  EXPECT_TRUE(world.grants(1).empty());
  EXPECT_EQ(world.service->desk().figures().held, 0U);
}

TEST_P(NlmLocks, AFileOnAReadOnlyMountHasNoExclusiveLocks) {
  auto a = client("a");
  LockCall call = a.request(FakeFiles::kReadOnly, 0, 0);
  EXPECT_EQ(a.lock(call), Status::kReadOnly);
  call.exclusive = false;
  EXPECT_EQ(a.lock(call), Status::kGranted);
  nlm::ShareCall share{"c", "a", handle_of(FakeFiles::kReadOnly), "o", 0, 2, false};
  EXPECT_EQ(a.ask_share(Proc::kShare, share), Status::kReadOnly);
  share.access = 1;
  EXPECT_EQ(a.ask_share(Proc::kShare, share), Status::kGranted);
}

TEST_P(NlmLocks, WhoMayNotReadAFileMayNotLockIt) {
  auto a = client("a");
  const LockCall call = a.request(FakeFiles::kPrivate, 0, 0);
  EXPECT_EQ(a.lock(call), Status::kGranted);
  a.options.credentials.uid = 1001;
  EXPECT_EQ(a.lock(call), Status::kFailed) << "also while another user of the client has it open";
  EXPECT_EQ(a.test(call).status, Status::kFailed);
  a.options.credentials = {};
  EXPECT_EQ(a.lock(call), Status::kFailed) << "AUTH_NONE is nobody";
  a.options.credentials = {true, 0, 0, {}};
  EXPECT_EQ(a.lock(call), Status::kFailed) << "root is nobody";
}

TEST_P(NlmLocks, NoRequestWaitsThatWouldWaitForItself) {
  auto a = client("a");
  auto b = client("b");
  ASSERT_EQ(a.lock(a.request(1, 0, 0)), Status::kGranted);
  ASSERT_EQ(b.lock(b.request(2, 0, 0)), Status::kGranted);
  LockCall call = a.request(2, 0, 0);
  call.block = true;
  EXPECT_EQ(a.lock(call), Status::kBlocked);
  call = b.request(1, 0, 0);
  call.block = true;
  EXPECT_EQ(b.lock(call), Status::kDeadlock);
}

TEST_P(NlmLocks, FreeAllGivesEverythingOfTheCallerBack) {
  auto a = client("a");
  auto b = client("b");
  for (std::uint64_t node = 1; node <= 3; ++node) {
    ASSERT_EQ(a.lock(a.request(node, 0, 10, static_cast<std::int32_t>(node))), Status::kGranted);
  }
  ASSERT_EQ(b.lock(b.request(1, 100, 10)), Status::kGranted);
  LockCall waits = a.request(1, 100, 10);
  waits.block = true;
  ASSERT_EQ(a.lock(waits), Status::kBlocked);
  nlm::ShareCall share{"c", "a", handle_of(4), "o", 3, 3, false};
  ASSERT_EQ(a.ask_share(Proc::kShare, share), Status::kGranted);

  EXPECT_EQ(a.call(Proc::kFreeAll, nlm::encode_free_call({"a", 5})), "");
  EXPECT_EQ(world.grants(1), (std::vector<std::string>{"EX 100 10 1"}));
  EXPECT_TRUE(world.grants(2).empty());
  EXPECT_TRUE(world.grants(3).empty());
  EXPECT_EQ(world.waiters(1), 0U);
  share.caller = "b";
  EXPECT_EQ(b.ask_share(Proc::kShare, share), Status::kGranted);
  EXPECT_EQ(world.service->desk().figures().held, 2U);
}

TEST_P(NlmLocks, MessagesAreAnsweredByCallsOfTheirResults) {
  auto a = client("a");
  const auto message = [&](Proc procedure, Form form, const LockCall& call) {
    EXPECT_EQ(a.call(procedure, nlm::encode_lock_call(form, call)), "");
  };
  LockCall call = a.request(1, 0, 10);
  call.cookie = "first";
  message(Proc::kLockMsg, Form::kLock, call);
  auto calls = world.outside.await(nlm::kNlmProgram, 1);
  ASSERT_EQ(calls.size(), 1U);
  EXPECT_TRUE(calls[0].told);
  EXPECT_EQ(calls[0].procedure, static_cast<std::uint32_t>(Proc::kLockRes));
  EXPECT_EQ(calls[0].where.address, "127.0.0.1");
  EXPECT_EQ(calls[0].where.local, "127.0.0.1");
  EXPECT_EQ(calls[0].where.tcp, GetParam());
  auto answer = nlm::decode_answer(calls[0].arguments);
  ASSERT_TRUE(answer);
  EXPECT_EQ(answer->cookie, "first");
  EXPECT_EQ(answer->status, Status::kGranted);

  auto b = client("b");
  LockCall theirs = b.request(1, 0, 0);
  theirs.cookie = "second";
  EXPECT_EQ(b.call(Proc::kTestMsg, nlm::encode_lock_call(Form::kTest, theirs)), "");
  calls = world.outside.await(nlm::kNlmProgram, 2);
  ASSERT_EQ(calls.size(), 2U);
  EXPECT_EQ(calls[1].procedure, static_cast<std::uint32_t>(Proc::kTestRes));
  const auto tested = nlm::decode_test_answer(calls[1].arguments);
  ASSERT_TRUE(tested);
  EXPECT_EQ(tested->status, Status::kDenied);
  EXPECT_EQ(tested->holder.length, 10U);

  message(Proc::kUnlockMsg, Form::kUnlock, call);
  message(Proc::kCancelMsg, Form::kCancel, call);
  message(Proc::kGrantedMsg, Form::kTest, call);
  calls = world.outside.await(nlm::kNlmProgram, 5);
  ASSERT_EQ(calls.size(), 5U);
  for (const auto& [i, procedure, status] : {std::tuple{2U, Proc::kUnlockRes, Status::kGranted},
                                             {3U, Proc::kCancelRes, Status::kDenied},
                                             {4U, Proc::kGrantedRes, Status::kDenied}}) {
    EXPECT_EQ(calls[i].procedure, static_cast<std::uint32_t>(procedure));
    answer = nlm::decode_answer(calls[i].arguments);
    ASSERT_TRUE(answer);
    EXPECT_EQ(answer->status, status);
  }
}

TEST_P(NlmLocks, CallsThatAreForClientsAreAnsweredSensibly) {
  auto a = client("a");
  EXPECT_EQ(a.ask(Proc::kGranted, Form::kTest, a.request(1, 0, 0)), Status::kDenied);
  for (const Proc procedure :
       {Proc::kTestRes, Proc::kLockRes, Proc::kCancelRes, Proc::kUnlockRes, Proc::kGrantedRes}) {
    EXPECT_EQ(a.call(procedure, nlm::encode_answer({"no such cookie", Status::kDenied})), "");
  }
}

TEST_P(NlmLocks, TheSameBytesAgainAreNotDoneAgain) {
  auto a = client("a");
  auto b = client("b");
  const std::string lock =
      a.message(Proc::kLock, nlm::encode_lock_call(Form::kLock, a.request(1, 0, 0)));
  const auto first = a.exchange(lock);
  ASSERT_TRUE(first);
  const std::string unlock =
      a.message(Proc::kUnlock, nlm::encode_lock_call(Form::kUnlock, a.request(1, 0, 0)));
  const auto second = a.exchange(unlock);
  ASSERT_TRUE(second);
  EXPECT_TRUE(world.grants(1).empty());
  EXPECT_EQ(a.exchange(lock), first) << "answered alike";
  EXPECT_TRUE(world.grants(1).empty()) << "and not locked for nobody";
  ASSERT_EQ(a.lock(a.request(1, 0, 0)), Status::kGranted);
  EXPECT_EQ(a.exchange(unlock), second);
  EXPECT_EQ(world.grants(1).size(), 1U) << "an old unlock takes no new lock away";
  // From another sender the same bytes are another request.
  const auto reply = b.exchange(lock);
  ASSERT_TRUE(reply);
  EXPECT_EQ(*reply, *first) << "(the same client, by name and address)";
}

TEST_P(NlmLocks, FilesThatNobodyLocksAreLetGo) {
  auto a = client("a");
  ASSERT_EQ(a.lock(a.request(1, 0, 0)), Status::kGranted);
  ASSERT_EQ(a.lock(a.request(2, 0, 0)), Status::kGranted);
  ASSERT_EQ(a.unlock(a.request(2, 0, 0)), Status::kGranted);
  EXPECT_TRUE(NlmWorld::await([&] { return world.files.open_files() == 1; }));
  EXPECT_EQ(a.unlock(a.request(1, 0, 0)), Status::kGranted);
  EXPECT_TRUE(NlmWorld::await([&] { return world.files.open_files() == 0; }));
}

TEST_P(NlmLocks, AMountThatComesAgainIsFoundAndOneThatIsAwayKeepsNobodyFromUnlocking) {
  auto a = client("a");
  ASSERT_EQ(a.lock(a.request(1, 0, 10)), Status::kGranted);
  a.options.credentials.uid = 1001;  // (whose leave is not remembered)
  world.files.remount();
  const int before = world.files.opened;
  EXPECT_EQ(a.lock(a.request(1, 10, 10)), Status::kGranted);
  EXPECT_GT(world.files.opened, before);
  world.files.away = true;
  world.files.remount();
  a.options.credentials.uid = 1002;
  EXPECT_EQ(a.lock(a.request(1, 20, 10)), Status::kDeniedNolocks);
  EXPECT_EQ(a.unlock(a.request(1, 0, 0)), Status::kGranted);
  EXPECT_TRUE(world.grants(1).empty());
}

}  // namespace
}  // namespace latchfs::test
