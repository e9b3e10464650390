// Contention through two mounts of one directory: one of the daemons is killed in the middle of it;
// a lock goes to and fro under a rain of signals; processes die in storms. Nobody may ever hold
// what another holds, nobody may be stuck, and nothing may be left when all are gone.
#include "crash/mount_contention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "support/lock_proc.h"
#include "support/mount_fixture.h"
#include "support/sanitized.h"

namespace latchfs::locktest {
namespace {

using test::MountFixture;

constexpr unsigned kContenders = 50;

// LATCHFS_SEED, or a fresh one, which a failure names.
std::uint64_t seed() {
  const char* const text = std::getenv("LATCHFS_SEED");
  return text != nullptr ? std::strtoull(text, nullptr, 10) : std::random_device{}();
}

LockType type_of(unsigned number) {
  static constexpr std::array<LockType, 3> kTypes{LockType::kPosix, LockType::kOfd,
                                                  LockType::kFlock};
  return kTypes[number / 2 % kTypes.size()];
}

std::vector<Child> start(Arena& arena, const std::string& left, const std::string& right,
                         std::uint64_t seed, bool die_at_will = false) {
  std::vector<Child> children;
  for (unsigned i = 0; i < kContenders; ++i) {
    Contender who;
    who.number = i;
    who.side = static_cast<int>(i % 2);
    who.dir = who.side == 0 ? left : right;
    who.type = type_of(i);
    who.seed = seed * 1000 + i;
    who.dies_at_will = die_at_will;
    children.emplace_back([&arena, who] { return contend(arena, who); });
  }
  return children;
}

// Each of those on that side (2: on both) gets that many more grants.
::testing::AssertionResult all_go_on(Arena& arena, int side, std::uint64_t more) {
  std::vector<std::uint64_t> goal;
  for (unsigned i = 0; i < kContenders; ++i) goal.push_back(arena.grants[i] + more);
  unsigned stuck = 0;
  const bool reached = poll_until([&] {
    for (unsigned i = 0; i < kContenders; ++i) {
      if (side != 2 && static_cast<int>(i % 2) != side) continue;
      if (arena.grants[i] < goal[i]) {
        stuck = i;
        return false;
      }
    }
    return true;
  });
  if (reached) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure()
         << "contender " << stuck << " (" << name_of(type_of(stuck)) << ", side " << stuck % 2
         << ") is stuck at " << arena.grants[stuck] << " grants";
}

void expect_sound(const Arena& arena, const std::string& mount) {
  EXPECT_EQ(arena.violations, 0U) << "somebody held what another held";
  EXPECT_EQ(arena.errors, 0U) << "last errno " << arena.last_error;
  EXPECT_EQ(table_left(mount), "");
  const auto status = nlohmann::json::parse(status_text(mount));
  const std::string verified = status.at("last_verify").get<std::string>();
  EXPECT_TRUE(verified.empty() || verified == "ok") << verified;
}

TEST(MountContention, KillOneOfTwoDaemons) {
  const std::uint64_t used = seed();
  SCOPED_TRACE("LATCHFS_SEED=" + std::to_string(used));
  std::mt19937_64 random{used};
  const MountFixture left;
  for (int round = 0; round < 6; ++round) {
    SCOPED_TRACE("round " + std::to_string(round));
    MountFixture right{left.another()};
    const Shared<Arena> arena;
    std::vector<Child> children = start(*arena, left.mount(), right.mount(), random());
    ASSERT_TRUE(all_go_on(*arena, 2, 3 + random() % 30));
    arena->side_dead[1] = true;
    right.kill_daemon();
    ASSERT_TRUE(all_go_on(*arena, 0, 20));
    for (unsigned i = 1; i < kContenders; i += 2) {
      const auto status = children[i].wait();
      ASSERT_TRUE(status) << "a client of the killed daemon hangs: " << i;
      EXPECT_TRUE(WIFEXITED(*status) && WEXITSTATUS(*status) == kOrphaned) << *status;
    }
    right.detach();
    arena->stop = true;
    for (unsigned i = 0; i < kContenders; i += 2) {
      ASSERT_TRUE(exited_well(children[i].wait())) << "a client of the survivor hangs: " << i;
    }
    expect_sound(*arena, left.mount());
    EXPECT_EQ(status_number(left.mount(), "/counts/mounts"), 1);
  }
}

// The proof that these tests can fail: two mounts that share no table.
TEST(MountContentionItself, NoticesLocksThatAreNotShared) {
  const MountFixture left;
  MountFixture::Options apart = left.another();
  apart.table += "-apart";
  const MountFixture right{apart};
  const Shared<Arena> arena;
  std::vector<Child> children = start(*arena, left.mount(), right.mount(), seed());
  EXPECT_TRUE(poll_until([&] { return arena->violations > 0; }));
  arena->stop = true;
  for (Child& child : children) EXPECT_TRUE(exited_well(child.wait()));
}

// Nobody is left to reap: the next mount does.
TEST(MountContention, KillBothDaemons) {
  const std::uint64_t used = seed();
  SCOPED_TRACE("LATCHFS_SEED=" + std::to_string(used));
  MountFixture left;
  {
    MountFixture right{left.another()};
    const Shared<Arena> arena;
    std::vector<Child> children = start(*arena, left.mount(), right.mount(), used);
    ASSERT_TRUE(all_go_on(*arena, 2, 5));
    arena->side_dead[0] = arena->side_dead[1] = true;
    right.kill_daemon();
    left.kill_daemon();
    for (Child& child : children) ASSERT_TRUE(child.wait()) << "a client hangs";
    EXPECT_EQ(arena->errors, 0U) << "last errno " << arena->last_error;
  }
  const MountFixture next{left.another()};
  EXPECT_EQ(table_left(next.mount()), "");
  const UniqueFd fd = open_file(next.mount() + "/bytes0");
  EXPECT_EQ(lock_now(fd.get(), LockType::kPosix, true), 0);
}

// Signals interrupt and restart waits at random all the while.
TEST(MountContention, ToAndFroUnderSignals) {
  const std::uint64_t used = seed();
  SCOPED_TRACE("LATCHFS_SEED=" + std::to_string(used));
  std::mt19937_64 random{used};
  const MountFixture left;
  const MountFixture right{left.another()};
  const Shared<Arena> arena;
  std::vector<Child> children = start(*arena, left.mount(), right.mount(), used);
  ASSERT_TRUE(all_go_on(*arena, 2, 1));  // all have their handlers
  const auto total = [&] {
    std::uint64_t sum = 0;
    for (const auto& grants : arena->grants) sum += grants;
    return sum;
  };
  const std::uint64_t goal = total() + (test::kSanitized ? 2'000 : 20'000);
  ASSERT_TRUE(poll_until([&] {
    for (int i = 0; i < 4; ++i) {
      children[random() % kContenders].signal(random() % 2 == 0 ? SIGUSR1 : SIGUSR2);
    }
    return total() >= goal;
  }));
  ASSERT_TRUE(all_go_on(*arena, 2, 5));
  arena->stop = true;
  for (unsigned i = 0; i < kContenders; ++i) {
    ASSERT_TRUE(exited_well(children[i].wait())) << "hangs: " << i;
  }
  expect_sound(*arena, left.mount());
}

// Processes end with locks held, are killed while they wait, and new ones take their place.
TEST(MountContention, StormOfDeaths) {
  const std::uint64_t used = seed();
  SCOPED_TRACE("LATCHFS_SEED=" + std::to_string(used));
  std::mt19937_64 random{used};
  const MountFixture left;
  const MountFixture right{left.another()};
  // Locks of the dead count until their mount hears of it: who holds what is not checked here.
  for (int round = 0; round < 10; ++round) {
    const Shared<Arena> arena;
    std::vector<Child> children = start(*arena, left.mount(), right.mount(), random(), true);
    unsigned alive = kContenders;
    ASSERT_TRUE(poll_until([&] {
      Child& victim = children[random() % kContenders];
      if (!victim.ended() && random() % 4 == 0) victim.signal(SIGKILL);
      alive = static_cast<unsigned>(
          std::count_if(children.begin(), children.end(), [](Child& c) { return !c.ended(); }));
      return alive == 0;
    })) << alive
        << " are stuck";
    EXPECT_EQ(arena->errors, 0U) << "last errno " << arena->last_error;
    ASSERT_EQ(table_left(left.mount()), "") << "round " << round;
  }
  for (const char* what :
       {"/counts/grants", "/counts/waiters", "/counts/owners", "/counts/files"}) {
    EXPECT_EQ(status_number(right.mount(), what), 0) << what;
  }
}

}  // namespace
}  // namespace latchfs::locktest
