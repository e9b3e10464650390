// Requests by io_uring: when, what instead, and that waiting requests starve nobody of the entries
// they occupy. All of it from one CPU, whose queue is then the only one that counts.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <ctime>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "support/kernel_switch.h"
#include "support/lock_children.h"
#include "support/lock_proc.h"
#include "support/mount_fixture.h"
#include "support/sanitized.h"

namespace latchfs::test {
namespace {

using locktest::Child;
using locktest::exited_well;
using locktest::LockType;
using locktest::open_file;
using locktest::poll_until;
using locktest::Shared;
using locktest::status_number;

MountFixture::Options with(const std::string& option) {
  MountFixture::Options options;
  options.options = {option};
  return options;
}

class Rings : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!on_.ok()) GTEST_SKIP() << "this kernel has no FUSE over io_uring";
  }
  KernelSwitch on_{kEnableUring, "Y"};
};

// The first CPU that this process may use.
int first_cpu() {
  cpu_set_t set;
  CPU_ZERO(&set);
  sched_getaffinity(0, sizeof set, &set);
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &set)) return cpu;
  }
  return 0;
}

// A child on one CPU.
Child on_cpu(int cpu, const std::function<int()>& body) {
  return Child{[&] {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    return sched_setaffinity(0, sizeof set, &set) != 0 ? 99 : body();
  }};
}

bool all_wait(const MountFixture& mount, std::size_t count) {
  return poll_until(
      [&] { return status_number(mount.mount(), "/counts/waiters") == static_cast<long>(count); });
}

// Children on one CPU that each wait for an OFD lock on a file.
std::vector<Child> waiters_on(int cpu, const std::string& path, unsigned count, bool exclusive) {
  std::vector<Child> waiters;
  for (unsigned i = 0; i < count; ++i) {
    waiters.push_back(on_cpu(cpu, [&] {
      const UniqueFd own = open_file(path);
      return locktest::lock_waiting(own.get(), LockType::kOfd, exclusive);
    }));
  }
  return waiters;
}

TEST_F(Rings, AreUsedWhereTheKernelOffersThem) {
  EXPECT_EQ(MountFixture{with("transport=auto")}.transport(), "uring");
  EXPECT_EQ(MountFixture{with("transport=uring")}.transport(), "uring");
  const MountFixture dev{with("transport=dev")};
  EXPECT_EQ(dev.transport(), "dev");
  EXPECT_EQ(dev.log().find("warn"), std::string::npos) << dev.log();
}

TEST_F(Rings, WhereTheKernelDoesNotOfferThemWhoAskedIsTold) {
  const KernelSwitch off{kEnableUring, "N"};
  ASSERT_TRUE(off.ok());
  const MountFixture silent{with("transport=auto")};
  EXPECT_EQ(silent.transport(), "dev");
  EXPECT_EQ(silent.log().find("io_uring"), std::string::npos) << silent.log();
  const MountFixture asked{with("transport=uring")};
  EXPECT_EQ(asked.transport(), "dev");
  EXPECT_NE(asked.log().find("does not offer FUSE over io_uring"), std::string::npos)
      << asked.log();
}

TEST_F(Rings, WhereNoneMayBeMadeTheDeviceServes) {
  const KernelSwitch forbidden{kUringDisabled, "2"};
  if (!forbidden.ok()) GTEST_SKIP() << "kernel.io_uring_disabled cannot be written here";
  const MountFixture mount{with("transport=uring")};
  EXPECT_EQ(mount.transport(), "dev");
  EXPECT_NE(mount.log().find("no io_uring for FUSE"), std::string::npos) << mount.log();
}

// A worker could not stay on its CPU.
TEST_F(Rings, WhereTheDaemonMayNotRunEverywhereTheDeviceServes) {
  cpu_set_t before, one;
  ASSERT_EQ(sched_getaffinity(0, sizeof before, &before), 0);
  if (CPU_COUNT(&before) < 2) GTEST_SKIP() << "only one CPU";
  CPU_ZERO(&one);
  CPU_SET(first_cpu(), &one);
  ASSERT_EQ(sched_setaffinity(0, sizeof one, &one), 0);
  const MountFixture mount{with("transport=uring")};
  EXPECT_EQ(sched_setaffinity(0, sizeof before, &before), 0);
  EXPECT_EQ(mount.transport(), "dev");
  EXPECT_NE(mount.log().find("may not run on all of them"), std::string::npos) << mount.log();
}

// Each waiter keeps an entry of the CPU's queue. Whoever else is on that CPU goes on all the same,
// and one of them is who ends the wait.
class RingsStarve : public Rings, public ::testing::WithParamInterface<unsigned> {};

TEST_P(RingsStarve, NobodyWhenSoManyWait) {
  const unsigned waiting = GetParam();
  const MountFixture mount{with("transport=uring")};
  ASSERT_EQ(mount.transport(), "uring");
  const std::string path = mount.mount() + "/f";
  const int cpu = first_cpu();
  const UniqueFd held = open_file(path);
  for (int round = 0; round < 3; ++round) {
    ASSERT_EQ(locktest::lock_now(held.get(), LockType::kOfd, true), 0);
    std::vector<Child> waiters = waiters_on(cpu, path, waiting, true);
    // More at once than the queue has entries free.
    std::vector<Child> busy;
    for (unsigned i = 0; i < 8; ++i) {
      busy.push_back(on_cpu(cpu, [&, i] {
        for (unsigned k = 0; k < 50; ++k) {
          const std::string name = mount.mount() + "/b" + std::to_string(i);
          const UniqueFd own = open_file(name);
          if (::pwrite(own.get(), &k, sizeof k, 0) != sizeof k) return 1;
          if (locktest::lock_now(own.get(), LockType::kPosix, true) != 0) return 2;
          struct stat st {};
          if (::stat(name.c_str(), &st) != 0) return 3;
          if (::unlink(name.c_str()) != 0) return 4;
        }
        return 0;
      }));
    }
    for (Child& child : busy) ASSERT_TRUE(exited_well(child.wait())) << "somebody starves";
    ASSERT_TRUE(all_wait(mount, waiting));
    Child last = on_cpu(cpu, [&] { return locktest::unlock(held.get(), LockType::kOfd); });
    ASSERT_TRUE(exited_well(last.wait())) << "who would end the wait starves";
    for (Child& child : waiters) ASSERT_TRUE(exited_well(child.wait()));
  }
}
INSTANTIATE_TEST_SUITE_P(Waiters, RingsStarve,
                         ::testing::Values(1U, 2U, 12U, kSanitized ? 40U : 300U));

// One lock goes round between more processes than a CPU has workers: requests are parked, queued
// and answered in every order.
TEST_F(Rings, ALockGoesRoundOnOneCpu) {
  constexpr unsigned kProcesses = 40;
  const unsigned rounds = kSanitized ? 20 : 200;
  const MountFixture mount{with("transport=uring")};
  const std::string path = mount.mount() + "/f";
  struct Count {
    std::atomic<unsigned> inside, violations;
  };
  const Shared<Count> count;
  std::vector<Child> children;
  for (unsigned i = 0; i < kProcesses; ++i) {
    children.push_back(on_cpu(first_cpu(), [&, i] {
      const LockType type = i % 2 == 0 ? LockType::kOfd : LockType::kPosix;
      const UniqueFd own = open_file(path);
      for (unsigned k = 0; k < rounds; ++k) {
        if (locktest::lock_waiting(own.get(), type, true) != 0) return 1;
        if (count->inside.fetch_add(1) != 0) ++count->violations;
        count->inside.fetch_sub(1);
        if (locktest::unlock(own.get(), type) != 0) return 2;
      }
      return 0;
    }));
  }
  for (Child& child : children) ASSERT_TRUE(exited_well(child.wait())) << "a waiter starves";
  EXPECT_EQ(count->violations, 0U);
  EXPECT_EQ(locktest::table_left(mount.mount()), "");
}

// Who keeps a file from being opened for as long as he lives: he has a lease on it, and does not
// give it back when asked.
class Lease {
 public:
  explicit Lease(const std::string& path)
      : child_{[this, path] {
          ::signal(SIGIO, SIG_IGN);
          const UniqueFd own{::open(path.c_str(), O_RDWR | O_CLOEXEC)};
          *had_ = ::fcntl(own.get(), F_SETLEASE, F_WRLCK) == 0 ? 1 : -1;
          for (;;) ::pause();
          return 0;
        }} {
    (void)poll_until([&] { return had_->load() != 0; });
  }
  [[nodiscard]] bool had() const { return had_->load() == 1; }
  [[nodiscard]] bool end() { return child_.kill(); }

 private:
  const KernelSwitch for_long_{"/proc/sys/fs/lease-break-time", "3600"};
  Shared<std::atomic<int>> had_;
  Child child_;
};

// Entries that once waited are there for good, more than there are workers. A call that takes long
// must not keep any of them from being served: neither those that others use meanwhile, nor, when
// all the workers are taken, those that are handed on.
class RingsSlow : public Rings, public ::testing::WithParamInterface<unsigned> {};

TEST_P(RingsSlow, CallsHoldUpNobodyAfterManyWaited) {
  const unsigned slow = GetParam();
  const MountFixture mount{with("transport=uring")};
  ASSERT_EQ(mount.transport(), "uring");
  const std::string path = mount.mount() + "/f";
  const int cpu = first_cpu();
  {
    const UniqueFd held = open_file(path);
    ASSERT_EQ(locktest::lock_now(held.get(), LockType::kOfd, true), 0);
    std::vector<Child> waiters = waiters_on(cpu, path, 150, false);
    ASSERT_TRUE(all_wait(mount, 150));
    ASSERT_EQ(locktest::unlock(held.get(), LockType::kOfd), 0);
    for (Child& child : waiters) ASSERT_TRUE(exited_well(child.wait()));
  }
  (void)open_file(mount.source() + "/leased");
  Lease lease{mount.source() + "/leased"};
  ASSERT_TRUE(lease.had());
  std::vector<Child> stuck;
  for (unsigned i = 0; i < slow; ++i) {
    stuck.push_back(on_cpu(cpu, [&] {
      const UniqueFd own{::open((mount.mount() + "/leased").c_str(), O_RDWR | O_CLOEXEC)};
      return own ? 0 : 1;
    }));
    for (unsigned k = 0; k < 20; ++k) {
      Child other = on_cpu(cpu, [&] {
        const std::string name = mount.mount() + "/other";
        const UniqueFd own = open_file(name);
        if (::pwrite(own.get(), &k, sizeof k, 0) != sizeof k) return 1;
        if (locktest::lock_now(own.get(), LockType::kOfd, true) != 0) return 2;
        return ::unlink(name.c_str()) == 0 ? 0 : 3;
      });
      ASSERT_TRUE(exited_well(other.wait())) << "held up by one of " << i + 1 << " slow calls";
    }
  }
  // (They do wait, so that the others were tried beside them.)
  for (Child& child : stuck) EXPECT_FALSE(child.ended());
  ASSERT_TRUE(lease.end());
  for (Child& child : stuck) EXPECT_TRUE(exited_well(child.wait()));
}
INSTANTIATE_TEST_SUITE_P(Calls, RingsSlow, ::testing::Values(1U, 3U, 20U));

// The signal comes at any time from before the call to when it waits. That the kernel loses some on
// their way to a ring (transport/rings.cpp, keep()) must show to nobody.
TEST_F(Rings, EverySignalInterruptsAWait) {
  const int rounds = kSanitized ? 300 : 3000;
  const MountFixture mount{with("transport=uring")};
  const std::string path = mount.mount() + "/f";
  const UniqueFd held = open_file(path);
  ASSERT_EQ(locktest::lock_now(held.get(), LockType::kOfd, true), 0);
  Child child{[&] {
    struct sigaction action {};
    action.sa_handler = [](int) {};
    ::sigaction(SIGALRM, &action, nullptr);
    const UniqueFd own = open_file(path);
    for (int i = 0; i < rounds; ++i) {
      // Once more every few milliseconds: the first may come before the call.
      const itimerval timer{{0, 3000}, {0, 1 + i % 80}};
      ::setitimer(ITIMER_REAL, &timer, nullptr);
      if (locktest::lock_waiting(own.get(), LockType::kOfd, true) != EINTR) return 1;
    }
    return 0;
  }};
  EXPECT_TRUE(exited_well(child.wait())) << "a signal got lost";
  EXPECT_EQ(status_number(mount.mount(), "/counts/waiters"), 0);
}

TEST_F(Rings, WhoIsKilledWhileHeWaitsIsGone) {
  const int rounds = kSanitized ? 30 : 300;
  const MountFixture mount{with("transport=uring")};
  const std::string path = mount.mount() + "/f";
  const UniqueFd held = open_file(path);
  ASSERT_EQ(locktest::lock_now(held.get(), LockType::kOfd, true), 0);
  for (int i = 0; i < rounds; ++i) {
    const Shared<std::atomic<bool>> ready;
    Child child{[&] {
      const UniqueFd own = open_file(path);
      *ready = true;
      return locktest::lock_waiting(own.get(), LockType::kOfd, true);
    }};
    ASSERT_TRUE(poll_until([&] { return ready->load(); }));
    // From "about to ask" to "waits".
    const timespec while_he_asks{0, (i % 100) * 1000L};
    ::nanosleep(&while_he_asks, nullptr);
    ASSERT_TRUE(child.kill()) << "he hangs, killed in round " << i;
  }
  EXPECT_TRUE(all_wait(mount, 0));
}

// Requests and answers as large as they get, whose parts lie in several places.
TEST_F(Rings, CarryLargeData) {
  const MountFixture mount{with("transport=uring,io=direct")};
  const std::string path = mount.mount() + "/f";
  std::string data(3 << 20, '\0');
  for (std::size_t i = 0; i < data.size(); ++i) data[i] = static_cast<char>(i * 7 + (i >> 12));
  const UniqueFd fd = open_file(path);
  for (const std::size_t size : {std::size_t{1}, std::size_t{4095}, std::size_t{8191},
                                 std::size_t{8193}, std::size_t{1} << 20, data.size()}) {
    ASSERT_EQ(::pwrite(fd.get(), data.data(), size, 0), static_cast<ssize_t>(size));
    std::string back(size, '?');
    ASSERT_EQ(::pread(fd.get(), back.data(), size, 0), static_cast<ssize_t>(size));
    EXPECT_TRUE(back == data.substr(0, size)) << size;
  }
}

}  // namespace
}  // namespace latchfs::test
