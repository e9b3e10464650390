// Every store keeps the same promises: the suite never asks which one it has.
#include <gtest/gtest.h>

#include <thread>

#include "support/store_fixture.h"

namespace latchfs::test {
namespace {

class LockServiceContract : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    store_ = make_store(GetParam(), sink_);
    ASSERT_NE(store_, nullptr) << "the table could not be made (is /dev/shm there?)";
  }

  OwnerId owner(std::uint64_t key, OwnerSpace space = OwnerSpace::kRange) const {
    return {store_->mount_id(), key, space};
  }
  LockRequest request(std::uint64_t key, std::uint64_t begin, std::uint64_t end, LockMode mode,
                      LockKind kind = LockKind::kPosix, FileId file = {1, 100}) const {
    LockRequest r;
    r.file = file;
    r.kind = kind;
    r.owner = owner(key, kind == LockKind::kFlock ? OwnerSpace::kFlock : OwnerSpace::kRange);
    r.range = *ByteRange::from_half_open(begin, end);
    r.mode = mode;
    r.holder.pid = static_cast<std::uint32_t>(key);
    r.holder.uid = 1000;
    return r;
  }
  template <class T>
  bool is(const Result<Acquired>& r) {
    return r.ok() && std::holds_alternative<T>(*r);
  }
  auto take(const LockRequest& r, OnConflict on = OnConflict::kRefuse, std::uint64_t token = 0) {
    return store_->acquire(r, on, WaiterToken{token});
  }
  std::size_t count(const ListQuery& query = {}) {
    std::size_t n = 0;
    ListQuery q = query;
    for (;;) {
      auto page = store_->list(q);
      EXPECT_TRUE(page.ok());
      n += page->grants.size();
      if (!page->next) return n;
      q.after = *page->next;
    }
  }
  // Owner i holds file i and waits for that of owner i + 1; the last one waits for nobody.
  static FileId file(std::uint64_t i) { return {1, i}; }
  auto ask(std::uint64_t who, std::uint64_t of) {
    return take(request(who, 0, 10, kEx, LockKind::kPosix, file(of)), OnConflict::kQueue, who);
  }
  void make_chain(std::uint64_t owners) {
    for (std::uint64_t i = 1; i <= owners; ++i) {
      ASSERT_TRUE(is<Granted>(take(request(i, 0, 10, kEx, LockKind::kPosix, file(i)))));
    }
    for (std::uint64_t i = 1; i < owners; ++i) ASSERT_TRUE(is<Queued>(ask(i, i + 1)));
  }
  void expect_clean() {
    const auto wrong = store_->verify();
    ASSERT_TRUE(wrong.ok());
    EXPECT_EQ(*wrong, "");
  }

  static constexpr auto kSh = LockMode::kShared;
  static constexpr auto kEx = LockMode::kExclusive;
  RecordingSink sink_;
  std::unique_ptr<LockService> store_;
};

TEST_P(LockServiceContract, GrantsConflictsAndNamesTheHolder) {
  EXPECT_TRUE(is<Granted>(take(request(1, 0, 40, kEx))));
  const auto refused = take(request(2, 10, 20, kSh));
  ASSERT_TRUE(is<Conflict>(refused));
  EXPECT_EQ(std::get<Conflict>(*refused).holder.owner, owner(1));
  EXPECT_EQ(std::get<Conflict>(*refused).holder.holder.pid, 1u);
  EXPECT_TRUE(is<Granted>(take(request(2, 40, 50, kEx))));
  expect_clean();
}

TEST_P(LockServiceContract, NamesTheMachineALockIsHeldFor) {
  const RemoteClient build7{"build7", "192.0.2.7"};
  const auto number = store_->enter_client(build7);
  ASSERT_TRUE(number.ok());
  EXPECT_NE(*number, 0U);
  EXPECT_EQ(*store_->enter_client(build7), *number);  // the same machine, a second use
  const auto other = store_->enter_client({"build7", "192.0.2.8"});
  ASSERT_TRUE(other.ok());
  EXPECT_NE(*other, *number);

  auto asked = request(1, 0, 40, kEx);
  asked.holder.client = *number;
  ASSERT_TRUE(is<Granted>(take(asked)));
  ASSERT_TRUE(is<Granted>(take(request(2, 50, 60, kEx))));
  const auto page = store_->list({});
  ASSERT_TRUE(page.ok());
  ASSERT_EQ(page->grants.size(), 2U);
  EXPECT_EQ(store_->client_of(page->grants[0]), build7);
  EXPECT_EQ(store_->client_of(page->grants[1]), std::nullopt);  // of this machine

  store_->leave_client(*number);
  EXPECT_EQ(store_->client_of(page->grants[0]), build7);  // used once still
  store_->leave_client(*number);
  EXPECT_EQ(store_->client_of(page->grants[0]), std::nullopt);
  store_->leave_client(*number);  // once too often: nothing
  store_->leave_client(0);
  store_->leave_client(1U << 31);
  EXPECT_EQ(store_->enter_client({"nobody", ""}).error(), errno_code(EINVAL));
}

TEST_P(LockServiceContract, CutsLongNamesOfMachinesAndRefusesTooMany) {
  const RemoteClient longest{std::string(5000, 'n'), std::string(100, 'a')};
  const auto number = store_->enter_client(longest);
  ASSERT_TRUE(number.ok());
  auto asked = request(1, 0, 40, kEx);
  asked.holder.client = *number;
  ASSERT_TRUE(is<Granted>(take(asked)));
  const RemoteClient cut{std::string(191, 'n'), std::string(47, 'a')};
  EXPECT_EQ(store_->client_of(store_->list({})->grants.at(0)), cut);

  std::vector<std::uint32_t> numbers;
  for (int i = 1; i < 4096; ++i) {
    const auto next = store_->enter_client({"host", std::to_string(i)});
    ASSERT_TRUE(next.ok()) << i;
    numbers.push_back(*next);
  }
  EXPECT_EQ(store_->enter_client({"one", "too many"}).error(), errno_code(ENOSPC));
  store_->leave_client(numbers.back());
  EXPECT_TRUE(store_->enter_client({"one", "fits"}).ok());
}

TEST_P(LockServiceContract, ReleaseInTheMiddleSplits) {
  ASSERT_TRUE(is<Granted>(take(request(1, 0, 40, kEx))));
  ASSERT_TRUE(store_->release({1, 100}, owner(1), *ByteRange::from_half_open(10, 20)).ok());
  EXPECT_EQ(count(), 2u);
  EXPECT_TRUE(is<Granted>(take(request(2, 10, 20, kEx))));
  EXPECT_TRUE(is<Conflict>(take(request(2, 9, 20, kEx))));
  EXPECT_TRUE(is<Conflict>(take(request(2, 10, 21, kEx))));
  expect_clean();
}

TEST_P(LockServiceContract, TouchingEqualGrantsMerge) {
  ASSERT_TRUE(is<Granted>(take(request(1, 0, 10, kEx))));
  ASSERT_TRUE(is<Granted>(take(request(1, 20, 30, kEx))));
  ASSERT_TRUE(is<Granted>(take(request(1, 10, 20, kEx))));
  const auto page = store_->list({});
  ASSERT_TRUE(page.ok());
  ASSERT_EQ(page->grants.size(), 1u);
  EXPECT_EQ(page->grants[0].range, *ByteRange::from_half_open(0, 30));
  expect_clean();
}

TEST_P(LockServiceContract, WaitersAreGrantedInOrderAndTogether) {
  ASSERT_TRUE(is<Granted>(take(request(1, 0, 10, kEx))));
  EXPECT_TRUE(is<Queued>(take(request(2, 0, 10, kSh), OnConflict::kQueue, 12)));
  EXPECT_TRUE(is<Queued>(take(request(3, 0, 10, kEx), OnConflict::kQueue, 13)));
  EXPECT_TRUE(is<Queued>(take(request(4, 0, 10, kSh), OnConflict::kQueue, 14)));
  ASSERT_TRUE(store_->release({1, 100}, owner(1), ByteRange{}).ok());
  EXPECT_EQ(sink_.order(), (std::vector<std::uint64_t>{12, 14}));
  ASSERT_TRUE(store_->release({1, 100}, owner(2), ByteRange{}).ok());
  EXPECT_FALSE(sink_.outcome(13));
  ASSERT_TRUE(store_->release({1, 100}, owner(4), ByteRange{}).ok());
  EXPECT_EQ(sink_.outcome(13), 0);
  expect_clean();
}

TEST_P(LockServiceContract, CancelledWaiterIsNeverTold) {
  ASSERT_TRUE(is<Granted>(take(request(1, 0, 10, kEx))));
  ASSERT_TRUE(is<Queued>(take(request(2, 0, 10, kEx), OnConflict::kQueue, 7)));
  EXPECT_EQ(store_->cancel({1, 100}, WaiterToken{7}), Cancelled::kCancelled);
  EXPECT_EQ(store_->cancel({1, 100}, WaiterToken{7}), Cancelled::kAlreadyOver);
  ASSERT_TRUE(store_->drop_owner({1, 100}, owner(1)).ok());
  EXPECT_FALSE(sink_.outcome(7));
  EXPECT_EQ(count(), 0u);
  expect_clean();
}

TEST_P(LockServiceContract, DeadlockOverTwoFilesForPosixOnly) {
  const FileId a{1, 1};
  const FileId b{1, 2};
  for (const auto kind : {LockKind::kPosix, LockKind::kOfd}) {
    const std::uint64_t base = kind == LockKind::kPosix ? 10 : 20;
    ASSERT_TRUE(is<Granted>(take(request(base + 1, 0, 1, kEx, kind, a))));
    ASSERT_TRUE(is<Granted>(take(request(base + 2, 0, 1, kEx, kind, b))));
    ASSERT_TRUE(is<Queued>(take(request(base + 1, 0, 1, kEx, kind, b), OnConflict::kQueue, base)));
    const auto closing = take(request(base + 2, 0, 1, kEx, kind, a), OnConflict::kQueue, base + 1);
    if (kind == LockKind::kPosix) {
      EXPECT_TRUE(is<Deadlock>(closing));
    } else {
      EXPECT_TRUE(is<Queued>(closing));
      EXPECT_EQ(store_->cancel(a, WaiterToken{base + 1}), Cancelled::kCancelled);
    }
    for (const FileId f : {a, b}) {
      for (const std::uint64_t o : {base + 1, base + 2}) {
        ASSERT_TRUE(store_->drop_owner(f, owner(o)).ok());
      }
    }
    EXPECT_EQ(sink_.outcome(base), 0);
    ASSERT_TRUE(store_->drop_owner(b, owner(base + 1)).ok());
  }
  EXPECT_EQ(count(), 0u);
  expect_clean();
}

TEST_P(LockServiceContract, DeadlockThatOpensWhenTheFirstBlockerGoes) {
  // 3 waits for 1, then (1 gone) for 2, which waits for 3: the kernel asks again, and so do we.
  const FileId a{1, 1};
  const FileId b{1, 2};
  ASSERT_TRUE(is<Granted>(take(request(1, 0, 10, kEx, LockKind::kPosix, a))));
  ASSERT_TRUE(is<Granted>(take(request(2, 20, 30, kEx, LockKind::kPosix, a))));
  ASSERT_TRUE(is<Granted>(take(request(3, 0, 1, kEx, LockKind::kPosix, b))));
  ASSERT_TRUE(
      is<Queued>(take(request(3, 0, 30, kEx, LockKind::kPosix, a), OnConflict::kQueue, 33)));
  ASSERT_TRUE(is<Queued>(take(request(2, 0, 1, kEx, LockKind::kPosix, b), OnConflict::kQueue, 22)));
  ASSERT_TRUE(store_->drop_owner(a, owner(1)).ok());
  EXPECT_EQ(sink_.outcome(33), EDEADLK);
  expect_clean();
}

TEST_P(LockServiceContract, UpgradeOfOneOfTwoReadersWaits) {
  ASSERT_TRUE(is<Granted>(take(request(1, 0, 10, kSh))));
  ASSERT_TRUE(is<Granted>(take(request(2, 0, 10, kSh))));
  ASSERT_TRUE(is<Queued>(take(request(1, 0, 10, kEx), OnConflict::kQueue, 1)));
  EXPECT_TRUE(is<Deadlock>(take(request(2, 0, 10, kEx), OnConflict::kQueue, 2)));
  ASSERT_TRUE(store_->release({1, 100}, owner(2), ByteRange{}).ok());
  EXPECT_EQ(sink_.outcome(1), 0);
  expect_clean();
}

TEST_P(LockServiceContract, FlockConversionLosesTheOldLockWhenRefused) {
  const auto fl = LockKind::kFlock;
  ASSERT_TRUE(is<Granted>(take(request(1, 0, ByteRange::kEof, kSh, fl))));
  ASSERT_TRUE(is<Granted>(take(request(2, 0, ByteRange::kEof, kSh, fl))));
  EXPECT_TRUE(is<Conflict>(take(request(1, 0, ByteRange::kEof, kEx, fl))));
  EXPECT_EQ(count(), 1u);  // flock(2): the original lock is lost
  EXPECT_TRUE(is<Granted>(take(request(2, 0, ByteRange::kEof, kEx, fl))));
  EXPECT_TRUE(is<Granted>(take(request(9, 0, ByteRange::kEof, kEx))));  // not in flock's way
  expect_clean();
}

TEST_P(LockServiceContract, BreakTakesAPieceFencesAndGrantsWaiters) {
  ASSERT_TRUE(is<Granted>(take(request(1, 0, 100, kEx))));
  ASSERT_TRUE(is<Queued>(take(request(2, 40, 50, kEx), OnConflict::kQueue, 2)));
  const auto broken =
      store_->break_range({1, 100}, owner(1), *ByteRange::from_half_open(40, 60), true);
  ASSERT_TRUE(broken.ok());
  EXPECT_EQ(broken->count, 1u);
  ASSERT_EQ(broken->grants.size(), 1u);
  EXPECT_EQ(broken->grants[0].range, *ByteRange::from_half_open(40, 60));
  EXPECT_EQ(sink_.outcome(2), 0);
  EXPECT_EQ(count(), 3u);

  LockService::OpRequest write;
  write.file = {1, 100};
  write.op = owner(77, OwnerSpace::kOp);
  write.owner = owner(1);
  write.range = *ByteRange::from_half_open(0, 10);
  write.kind = LockKind::kWriteOp;
  auto started = store_->begin_op(write, OnConflict::kRefuse, {});
  ASSERT_TRUE(started.ok());
  EXPECT_TRUE(std::holds_alternative<Granted>(*started)) << "through what never carried the lock";
  store_->end_op({1, 100}, write.op);
  write.carried = true;
  const auto fenced = [&] {
    const auto again = store_->begin_op(write, OnConflict::kRefuse, {});
    return again.ok() && std::holds_alternative<Fenced>(*again);
  };
  EXPECT_TRUE(fenced());
  ASSERT_TRUE(store_->drop_owner({1, 100}, owner(1)).ok());  // some descriptor was closed
  EXPECT_TRUE(fenced());
  // A lock taken anew lifts the fence.
  ASSERT_TRUE(is<Granted>(take(request(1, 0, 10, kEx))));
  started = store_->begin_op(write, OnConflict::kRefuse, {});
  ASSERT_TRUE(started.ok());
  EXPECT_TRUE(std::holds_alternative<Granted>(*started));
  store_->end_op({1, 100}, write.op);
  expect_clean();
}

TEST_P(LockServiceContract, OperationsHoldLocksBackAndNotEachOther) {
  LockService::OpRequest write;
  write.file = {1, 100};
  write.op = owner(70, OwnerSpace::kOp);
  write.owner = owner(1);
  write.range = *ByteRange::from_half_open(0, 10);
  write.kind = LockKind::kWriteOp;
  ASSERT_TRUE(store_->begin_op(write, OnConflict::kRefuse, {}).ok());
  auto second = write;
  second.op = owner(71, OwnerSpace::kOp);
  second.owner = owner(2);
  const auto also = store_->begin_op(second, OnConflict::kRefuse, {});
  ASSERT_TRUE(also.ok());
  EXPECT_TRUE(std::holds_alternative<Granted>(*also));

  // The write's own process is not held back by its own write, but by the other's.
  EXPECT_TRUE(is<Queued>(take(request(1, 0, 10, kEx), OnConflict::kSettle, 5)));
  store_->end_op(write.file, write.op);
  EXPECT_FALSE(sink_.outcome(5));
  store_->end_op(write.file, second.op);
  EXPECT_EQ(sink_.outcome(5), 0);

  const auto blocked = store_->begin_op(second, OnConflict::kRefuse, {});
  ASSERT_TRUE(blocked.ok());
  EXPECT_TRUE(std::holds_alternative<Conflict>(*blocked));
  const auto own = store_->begin_op(write, OnConflict::kRefuse, {});
  ASSERT_TRUE(own.ok());
  EXPECT_TRUE(std::holds_alternative<Granted>(*own));
  store_->end_op(write.file, write.op);
  expect_clean();
}

TEST_P(LockServiceContract, SettleWaitsForAClosingDescriptionOnly) {
  ASSERT_TRUE(is<Granted>(take(request(1, 0, 10, kEx, LockKind::kOfd))));
  EXPECT_TRUE(is<Conflict>(take(request(2, 0, 10, kEx, LockKind::kOfd), OnConflict::kSettle, 1)));
  bool waits = false;
  // (After kClosingWindowNs it would be a conflict.)
  for (int i = 0; i < 10 && !waits; ++i) {
    store_->note_closing({1, 100}, owner(1));
    waits = is<Queued>(take(request(2, 0, 10, kEx, LockKind::kOfd), OnConflict::kSettle, 2));
  }
  ASSERT_TRUE(waits);
  ASSERT_TRUE(store_->drop_owner({1, 100}, owner(1)).ok());
  EXPECT_EQ(sink_.outcome(2), 0);
  expect_clean();
}

TEST_P(LockServiceContract, PagesNeitherSkipNorRepeatWhatStays) {
  for (std::uint64_t f = 0; f < 50; ++f) {
    for (std::uint64_t i = 0; i < 20; ++i) {
      ASSERT_TRUE(is<Granted>(
          take(request(1 + i % 3, i * 10, i * 10 + 5, kEx, LockKind::kPosix, {1, f + 1}))));
    }
  }
  std::map<std::string, int> seen;
  ListQuery query;
  query.limit = 7;
  std::uint64_t round = 0;
  for (;;) {
    const auto page = store_->list(query);
    ASSERT_TRUE(page.ok());
    EXPECT_LE(page->grants.size(), 7u);
    for (const Grant& g : page->grants) {
      ++seen[std::to_string(g.file.ino) + ":" + std::to_string(g.range.begin())];
    }
    if (!page->next) break;
    const auto text = to_string(*page->next);
    const auto back = parse_list_cursor(text);
    ASSERT_TRUE(back.ok()) << text;
    query.after = *back;
    // Changes in between: one comes and goes on each file.
    const FileId file{1, round++ % 50 + 1};
    ASSERT_TRUE(is<Granted>(take(request(9, 1000, 1001, kEx, LockKind::kPosix, file))));
    ASSERT_TRUE(store_->drop_owner(file, owner(9)).ok());
  }
  for (std::uint64_t f = 0; f < 50; ++f) {
    for (std::uint64_t i = 0; i < 20; ++i) {
      EXPECT_EQ(seen[std::to_string(f + 1) + ":" + std::to_string(i * 10)], 1);
    }
  }
}

TEST_P(LockServiceContract, TenThousandWaitersAreGrantedInOrder) {
  ASSERT_TRUE(is<Granted>(take(request(1, 0, 10, kEx))));
  for (std::uint64_t i = 2; i < 10'002; ++i) {
    ASSERT_TRUE(is<Queued>(take(request(i, 0, 10, kEx), OnConflict::kQueue, i)));
  }
  for (std::uint64_t i = 1; i < 10'002; ++i) {
    ASSERT_TRUE(store_->release({1, 100}, owner(i), ByteRange{}).ok());
  }
  const auto order = sink_.order();
  ASSERT_EQ(order.size(), 10'000u);
  for (std::uint64_t i = 0; i < order.size(); ++i) ASSERT_EQ(order[i], i + 2);
  expect_clean();
}

TEST_P(LockServiceContract, ManyReadersAreGrantedInOneGo) {
  ASSERT_TRUE(is<Granted>(take(request(1, 0, 10, kEx))));
  for (std::uint64_t i = 2; i < 3002; ++i) {
    ASSERT_TRUE(is<Queued>(take(request(i, 0, 10, kSh), OnConflict::kQueue, i)));
  }
  ASSERT_TRUE(store_->release({1, 100}, owner(1), ByteRange{}).ok());
  EXPECT_EQ(sink_.order().size(), 3000u);
  EXPECT_EQ(count(), 3000u);
  expect_clean();
}

TEST_P(LockServiceContract, ACycleOfAThousandOwnersIsFound) {
  constexpr std::uint64_t kOwners = 1000;
  ASSERT_NO_FATAL_FAILURE(make_chain(kOwners));
  EXPECT_TRUE(is<Deadlock>(ask(kOwners, 1)));
  EXPECT_TRUE(is<Queued>(ask(kOwners + 1, 1))) << "waits for the cycle, is not in it";
  // Each gets what it waited for once the one it waited for has gone.
  for (std::uint64_t i = kOwners; i > 1; --i) {
    ASSERT_TRUE(store_->drop_owner(file(i), owner(i)).ok());
    ASSERT_EQ(sink_.outcome(i - 1), 0);
    ASSERT_TRUE(store_->drop_owner(file(i), owner(i - 1)).ok());
  }
  expect_clean();
}

// Docs/table.md: such a search ends before it is through. The request waits, as in the kernel.
TEST_P(LockServiceContract, AChainOfTenThousandOwnersIsNoDeadlock) {
  constexpr std::uint64_t kOwners = 10'000;
  ASSERT_NO_FATAL_FAILURE(make_chain(kOwners));
  EXPECT_TRUE(is<Queued>(ask(kOwners + 1, 1)));
  for (std::uint64_t i = kOwners; i > 1; --i) {
    ASSERT_TRUE(store_->drop_owner(file(i), owner(i)).ok());
    ASSERT_TRUE(store_->drop_owner(file(i), owner(i - 1)).ok());
  }
  EXPECT_EQ(sink_.order().size(), kOwners - 1);
  expect_clean();
}

// All of them wait for the other reader now, which is noted of each: more than one step may change.
TEST_P(LockServiceContract, AReaderGoesAndTenThousandWritersWaitForTheOther) {
  ASSERT_TRUE(is<Granted>(take(request(1, 0, 10, kSh))));
  ASSERT_TRUE(is<Granted>(take(request(2, 0, 10, kSh))));
  for (std::uint64_t i = 3; i < 10'003; ++i) {
    ASSERT_TRUE(is<Queued>(take(request(i, 0, 10, kEx), OnConflict::kQueue, i)));
  }
  ASSERT_TRUE(store_->release({1, 100}, owner(1), ByteRange{}).ok());
  EXPECT_EQ(count(), 1u);
  EXPECT_TRUE(sink_.order().empty());
  for (std::uint64_t i = 2; i < 10'003; ++i) {
    ASSERT_TRUE(store_->release({1, 100}, owner(i), ByteRange{}).ok());
  }
  EXPECT_EQ(sink_.order().size(), 10'000u);
  expect_clean();
}

// Likewise when all that waited for a description to close hear that it does not.
TEST_P(LockServiceContract, ThreeThousandThatWaitedForAMomentAreRefusedInOneGo) {
  ASSERT_TRUE(is<Granted>(take(request(1, 0, 10, kEx, LockKind::kOfd))));
  store_->note_closing({1, 100}, owner(1));
  std::uint64_t waiting = 0;
  for (std::uint64_t i = 2; i < 3002; ++i) {
    const auto got = take(request(i, 0, 10, kEx, LockKind::kOfd), OnConflict::kSettle, i);
    waiting += is<Queued>(got) ? 1 : 0;  // kClosingWindowNs may end meanwhile
  }
  ASSERT_TRUE(is<Granted>(take(request(1, 0, 10, kSh, LockKind::kOfd))));
  EXPECT_EQ(sink_.order().size(), waiting);
  expect_clean();
}

TEST_P(LockServiceContract, OneOwnersManyGrantsGoInOneUnlock) {
  for (std::uint64_t i = 0; i < 20'000; ++i) {
    ASSERT_TRUE(is<Granted>(take(request(1, i * 2, i * 2 + 1, kEx))));
  }
  EXPECT_EQ(count(), 20'000u);
  ASSERT_TRUE(is<Granted>(take(request(1, 100, 30'000, kSh))));
  expect_clean();
  ASSERT_TRUE(store_->release({1, 100}, owner(1), ByteRange{}).ok());
  EXPECT_EQ(count(), 0u);
  const auto stats = store_->stats();
  ASSERT_TRUE(stats.ok());
  EXPECT_EQ(stats->files, 0u);
  EXPECT_EQ(stats->owners, 0u);
  expect_clean();
}

TEST_P(LockServiceContract, ThreadsHandOneLockRound) {
  constexpr int kThreads = 8;
  constexpr int kRounds = 300;
  int inside = 0;  // guarded by the lock under test
  std::atomic<bool> overlap{false};
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      const auto key = static_cast<std::uint64_t>(t) + 1;
      for (int i = 0; i < kRounds; ++i) {
        const std::uint64_t token = key * 1'000'000 + static_cast<std::uint64_t>(i);
        const auto got = take(request(key, 0, 10, kEx), OnConflict::kQueue, token);
        if (!got.ok() || std::holds_alternative<Deadlock>(*got)) overlap = true;
        if (got.ok() && std::holds_alternative<Queued>(*got) && sink_.await(token) != 0) {
          overlap = true;
        }
        if (++inside != 1) overlap = true;
        --inside;
        if (!store_->release({1, 100}, owner(key), ByteRange{})) overlap = true;
      }
    });
  }
  for (auto& t : threads) t.join();
  EXPECT_FALSE(overlap.load());
  EXPECT_EQ(count(), 0u);
  expect_clean();
}

INSTANTIATE_TEST_SUITE_P(Stores, LockServiceContract, ::testing::Values("memory", "shm"),
                         [](const auto& store) { return std::string{store.param}; });

}  // namespace
}  // namespace latchfs::test
