// An operation that takes no mutex, and a lock that must not be granted while it runs: each order
// of the two, by holding their processes at fault points; and what is left when one dies there.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <thread>

#include "base/log.h"
#include "crash/ops_actor.h"
#include "crash/step_mount.h"
#include "support/store_fixture.h"

namespace latchfs::test {
namespace {

using shm::FileFilter;
using shm::OpState;
using shm::Region;

class ShmOps : public ::testing::Test {
 protected:
  // All is over: nothing may be left of it. Nobody has a mutex, so every bit is as its count says.
  std::string left() {
    for (std::uint32_t i = 0; i < shm::kShardCount; ++i) {
      const FileFilter& filter = watch_->shard(i).filter;
      for (std::uint32_t cell = 0; cell < FileFilter::kCells; ++cell) {
        if (filter.nothing_in(cell) != (filter.counts[cell] == 0)) return "a bit is not its count";
        if (filter.counts[cell] != 0) return "a file is counted";
      }
      if (watch_->shard(i).root.file_count != 0) return "a file has a record";
    }
    return watch_->operations().files().empty() ? "" : "an operation is in flight";
  }
  void SetUp() override {
    writer_.emplace(table_);
    locker_.emplace(table_);
    other_.emplace(table_);
    const auto registry = shm::Registry::open(table_);
    ASSERT_TRUE(registry.ok());
    auto region = Region::open(registry->region_name());
    ASSERT_TRUE(region.ok());
    watch_ = std::move(*region);
    // The shard has its memory: what happens at a fault point does not happen while it grows.
    EXPECT_EQ(other_->ask("lock"), "granted");
    EXPECT_EQ(other_->ask("unlock"), "released");
  }
  // Each has said that it is there.
  void hold_both_before_they_look() {
    writer_->ask("arm " + gate_.at("shm.op_published"));
    writer_->tell("begin");
    ASSERT_TRUE(gate_.reached());
    locker_->ask("arm " + second_.at("shm.file_appeared"));
    locker_->tell("lock");
    ASSERT_TRUE(second_.reached());
  }
  void TearDown() override {
    EXPECT_EQ(writer_->ask("verify"), "ok");
    EXPECT_EQ(left(), "");
  }

  std::string table_{unique_table()};
  std::optional<Actor> writer_, locker_, other_;
  std::unique_ptr<Region> watch_;
  Gate gate_, second_;
};

// The operation is held: nobody gets the lock until it has ended.
void lock_waits_for(Actor& writer, Gate& gate, Actor& locker, Actor& other,
                    const std::string& begun) {
  EXPECT_EQ(locker.ask("lock"), "conflict");
  EXPECT_EQ(other.ask("list"), "1");
  EXPECT_EQ(other.ask("verify"), "ok");
  gate.open();
  EXPECT_EQ(writer.answer(), begun);
  EXPECT_EQ(locker.ask("wait"), "queued");
  EXPECT_EQ(other.ask("lock"), "conflict");
  EXPECT_EQ(writer.ask("end"), "ended");
  EXPECT_EQ(locker.ask("got"), "granted");
  EXPECT_EQ(writer.ask("begin"), "conflict");
  EXPECT_EQ(locker.ask("unlock"), "released");
  EXPECT_EQ(other.ask("list"), "0");
  EXPECT_EQ(writer.ask("begin"), "granted");
  EXPECT_EQ(writer.ask("end"), "ended");
}

TEST_F(ShmOps, SaidThatItIsThereAndHasNotLooked) {
  writer_->ask("arm " + gate_.at("shm.op_published"));
  writer_->tell("begin");
  ASSERT_TRUE(gate_.reached());
  lock_waits_for(*writer_, gate_, *locker_, *other_, "granted");
}

TEST_F(ShmOps, LookedAndGoesAhead) {
  writer_->ask("arm " + gate_.at("shm.op_looked"));
  writer_->tell("begin");
  ASSERT_TRUE(gate_.reached());
  lock_waits_for(*writer_, gate_, *locker_, *other_, "granted");
}

TEST_F(ShmOps, RunsOutsideOfTheTable) {
  ASSERT_EQ(writer_->ask("begin"), "granted");
  EXPECT_EQ(watch_->operations().files().size(), 1u);
  EXPECT_EQ(watch_->shard(shm::shard_of({1, 100})).root.file_count, 0u);
  EXPECT_EQ(writer_->ask("end"), "ended");
  EXPECT_EQ(watch_->operations().files().size(), 0u);
  ASSERT_EQ(writer_->ask("begin"), "granted");
  EXPECT_EQ(other_->ask("list"), "1") << "a listing shows it";
  EXPECT_EQ(watch_->shard(shm::shard_of({1, 100})).root.file_count, 1u);
  EXPECT_EQ(locker_->ask("lock"), "conflict");
  EXPECT_EQ(writer_->ask("end"), "ended");
  EXPECT_EQ(other_->ask("list"), "0");
}

// The record is there, the operations have not been looked for; one comes and sees the record.
TEST_F(ShmOps, SeesTheRecordBeforeItsMakerLooks) {
  locker_->ask("arm " + gate_.at("shm.file_appeared"));
  locker_->tell("lock");
  ASSERT_TRUE(gate_.reached());
  // (begin() looks before it says anything, too: no slot is used.)
  writer_->tell("begin");
  gate_.open();
  const std::string lock = locker_->answer();
  const std::string begun = writer_->answer();
  EXPECT_EQ(lock, "granted");
  EXPECT_EQ(begun, "conflict");
  EXPECT_EQ(locker_->ask("unlock"), "released");
}

// It said that it is there before the record came, looks after, and is taken in before it
// withdraws.
TEST_F(ShmOps, IsTakenInOrWithdraws) {
  ASSERT_NO_FATAL_FAILURE(hold_both_before_they_look());
  gate_.open();
  // Now it withdraws, or is taken in first; whichever it is, both know.
  second_.open();
  const std::string lock = locker_->answer();
  if (lock == "granted") {
    EXPECT_EQ(writer_->answer(), "conflict");
    EXPECT_EQ(locker_->ask("unlock"), "released");
  } else {
    EXPECT_EQ(lock, "conflict");
    EXPECT_EQ(writer_->answer(), "granted");
    EXPECT_EQ(writer_->ask("end"), "ended");
  }
}

TEST_F(ShmOps, SawTheRecordAndIsTakenInBeforeItWithdraws) {
  writer_->ask("arm " + gate_.at("shm.op_published") + ";" + second_.at("shm.op_looked"));
  writer_->tell("begin");
  ASSERT_TRUE(gate_.reached());
  Gate third;
  locker_->ask("arm " + third.at("shm.file_appeared"));
  locker_->tell("lock");
  ASSERT_TRUE(third.reached());
  gate_.open();
  ASSERT_TRUE(second_.reached());  // it has seen the record
  third.open();
  EXPECT_EQ(locker_->answer(), "conflict");
  second_.open();
  EXPECT_EQ(writer_->answer(), "granted") << "taken in before anything was granted";
  EXPECT_EQ(locker_->ask("lock"), "conflict");
  EXPECT_EQ(writer_->ask("end"), "ended");
  EXPECT_EQ(locker_->ask("lock"), "granted");
  EXPECT_EQ(locker_->ask("unlock"), "released");
}

TEST_F(ShmOps, SawTheRecordAndWithdrawsBeforeItsMakerLooks) {
  ASSERT_NO_FATAL_FAILURE(hold_both_before_they_look());
  gate_.open();
  // It withdraws and waits for the mutex, which the one that is held has.
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::minutes{1};
  while (!watch_->operations().files().empty()) {
    ASSERT_LT(std::chrono::steady_clock::now(), deadline);
    std::this_thread::yield();
  }
  second_.open();
  EXPECT_EQ(locker_->answer(), "granted");
  EXPECT_EQ(writer_->answer(), "conflict");
  EXPECT_EQ(locker_->ask("unlock"), "released");
}

TEST_F(ShmOps, ComesWhenTheOthersWereLookedFor) {
  locker_->ask("arm " + gate_.at("shm.ops_taken_in"));
  locker_->tell("lock");
  ASSERT_TRUE(gate_.reached());
  writer_->tell("begin");
  gate_.open();
  EXPECT_EQ(locker_->answer(), "granted");
  EXPECT_EQ(writer_->answer(), "conflict");
  EXPECT_EQ(locker_->ask("unlock"), "released");
}

// The record of the last lock is gone, but that is not committed: a death would bring it back.
TEST_F(ShmOps, DoesNotTrustAnUnlockThatIsNotCommitted) {
  ASSERT_EQ(locker_->ask("lock"), "granted");
  ASSERT_EQ(locker_->ask("arm " + second_.at("shm.commit")), "armed");
  locker_->tell("unlock");
  ASSERT_TRUE(second_.reached());
  const auto& filter = watch_->shard(shm::shard_of({1, 100})).filter;
  EXPECT_FALSE(filter.nothing_in(FileFilter::cell_of({1, 100})));
  writer_->tell("begin");
  second_.open();
  EXPECT_EQ(locker_->answer(), "released");
  EXPECT_EQ(writer_->answer(), "granted");
  EXPECT_EQ(writer_->ask("end"), "ended");
}

// A lock is held when it says that it is there; before it looks somebody lists.
TEST_F(ShmOps, NobodyTakesInWhatHasYetToLook) {
  writer_->ask("arm " + gate_.at("shm.op_begins") + ";" + second_.at("shm.op_published"));
  writer_->tell("begin");
  ASSERT_TRUE(gate_.reached());
  EXPECT_EQ(locker_->ask("lock"), "granted");
  gate_.open();
  ASSERT_TRUE(second_.reached());
  EXPECT_EQ(other_->ask("list"), "0");
  EXPECT_EQ(other_->ask("lock"), "conflict");
  EXPECT_EQ(other_->ask("verify"), "ok");
  second_.open();
  EXPECT_EQ(writer_->answer(), "conflict");
  EXPECT_EQ(locker_->ask("unlock"), "released");
}

// After a shard was made anew: what was in the table before, and its slot says so.
TEST_F(ShmOps, ComeBackWhenTheirEntryWasLost) {
  TellTale told;
  const auto mount = join_quietly(table_, told);
  ASSERT_NE(mount, nullptr);
  LockService::OpRequest op;
  op.file = {1, 100};
  op.op = {mount->mount_id(), 7, OwnerSpace::kOp};
  op.range = *ByteRange::from_half_open(0, 1);
  op.kind = LockKind::kWriteOp;
  ASSERT_TRUE(mount->begin_op(op, OnConflict::kRefuse, {}).ok());
  LockRequest beside;
  beside.file = op.file;
  beside.owner = {mount->mount_id(), 8, OwnerSpace::kRange};
  beside.range = *ByteRange::from_half_open(1, 2);
  ASSERT_TRUE(mount->acquire(beside, OnConflict::kRefuse, {}).ok());
  EXPECT_EQ(other_->ask("list"), "1");
  ASSERT_TRUE(mount->drop_owner(op.file, op.op).ok());  // (not by end_op(): the slot stays)
  EXPECT_EQ(other_->ask("list"), "0");
  const std::uint32_t shard = shm::shard_of(op.file);
  mount->backend().empty(shard, "as by damage", mount->backend().losses(shard));
  EXPECT_EQ(other_->ask("list"), "1");
  mount->end_op(op.file, op.op);
  EXPECT_EQ(other_->ask("list"), "0");
  mount->reap_mount(mount->mount_id());
}

// More than fit into one step, and than the shard has memory for.
TEST_F(ShmOps, VeryManyAreTakenIn) {
  Actor more{table_};
  for (Actor* one : {&*writer_, &*other_, &more}) ASSERT_EQ(one->ask("begin 64"), "granted");
  EXPECT_EQ(locker_->ask("lock"), "conflict");
  EXPECT_EQ(locker_->ask("list"), "192");
  EXPECT_EQ(locker_->ask("verify"), "ok");
  EXPECT_EQ(locker_->ask("wait"), "queued");
  for (Actor* one : {&*writer_, &*other_, &more}) EXPECT_EQ(one->ask("end"), "ended");
  EXPECT_EQ(locker_->ask("got"), "granted");
  EXPECT_EQ(locker_->ask("unlock"), "released");
}

// Who takes them in dies half-way: the rest is not forgotten.
TEST_F(ShmOps, WhoTakesManyInDies) {
  ASSERT_EQ(writer_->ask("begin 30"), "granted");
  locker_->ask("arm shm.committed=kill@1");
  EXPECT_EQ(locker_->ask("lock"), "dead");
  locker_->kill();
  EXPECT_EQ(other_->ask("lock"), "conflict");
  EXPECT_EQ(other_->ask("list"), "30");
  EXPECT_EQ(writer_->ask("end"), "ended");
  EXPECT_EQ(other_->ask("lock"), "granted");
  EXPECT_EQ(other_->ask("unlock"), "released");
}

// What these tests are worth: code that looks first and speaks then is found by them.
TEST_F(ShmOps, TheWrongOrderIsFound) {
  writer_->ask("arm " + gate_.at("test.unsound"));
  writer_->tell("begin_unsound");
  ASSERT_TRUE(gate_.reached());
  const std::string lock = locker_->ask("lock");
  gate_.open();
  const std::string begun = writer_->answer();
  EXPECT_TRUE(lock == "granted" && begun == "granted") << "the wrong order does no harm?";
  writer_->ask("end");
  EXPECT_EQ(locker_->ask("unlock"), "released");
}

class ShmOpsDeath : public ShmOps, public ::testing::WithParamInterface<const char*> {};

// Who took the operation in dies: its step is undone, the operation goes on, and nobody gets the
// lock until it has ended.
TEST_P(ShmOpsDeath, OfTheLockerLeavesTheOperation) {
  ASSERT_EQ(writer_->ask("begin"), "granted");
  locker_->ask("arm " + std::string{GetParam()} + "=kill@1");
  EXPECT_EQ(locker_->ask("lock"), "dead");
  locker_->kill();
  EXPECT_EQ(other_->ask("lock"), "conflict");
  EXPECT_EQ(other_->ask("verify"), "ok");
  EXPECT_EQ(other_->ask("wait"), "queued");
  EXPECT_EQ(other_->ask("list"), "1");
  EXPECT_EQ(writer_->ask("end"), "ended");
  EXPECT_EQ(other_->ask("got"), "granted");
  EXPECT_EQ(writer_->ask("begin"), "conflict");
  EXPECT_EQ(other_->ask("unlock"), "released");
}

// The same, but it ends before anybody has asked again.
TEST_P(ShmOpsDeath, OfTheLockerAndTheOperationEnds) {
  ASSERT_EQ(writer_->ask("begin"), "granted");
  locker_->ask("arm " + std::string{GetParam()} + "=kill@1");
  EXPECT_EQ(locker_->ask("lock"), "dead");
  locker_->kill();
  EXPECT_EQ(writer_->ask("end"), "ended");
  EXPECT_EQ(other_->ask("lock"), "granted");
  EXPECT_EQ(other_->ask("unlock"), "released");
}

INSTANTIATE_TEST_SUITE_P(At, ShmOpsDeath,
                         ::testing::Values("shm.file_appeared", "shm.ops_taken_in", "shm.store",
                                           "shm.commit", "shm.committed"),
                         [](const auto& at) { return std::string{at.param}.substr(4); });

// The bit that its step set goes when the step is undone.
TEST_F(ShmOps, ABitOfAnUndoneStepGoes) {
  locker_->ask("arm shm.file_appeared=kill@1");
  EXPECT_EQ(locker_->ask("lock"), "dead");
  locker_->kill();
  EXPECT_EQ(other_->ask("verify"), "ok");
  EXPECT_EQ(left(), "");
  EXPECT_EQ(writer_->ask("begin"), "granted");
  EXPECT_EQ(watch_->shard(shm::shard_of({1, 100})).root.file_count, 0u);
  EXPECT_EQ(writer_->ask("end"), "ended");
}

class ShmOpsWriterDeath : public ShmOps, public ::testing::WithParamInterface<const char*> {};

// The operation's own process dies: what it said goes with it.
TEST_P(ShmOpsWriterDeath, LeavesNothing) {
  Actor doomed{table_};
  doomed.ask("arm " + gate_.at(GetParam()));
  doomed.tell("begin");
  ASSERT_TRUE(gate_.reached());
  EXPECT_EQ(locker_->ask("wait"), "queued") << "it may be writing";
  doomed.kill();
  EXPECT_EQ(locker_->ask("got"), "granted");
  EXPECT_EQ(locker_->ask("unlock"), "released");
}

// Nobody has asked for a lock when it dies.
TEST_P(ShmOpsWriterDeath, UnseenLeavesNothing) {
  {
    Actor doomed{table_};
    doomed.ask("arm " + gate_.at(GetParam()));
    doomed.tell("begin");
    ASSERT_TRUE(gate_.reached());
    doomed.kill();
  }
  EXPECT_EQ(locker_->ask("wait") == "queued" ? locker_->ask("got") : "granted", "granted");
  EXPECT_EQ(locker_->ask("unlock"), "released");
  // Whoever joins in its place finds the slots free.
  Actor next{table_};
  EXPECT_EQ(next.ask("begin"), "granted");
  EXPECT_EQ(next.ask("end"), "ended");
}

INSTANTIATE_TEST_SUITE_P(At, ShmOpsWriterDeath,
                         ::testing::Values("shm.op_published", "shm.op_looked"),
                         [](const auto& at) { return std::string{at.param}.substr(4); });

}  // namespace
}  // namespace latchfs::test

int main(int argc, char** argv) {
  if (argc == 3 && std::strcmp(argv[1], "--actor") == 0) return latchfs::test::run_actor(argv[2]);
  if (!latchfs::log::open("stderr", latchfs::log::Level::kError)) return 1;
  ::testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
