// A waiter is granted or refused while it is being interrupted: both orders, by a thread held where
// it matters, on two mounts of one table in shared memory. Whatever wins, there is one answer, and
// the lock is held if and only if that was "granted".
#include <gtest/gtest.h>

#include <condition_variable>
#include <cstring>
#include <functional>
#include <map>
#include <thread>

#include "base/fault_point.h"
#include "fuse/parking_lot.h"
#include "support/store_fixture.h"

namespace latchfs::fuse {
namespace {

using test::make_store;
using test::unique_table;

// Which threads a gate holds: those a test starts, or the stores' own (doorbells).
enum class Role : std::uint8_t { kStores, kTests, kMain };
thread_local Role t_role = Role::kStores;

// Threads of one role wait at a fault point, from a passage on, until the gate is opened.
class Gate {
 public:
  Gate(const char* at, Role role, int passage = 1) {
    const std::lock_guard hold{mu()};
    at_ = at;
    role_ = role;
    passages_left_ = passage;
    arrived_ = false;
    hook_faults(&Gate::pass);
  }
  ~Gate() { open(); }
  Gate(const Gate&) = delete;
  Gate& operator=(const Gate&) = delete;

  // A thread is held there.
  void await() {
    std::unique_lock hold{mu()};
    ASSERT_TRUE(changed().wait_for(hold, std::chrono::seconds{60}, [] { return arrived_; }));
  }
  void open() {
    const std::lock_guard hold{mu()};
    at_ = nullptr;
    hook_faults(nullptr);
    changed().notify_all();
  }

 private:
  static void pass(const char* name) noexcept {
    if (t_role == Role::kMain) return;
    std::unique_lock hold{mu()};
    if (at_ == nullptr || t_role != role_ || std::strcmp(name, at_) != 0) return;
    if (--passages_left_ > 0) return;
    arrived_ = true;
    changed().notify_all();
    changed().wait(hold, [] { return at_ == nullptr; });
  }
  static std::mutex& mu() {
    static std::mutex one;
    return one;
  }
  static std::condition_variable& changed() {
    static std::condition_variable one;
    return one;
  }
  static inline const char* at_ = nullptr;
  static inline Role role_{};
  static inline int passages_left_ = 0;
  static inline bool arrived_ = false;
};

// One mount, and what its waiting requests were answered.
class OneMount final : public GrantSink {
 public:
  explicit OneMount(const std::string& table) : store_{make_store("shm", *this, table)} {
    lot_.serve(*store_);
  }

  void granted(WaiterToken token) noexcept override {
    lot_.granted(token);
    note([this] { ++heard_; });
  }
  void refused(WaiterToken token, int err) noexcept override {
    lot_.refused(token, err);
    note([this] { ++heard_; });
  }

  OwnerId owner(std::uint64_t key) { return {store_->mount_id(), key, OwnerSpace::kRange}; }
  Result<Acquired> ask(std::uint64_t key, std::uint64_t file, std::uint64_t begin,
                       std::uint64_t end, WaiterToken token = {}) {
    LockRequest r;
    r.file = {1, file};
    r.owner = owner(key);
    r.range = *ByteRange::from_half_open(begin, end);
    r.mode = LockMode::kExclusive;
    r.kind = LockKind::kPosix;
    return store_->acquire(r, token.raw == 0 ? OnConflict::kRefuse : OnConflict::kQueue, token);
  }
  void take(std::uint64_t key, std::uint64_t file, std::uint64_t begin, std::uint64_t end) {
    const auto got = ask(key, file, begin, end);
    ASSERT_TRUE(got.ok() && std::holds_alternative<Granted>(*got));
  }
  // Queued and not parked yet.
  WaiterToken queue(std::uint64_t key, std::uint64_t file, std::uint64_t begin, std::uint64_t end) {
    const WaiterToken token = lot_.open({1, file}, [this](int err) {
      note([this, err] {
        ++answers_;
        answer_ = err;
      });
    });
    const auto got = ask(key, file, begin, end, token);
    EXPECT_TRUE(got.ok() && std::holds_alternative<Queued>(*got));
    return token;
  }
  void drop(std::uint64_t key, std::uint64_t file) {
    ASSERT_TRUE(store_->drop_owner({1, file}, owner(key)).ok());
  }
  bool holds(std::uint64_t key, std::uint64_t file) {
    ListQuery query;
    query.file = FileId{1, file};
    const auto page = store_->list(query);
    EXPECT_TRUE(page.ok());
    for (const Grant& g : page->grants) {
      if (g.owner == owner(key)) return true;
    }
    return false;
  }
  // -1: none after a minute.
  int await_answer() {
    await([this] { return answers_ != 0; });
    const std::lock_guard hold{mu_};
    return answer_;
  }
  // What the store had to tell has reached the lot.
  void await_heard() {
    await([this] { return heard_ != 0; });
  }
  int answers() {
    const std::lock_guard hold{mu_};
    return answers_;
  }
  ParkingLot& lot() { return lot_; }
  LockService& store() { return *store_; }

 private:
  template <class Fn>
  void note(Fn&& fn) {
    const std::lock_guard hold{mu_};
    fn();
    changed_.notify_all();
  }
  void await(const std::function<bool()>& there) {
    std::unique_lock hold{mu_};
    ASSERT_TRUE(changed_.wait_for(hold, std::chrono::seconds{60}, there));
  }

  std::mutex mu_;
  std::condition_variable changed_;
  int answers_{0}, answer_{-1}, heard_{0};
  ParkingLot lot_;
  std::unique_ptr<LockService> store_;
};

// The end of a wait that the store decides.
enum class Verdict : std::uint8_t { kGranted, kRefused };
struct Way {
  bool other_mount;  // whether another mount's daemon brings it about
  Verdict verdict;
};

constexpr int kRounds = 5;
constexpr std::uint64_t kFile = 1;
constexpr std::uint64_t kOtherFile = 2;
constexpr std::uint64_t kWaiter = 3;

class Race : public ::testing::TestWithParam<Way> {
 protected:
  // Owner kWaiter of the waiting mount waits for owner 1 of the deciding one. To be refused: once 1
  // lets go it waits for 2, which waits for kWaiter.
  struct Round {
    Round() : waiting{std::make_unique<OneMount>(table)}, other{std::make_unique<OneMount>(table)} {
      OneMount& decides = deciding();
      decides.take(1, kFile, 0, 10);
      if (GetParam().verdict == Verdict::kRefused) {
        waiting->take(kWaiter, kOtherFile, 0, 10);
        decides.take(2, kFile, 20, 30);
      }
      token = waiting->queue(kWaiter, kFile, 0, 30);
      if (GetParam().verdict == Verdict::kRefused) {
        const auto got = decides.ask(2, kOtherFile, 0, 10, WaiterToken{~0ULL});
        EXPECT_TRUE(got.ok() && std::holds_alternative<Queued>(*got));
      }
    }
    OneMount& deciding() { return GetParam().other_mount ? *other : *waiting; }
    void park() { waiting->lot().park(token); }
    void interrupt() { ParkingLot::interrupt_any(token, EINTR); }
    void decide() { deciding().drop(1, kFile); }

    // One answer, and it is true.
    void expect(int answer) {
      EXPECT_EQ(waiting->await_answer(), answer);
      EXPECT_EQ(waiting->holds(kWaiter, kFile), answer == 0);
      EXPECT_EQ(*waiting->store().verify(), "");
      EXPECT_EQ(waiting->lot().size(), 0U);
      waiting->drop(kWaiter, kFile);
      waiting->drop(kWaiter, kOtherFile);
      deciding().drop(2, kFile);
      deciding().drop(2, kOtherFile);
      EXPECT_EQ(waiting->answers(), 1);
      const auto stats = waiting->store().stats();
      ASSERT_TRUE(stats.ok());
      EXPECT_EQ(stats->grants + stats->waiters, 0U);
    }
    static bool refused() { return GetParam().verdict == Verdict::kRefused; }

    const std::string table = unique_table();
    std::unique_ptr<OneMount> waiting, other;
    WaiterToken token;
  };

  static int verdict() { return GetParam().verdict == Verdict::kGranted ? 0 : EDEADLK; }
  static std::thread start(std::function<void()> job) {
    return std::thread{[job = std::move(job)] {
      t_role = Role::kTests;
      job();
    }};
  }
  void SetUp() override { t_role = Role::kMain; }
};

TEST_P(Race, TheStoreDecidesWhileTheCancelIsOnItsWay) {
  for (int i = 0; i < kRounds; ++i) {
    Round round;
    round.park();
    Gate gate{"park.cancel", Role::kTests};
    std::thread canceller = start([&] { round.interrupt(); });
    gate.await();
    round.decide();
    EXPECT_EQ(round.waiting->await_answer(), verdict());
    gate.open();
    canceller.join();
    round.expect(verdict());
  }
}

TEST_P(Race, TheCancelCountsBeforeTheStoreDecides) {
  for (int i = 0; i < kRounds; ++i) {
    Round round;
    round.park();
    Gate gate{"park.finish", Role::kTests};
    std::thread canceller = start([&] { round.interrupt(); });
    gate.await();  // out of the queue, not answered
    EXPECT_EQ(round.waiting->answers(), 0);
    round.decide();
    EXPECT_EQ(round.waiting->answers(), 0);
    gate.open();
    canceller.join();
    round.expect(EINTR);
  }
}

TEST_P(Race, TheInterruptComesBetweenTheDecisionAndItsDelivery) {
  for (int i = 0; i < kRounds; ++i) {
    Round round;
    round.park();
    // A refusal is decided in a second step, when it is asked about deadlock.
    Gate gate{"store.deliver", Role::kTests, Round::refused() ? 2 : 1};
    std::thread grantor = start([&] { round.decide(); });
    gate.await();
    round.interrupt();
    // (Its own daemon may have looked without being rung for.)
    if (!GetParam().other_mount) {
      EXPECT_EQ(round.waiting->answers(), 0);
    }
    gate.open();
    grantor.join();
    round.expect(verdict());
  }
}

TEST_P(Race, TheInterruptComesBeforeItIsAskedAboutDeadlock) {
  if (!Round::refused()) return;
  for (int i = 0; i < kRounds; ++i) {
    Round round;
    round.park();
    Gate gate{"store.deliver", Role::kTests};
    std::thread grantor = start([&] { round.decide(); });
    gate.await();
    round.interrupt();
    EXPECT_EQ(round.waiting->answers(), 1);
    gate.open();
    grantor.join();
    round.expect(EINTR);
  }
}

TEST_P(Race, TheInterruptComesWhileItsOwnDaemonIsAboutToTell) {
  if (!GetParam().other_mount) return;  // what its own daemon decides is not fetched
  for (int i = 0; i < kRounds; ++i) {
    Round round;
    round.park();
    Gate gate{"store.deliver", Role::kStores};
    round.decide();
    gate.await();
    round.interrupt();
    EXPECT_EQ(round.waiting->answers(), 0);
    gate.open();
    round.expect(verdict());
  }
}

TEST_P(Race, TheInterruptComesBetweenTheAnswersDecisionAndTheAnswer) {
  for (int i = 0; i < kRounds; ++i) {
    Round round;
    round.park();
    // Whoever tells the lot, the test's thread or the doorbell's.
    const Role teller = GetParam().other_mount ? Role::kStores : Role::kTests;
    Gate gate{"park.finish", teller};
    std::thread grantor = start([&] { round.decide(); });
    gate.await();
    round.interrupt();
    EXPECT_EQ(round.waiting->answers(), 0);
    gate.open();
    grantor.join();
    round.expect(verdict());
  }
}

TEST_P(Race, BothComeBeforeItIsParked) {
  for (int i = 0; i < 2 * kRounds; ++i) {
    Round round;
    Gate gate{"park.before", Role::kTests};
    std::thread parker = start([&] { round.park(); });
    gate.await();
    if (i % 2 == 0) round.interrupt();
    round.decide();
    round.waiting->await_heard();
    if (i % 2 != 0) round.interrupt();
    EXPECT_EQ(round.waiting->answers(), 0);
    gate.open();
    parker.join();
    round.expect(verdict());
  }
}

TEST_P(Race, InterruptedBeforeItIsParkedAndDecidedWhileThatIsCarriedOut) {
  for (int i = 0; i < kRounds; ++i) {
    Round round;
    round.interrupt();
    Gate gate{"park.cancel", Role::kTests};
    std::thread parker = start([&] { round.park(); });
    gate.await();
    round.decide();
    round.waiting->await_heard();
    gate.open();
    parker.join();
    round.expect(verdict());
  }
}

TEST_P(Race, InterruptedBeforeItIsParkedAndDecidedAfterThat) {
  for (int i = 0; i < kRounds; ++i) {
    Round round;
    round.interrupt();
    Gate gate{"park.finish", Role::kTests};
    std::thread parker = start([&] { round.park(); });
    gate.await();
    round.decide();
    EXPECT_EQ(round.waiting->answers(), 0);
    gate.open();
    parker.join();
    round.expect(EINTR);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Ways, Race,
    ::testing::Values(Way{false, Verdict::kGranted}, Way{true, Verdict::kGranted},
                      Way{false, Verdict::kRefused}, Way{true, Verdict::kRefused}),
    [](const auto& way) {
      return std::string{way.param.verdict == Verdict::kGranted ? "Granted" : "Refused"} +
             (way.param.other_mount ? "ByAnotherMount" : "BySameMount");
    });

}  // namespace
}  // namespace latchfs::fuse
