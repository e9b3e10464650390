// Many waiters on one lock: they cost the daemon no threads and little memory, are granted in order
// of arrival, and may be killed at any moment.
#include <gtest/gtest.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <string>
#include <vector>

#include "support/lock_children.h"
#include "support/lock_proc.h"
#include "support/mount_fixture.h"
#include "support/sanitized.h"

namespace latchfs::locktest {
namespace {

using test::kSanitized;
using test::MountFixture;

constexpr unsigned kProcesses = kSanitized ? 10 : 100;
constexpr unsigned kThreads = 100;
constexpr unsigned kWaiters = kProcesses * kThreads;
constexpr unsigned kBaseline = kWaiters / 10;  // what the daemon takes then is compared with

// What a waiter may cost the daemon, and how many threads it may grow by meanwhile: libfuse starts
// some when many requests come at once, however they end.
constexpr long kBytesPerWaiter = 8 * 1024;
constexpr std::size_t kMoreThreads = 10;

struct Order {
  std::array<std::atomic<unsigned>, kWaiters> place;  // by waiter: how many were granted before
  std::atomic<unsigned> granted;
  std::atomic<unsigned> failed;
};

// A thread that waits for the lock, notes its place and gives the lock on.
struct Waiter {
  const std::string* path{};
  Order* order{};
  unsigned number{};
  UniqueFd fd{};
};

void* wait_for_lock(void* arg) {
  Waiter& w = *static_cast<Waiter*>(arg);
  if (lock_waiting(w.fd.get(), LockType::kOfd, true) != 0) {
    ++w.order->failed;
    return nullptr;
  }
  w.order->place[w.number] = w.order->granted++;
  if (unlock(w.fd.get(), LockType::kOfd) != 0) ++w.order->failed;
  return nullptr;
}

// One of many processes: each byte on `go` lets one thread of it begin to wait. Threads have a
// description each, opened before: the only request that a byte sets off is the one that waits.
int wait_by_threads(const std::string& path, Order& order, unsigned process, int go) {
  std::vector<Waiter> waiters(kThreads);
  std::vector<pthread_t> threads(kThreads);
  for (unsigned i = 0; i < kThreads; ++i) {
    waiters[i] = {&path, &order, process * kThreads + i, open_file(path)};
  }
  pthread_attr_t attr;
  pthread_attr_init(&attr);
  pthread_attr_setstacksize(&attr, 64 * 1024);
  for (unsigned i = 0; i < kThreads; ++i) {
    char byte{};
    if (::read(go, &byte, 1) != 1) return 1;
    if (pthread_create(&threads[i], &attr, wait_for_lock, &waiters[i]) != 0) return 1;
  }
  for (const pthread_t thread : threads) pthread_join(thread, nullptr);
  return 0;
}

TEST(MountWaiters, TenThousandAreFlatAndInOrder) {
  const MountFixture mount;
  const std::string path = mount.mount() + "/f";
  UniqueFd holder = open_file(path);
  ASSERT_EQ(lock_waiting(holder.get(), LockType::kOfd, true), 0);

  const Shared<Order> order;
  std::vector<UniqueFd> go;
  std::vector<Child> children;
  for (unsigned p = 0; p < kProcesses; ++p) {
    std::array<int, 2> ends{};
    ASSERT_EQ(::pipe(ends.data()), 0);
    children.emplace_back([&] { return wait_by_threads(path, *order, p, ends[0]); });
    ::close(ends[0]);
    go.emplace_back(ends[1]);
  }

  std::size_t threads_before = 0;
  long rss_before = 0;
  for (unsigned i = 0; i < kWaiters; ++i) {
    ASSERT_EQ(::write(go[i / kThreads].get(), "g", 1), 1);
    ASSERT_TRUE(poll_until([&] {
      return status_number(mount.mount(), "/counts/waiters") == static_cast<long>(i + 1);
    })) << "waiter "
        << i;
    if (i == kBaseline) {
      threads_before = threads_of(mount.daemon()).size();
      rss_before = status_value(mount.daemon(), "VmRSS");
    }
  }
  const std::size_t threads = threads_of(mount.daemon()).size();
  const long rss = status_value(mount.daemon(), "VmRSS");
  const long per_waiter = (rss - rss_before) * 1024 / static_cast<long>(kWaiters - kBaseline);
  std::printf(
      "  daemon with %u waiters: %zu threads (before %zu), %ld kB (before %ld): %ld bytes "
      "a waiter\n",
      kWaiters, threads, threads_before, rss, rss_before, per_waiter);
  EXPECT_LE(threads, threads_before + kMoreThreads);
  if (!kSanitized) {
    EXPECT_LE(per_waiter, kBytesPerWaiter);
  }

  ASSERT_EQ(unlock(holder.get(), LockType::kOfd), 0);
  for (Child& child : children) ASSERT_TRUE(exited_well(child.wait()));
  EXPECT_EQ(order->failed, 0U);
  EXPECT_EQ(order->granted, kWaiters);
  for (unsigned i = 0; i < kWaiters; ++i) {
    ASSERT_EQ(order->place[i], i) << "waiter " << i << " of " << kWaiters;
  }
  holder.reset();
  EXPECT_EQ(table_left(mount.mount()), "");
}

struct Counters {
  std::array<std::atomic<unsigned>, 8> granted;
};

// Some wait; one or two of them are killed while the lock is given back, now a little earlier, now
// a little later. The others get it, in order.
void kill_against_grant(const std::vector<std::string>& mounts, LockType type, unsigned round) {
  constexpr unsigned kCrowd = 5;
  const Shared<Counters> counters;
  UniqueFd holder = open_file(mounts[0] + "/f");
  ASSERT_EQ(lock_waiting(holder.get(), type, true), 0);
  std::vector<Child> crowd;
  for (unsigned i = 0; i < kCrowd; ++i) {
    const std::string path = mounts[i % mounts.size()] + "/f";
    crowd.emplace_back([&counters, path, type, i] {
      const UniqueFd fd = open_file(path);
      if (lock_waiting(fd.get(), type, true) != 0) return 1;
      ++counters->granted[i];
      return unlock(fd.get(), type);
    });
    ASSERT_TRUE(poll_until(
        [&] { return status_number(mounts[0], "/counts/waiters") == static_cast<long>(i + 1); }));
  }
  const unsigned victim = round % kCrowd;
  const unsigned other = (round / kCrowd) % kCrowd;
  const bool before = (round / 25) % 2 == 0;
  if (before) crowd[victim].signal(SIGKILL);
  ASSERT_EQ(unlock(holder.get(), type), 0);
  if (!before) crowd[victim].signal(SIGKILL);
  crowd[other].signal(SIGKILL);
  for (unsigned i = 0; i < kCrowd; ++i) {
    const auto status = crowd[i].wait();
    ASSERT_TRUE(status) << "waiter " << i << " hangs; killed: " << victim << " and " << other;
    if (i == victim || i == other) continue;
    EXPECT_TRUE(exited_well(status));
    EXPECT_EQ(counters->granted[i], 1U);
  }
  ASSERT_EQ(lock_waiting(holder.get(), type, true), 0) << "after killing " << victim;
}

class MountKilledWaiters : public testing::TestWithParam<LockType> {};

TEST_P(MountKilledWaiters, LeaveTheOthersTheirTurn) {
  const MountFixture left;
  const MountFixture right{left.another()};
  for (unsigned round = 0; round < 100; ++round) {
    SCOPED_TRACE("round " + std::to_string(round));
    kill_against_grant({left.mount(), right.mount()}, GetParam(), round);
    if (HasFatalFailure()) return;
    ASSERT_EQ(table_left(left.mount()), "");
  }
}

INSTANTIATE_TEST_SUITE_P(All, MountKilledWaiters,
                         testing::Values(LockType::kPosix, LockType::kOfd, LockType::kFlock),
                         [](const auto& tested) { return std::string{name_of(tested.param)}; });

}  // namespace
}  // namespace latchfs::locktest
