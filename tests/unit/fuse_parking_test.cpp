// Parked requests: whatever the order of grant, interrupt and the parking itself, exactly one
// outcome. Threads are held at fault points, not put to sleep.
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <fstream>
#include <future>
#include <thread>

#include "base/fault_point.h"
#include "fuse/lock_call.h"
#include "fuse/parking_lot.h"
#include "store/memory/memory_store.h"

namespace latchfs::fuse {
namespace {

constexpr FileId kFile{1, 1};

class Parking : public ::testing::Test {
 protected:
  void SetUp() override {
    store_ = make_memory_store(lot_);
    lot_.serve(*store_);
    ASSERT_TRUE(take(1, OnConflict::kRefuse, {}).ok());
  }
  void TearDown() override { arm_faults(""); }

  Result<Acquired> take(std::uint64_t key, OnConflict on, WaiterToken token) {
    LockRequest r;
    r.file = kFile;
    r.owner = {store_->mount_id(), key, OwnerSpace::kRange};
    r.mode = LockMode::kExclusive;
    r.kind = LockKind::kPosix;
    return store_->acquire(r, on, token);
  }
  // Opens, queues behind owner 1; not parked yet.
  WaiterToken queue(std::uint64_t key) {
    const WaiterToken token = lot_.open(kFile, [this](int err) {
      ++told_;
      last_ = err;
    });
    const auto got = take(key, OnConflict::kQueue, token);
    EXPECT_TRUE(got.ok() && std::holds_alternative<Queued>(*got));
    return token;
  }
  void unlock() {
    ASSERT_TRUE(
        store_->release(kFile, {store_->mount_id(), 1, OwnerSpace::kRange}, ByteRange{}).ok());
  }

  ParkingLot lot_;
  std::unique_ptr<LockService> store_;
  std::atomic<int> told_{0};
  std::atomic<int> last_{-1};
};

TEST_F(Parking, GrantBeforeParkingIsToldWhenParked) {
  const auto token = queue(2);
  unlock();
  EXPECT_EQ(told_, 0);
  lot_.park(token);
  EXPECT_EQ(told_, 1);
  EXPECT_EQ(last_, 0);
}

TEST_F(Parking, InterruptBeforeParkingCancelsWhenParked) {
  const auto token = queue(2);
  ParkingLot::interrupt_any(token, EINTR);
  EXPECT_EQ(told_, 0);
  lot_.park(token);
  EXPECT_EQ(told_, 1);
  EXPECT_EQ(last_, EINTR);
  unlock();
  EXPECT_EQ(told_, 1);
  EXPECT_EQ(lot_.size(), 0u);
}

TEST_F(Parking, GrantWinsOverALaterInterrupt) {
  const auto token = queue(2);
  lot_.park(token);
  unlock();
  lot_.interrupt(token, EINTR);
  EXPECT_EQ(told_, 1);
  EXPECT_EQ(last_, 0);
}

// The canceller is held between its decision and the store: the grant comes first.
TEST_F(Parking, GrantWhileACancelIsUnderWay) {
  const auto token = queue(2);
  lot_.park(token);
  const std::string gate = ::testing::TempDir() + "latchfs-gate-" + std::to_string(::getpid());
  std::ofstream{gate}.put('x');
  arm_faults(("park.cancel=hold:" + gate).c_str());
  std::thread canceller{[&] { lot_.interrupt(token, EINTR); }};
  unlock();  // whichever comes first, here the grant: the canceller cannot pass the gate
  EXPECT_EQ(told_, 1);
  EXPECT_EQ(last_, 0);
  ::unlink(gate.c_str());
  canceller.join();
  EXPECT_EQ(told_, 1);
}

// The parker is held before parking, while grant and interrupt both come.
TEST_F(Parking, GrantAndInterruptWhileParkingIsUnderWay) {
  const auto token = queue(2);
  const std::string gate = ::testing::TempDir() + "latchfs-gate2-" + std::to_string(::getpid());
  std::ofstream{gate}.put('x');
  arm_faults(("park.before=hold:" + gate).c_str());
  std::thread parker{[&] { lot_.park(token); }};
  lot_.interrupt(token, EINTR);
  unlock();
  EXPECT_EQ(told_, 0);
  ::unlink(gate.c_str());
  parker.join();
  EXPECT_EQ(told_, 1);
  EXPECT_EQ(last_, 0) << "a lock that was granted must not be answered EINTR: it would leak";
}

TEST_F(Parking, DrainEndsEveryWait) {
  for (std::uint64_t key = 2; key < 50; ++key) lot_.park(queue(key));
  lot_.drain(EINTR);
  EXPECT_EQ(told_, 48);
  EXPECT_EQ(lot_.size(), 0u);
}

TEST_F(Parking, RandomRacesEndExactlyOnce) {
  for (int round = 0; round < 500; ++round) {
    const auto token = queue(2);
    told_ = 0;
    std::thread a{[&] { lot_.park(token); }};
    std::thread b{[&] { unlock(); }};
    std::thread c{[&] { ParkingLot::interrupt_any(token, EINTR); }};
    a.join();
    b.join();
    c.join();
    ASSERT_EQ(told_, 1);
    // Whatever was answered is true.
    const auto page = store_->list({});
    ASSERT_TRUE(page.ok());
    ASSERT_EQ(page->grants.size(), last_ == 0 ? 1u : 0u);
    ASSERT_TRUE(store_->drop_owner(kFile, {store_->mount_id(), 2, OwnerSpace::kRange}).ok());
    ASSERT_TRUE(take(1, OnConflict::kRefuse, {}).ok());
  }
}

TEST(LockCall, ReadsTheSystemCall) {
  EXPECT_EQ(lock_call_from("72 0x3 0x7 0x7ffe 0x0 0x0 0x0 0x7ffe 0x7f"), LockKind::kPosix);
  EXPECT_EQ(lock_call_from("72 0x3 0x6 0x7ffe 0x0 0x0 0x0 0x7ffe 0x7f"), LockKind::kPosix);
  EXPECT_EQ(lock_call_from("72 0x3 0x26 0x7ffe 0x0 0x0 0x0 0x7ffe 0x7f"), LockKind::kOfd);
  EXPECT_EQ(lock_call_from("72 0x3 0x25 0x7ffe 0x0 0x0 0x0 0x7ffe 0x7f"), LockKind::kOfd);
  EXPECT_EQ(lock_call_from("221 0x3 0xe 0xffe 0x0 0x0 0x0 0xffe 0x7f"), LockKind::kPosix);
  for (const char* other : {"", "running\n", "-1 0x7ffe 0x7f", "72", "72 0x3", "73 0x3 0x6",
                            "0 0x7 0x7 0x7", "72 0x3 0x4 0x0", "72 zz 0x7"}) {
    EXPECT_EQ(lock_call_from(other), LockKind::kFcntl) << other;
  }
}

TEST(LockCall, KnowsThisProcess) {
  EXPECT_EQ(process_of(::getpid()), ::getpid());
  pid_t tid = 0;
  std::thread{[&] { tid = process_of(::gettid()); }}.join();
  EXPECT_EQ(tid, ::getpid());
  EXPECT_NE(task_name(::getpid())[0], '\0');
  EXPECT_EQ(lock_call_of(0), LockKind::kFcntl);
}

}  // namespace
}  // namespace latchfs::fuse
