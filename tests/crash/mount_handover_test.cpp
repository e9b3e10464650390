// A lock given up by close(2), by exit or by SIGKILL can be had at once by the next: what a program
// sees on ext4. On a mount RELEASE, and the FLUSH of a process that ends, come after the call that
// caused them has returned (fs/fuse/file.c fuse_flush(), fuse_release_common()); the daemon must
// not let that show for as long as it waits for them, LockService::kClosingWindowNs.
#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "base/clock.h"
#include "latchfs/lock_service.h"
#include "support/lock_children.h"
#include "support/mount_fixture.h"

namespace latchfs::locktest {
namespace {

enum class Way { kClose, kExit, kKill };

class MountHandover : public testing::TestWithParam<std::tuple<LockType, Way>> {
 protected:
  static constexpr int kRounds = 400;

  // How often the next one was refused.
  struct Refusals {
    int early{};
    int late{};  // after the time for which the daemon waits for a RELEASE: what took it is busy
  };

  // Locks through `from`, gives it up, and locks at once through `to`.
  static Refusals refusals(const std::string& from, const std::string& to) {
    const auto [type, way] = GetParam();
    const UniqueFd next = open_file(to);
    Refusals refused;
    for (int i = 0; i < kRounds; ++i) {
      const std::int64_t given_up =
          way == Way::kClose ? lock_and_close(from, type) : lock_and_end(from, type, way);
      if (lock_now(next.get(), type, true) != 0) {
        const bool late = monotonic_ns() - given_up > LockService::kClosingWindowNs;
        ++(late ? refused.late : refused.early);
      }
      EXPECT_EQ(unlock(next.get(), type), 0);
    }
    return refused;
  }

  // Late are also those who were kept waiting for a RELEASE that nobody told them of: so hardly
  // any, but for a time in which something else has the processors.
  static void expect_at_once(const std::string& from, const std::string& to) {
    constexpr int kTries = 3;
    for (int tries = 1;; ++tries) {
      const Refusals refused = refusals(from, to);
      EXPECT_EQ(refused.early, 0) << "of " << kRounds;
      if (refused.late <= kRounds / 100) return;
      ASSERT_LT(tries, kTries) << refused.late << " late of " << kRounds << ", each time";
    }
  }

 private:
  // Both give the time before which nothing was given up.
  static std::int64_t lock_and_close(const std::string& path, LockType type) {
    const UniqueFd fd = open_file(path);
    EXPECT_EQ(lock_waiting(fd.get(), type, true), 0);
    return monotonic_ns();
  }

  static std::int64_t lock_and_end(const std::string& path, LockType type, Way way) {
    std::array<int, 2> ends{};
    if (::pipe(ends.data()) != 0) throw std::runtime_error{"pipe"};
    const UniqueFd locked{ends[0]};
    UniqueFd tell{ends[1]};
    Child child{[&] {
      const UniqueFd fd = open_file(path);
      if (lock_waiting(fd.get(), type, true) != 0) return 1;
      const std::int64_t now = monotonic_ns();
      if (::write(tell.get(), &now, sizeof now) != sizeof now) return 1;
      if (way == Way::kKill) ::pause();
      return 0;
    }};
    std::int64_t given_up{};
    EXPECT_EQ(::read(locked.get(), &given_up, sizeof given_up), ssize_t{sizeof given_up});
    if (way == Way::kKill) {
      given_up = monotonic_ns();
      child.signal(SIGKILL);
    }
    EXPECT_TRUE(child.wait());
    return given_up;
  }
};

TEST_P(MountHandover, IsAtOnceOnTheKernel) {
  const test::TempDir dir;
  const Refusals refused = refusals(dir.path() + "/f", dir.path() + "/f");
  EXPECT_EQ(refused.early + refused.late, 0);
}

TEST_P(MountHandover, IsAtOnceOnAMount) {
  const test::MountFixture mount;
  expect_at_once(mount.mount() + "/f", mount.mount() + "/f");
  EXPECT_EQ(table_left(mount.mount()), "");
}

TEST_P(MountHandover, IsAtOnceBetweenMounts) {
  const test::MountFixture left;
  const test::MountFixture right{left.another()};
  expect_at_once(left.mount() + "/f", right.mount() + "/f");
  EXPECT_EQ(table_left(left.mount()), "");
}

// The kernel recycles what it makes owners of (struct file, files_struct) at once: a RELEASE or
// FLUSH that comes late names the owner that the next one has by now.
class MountLateRelease : public testing::TestWithParam<LockType> {
 protected:
  static constexpr int kRounds = 1500;
  static constexpr int kProcesses = 6;  // more than processors: makes the daemon late

  // Locks anew again and again, each time through a description of its own, and looks whether it
  // still has the lock. How often it had not.
  static int lost_by_reopening(const std::string& path, LockType type) {
    const UniqueFd other = open_file(path);
    int lost = 0;
    for (int i = 0; i < kRounds; ++i) {
      const UniqueFd fd = open_file(path);
      if (lock_waiting(fd.get(), type, true) != 0) return kRounds;
      if (lock_now(other.get(), type, true) == EAGAIN) continue;
      ++lost;
      static_cast<void>(unlock(other.get(), type));
    }
    return lost;
  }

  // The same with a process of its own each time.
  static int lost_by_next_process(const std::string& path) {
    const UniqueFd other = open_file(path);
    int lost = 0;
    for (int i = 0; i < kRounds / 10; ++i) {
      Child child{[&] {
        const UniqueFd fd = open_file(path);
        return lock_waiting(fd.get(), LockType::kPosix, true) != 0     ? 2
               : lock_now(other.get(), LockType::kOfd, true) == EAGAIN ? 0
                                                                       : 1;
      }};
      if (!exited_well(child.wait())) ++lost;
      // Had it got the lock, it would have it still.
      static_cast<void>(unlock(other.get(), LockType::kOfd));
    }
    return lost;
  }

  static int lost_in(const std::string& dir) {
    std::vector<Child> children;
    const Shared<std::atomic<int>> lost;
    for (int i = 0; i < kProcesses; ++i) {
      const std::string path = dir + "/f" + std::to_string(i);
      children.emplace_back([&lost, path] {
        *lost += GetParam() == LockType::kPosix ? lost_by_next_process(path)
                                                : lost_by_reopening(path, GetParam());
        return 0;
      });
    }
    for (Child& child : children) EXPECT_TRUE(exited_well(child.wait()));
    return *lost;
  }
};

TEST_P(MountLateRelease, TakesNothingOnTheKernel) {
  const test::TempDir dir;
  EXPECT_EQ(lost_in(dir.path()), 0);
}

TEST_P(MountLateRelease, TakesNothingFromTheNextOwner) {
  const test::MountFixture mount;
  EXPECT_EQ(lost_in(mount.mount()), 0) << "locks lost";
  EXPECT_EQ(table_left(mount.mount()), "");
}

INSTANTIATE_TEST_SUITE_P(All, MountLateRelease,
                         testing::Values(LockType::kPosix, LockType::kOfd, LockType::kFlock),
                         [](const auto& tested) { return std::string{name_of(tested.param)}; });

std::string case_name(const testing::TestParamInfo<std::tuple<LockType, Way>>& tested) {
  static constexpr std::array<const char*, 3> kWays = {"Close", "Exit", "Kill"};
  return std::string{name_of(std::get<0>(tested.param))} +
         kWays[static_cast<std::size_t>(std::get<1>(tested.param))];
}

INSTANTIATE_TEST_SUITE_P(All, MountHandover,
                         testing::Combine(testing::Values(LockType::kPosix, LockType::kOfd,
                                                          LockType::kFlock),
                                          testing::Values(Way::kClose, Way::kExit, Way::kKill)),
                         case_name);

}  // namespace
}  // namespace latchfs::locktest
