// Random lock sequences on a native directory, on a mount and on two mounts of one directory at the
// same time: every result equal to the kernel's.
//
//   LATCHFS_SEED=N or --seed N     only this sequence
//   LATCHFS_TEST_SECONDS=S         time for fresh sequences, after the fixed ones (default 15; 0:
//   none)
#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "support/lock_differential.h"
#include "support/mount_ground.h"
#include "support/sanitized.h"

namespace latchfs::locktest {
namespace {

using Clock = std::chrono::steady_clock;

constexpr unsigned kSteps = 120;
// A share of sequences that the kernel itself has no one answer for; more than that, and the tests
// test too little.
constexpr unsigned kUndeterminedPercent = 25;

std::string env_or(const char* name, const char* otherwise) {
  const char* const text = std::getenv(name);
  return text != nullptr ? text : otherwise;
}

void print(const Tally& tally) {
  std::printf("  %u sequences, %u steps, %u waits, %u sequences undetermined by the kernel\n",
              tally.sequences, tally.steps, tally.waits, tally.undetermined);
}

// The fixed seeds, then fresh ones as long as time allows; or the one asked for.
void compare(Differential& differential, unsigned fixed_seeds) {
  if (const std::string seed = env_or("LATCHFS_SEED", ""); !seed.empty()) {
    const auto difference = differential.run(std::stoull(seed), kSteps);
    ASSERT_FALSE(difference) << report(*difference);
    return;
  }
  for (std::uint64_t seed = 1; seed <= fixed_seeds; ++seed) {
    const auto difference = differential.run(seed, kSteps);
    ASSERT_FALSE(difference) << report(*difference);
  }
  const std::chrono::seconds budget{std::stol(env_or("LATCHFS_TEST_SECONDS", "15"))};
  std::random_device fresh;
  const auto deadline = Clock::now() + budget;
  while (Clock::now() < deadline) {
    const auto difference = differential.run(fresh(), kSteps);
    ASSERT_FALSE(difference) << report(*difference);
  }
  print(differential.tally());
  // (Of a few it may be many.)
  if (differential.tally().sequences < 40) return;
  EXPECT_LE(differential.tally().undetermined * 100,
            differential.tally().sequences * kUndeterminedPercent);
}

TEST(LockDifferential, OneMountAndTwoMountsAgreeWithTheKernel) {
  Differential differential{{native_ground(), mount_ground(1), mount_ground(2)}};
  compare(differential, test::kSanitized ? 10 : 40);
}

// Nothing of this is sanitized.
#ifndef LATCHFS_SANITIZED

// The tests' own proof: the kernel agrees with itself, and disagrees with each way of getting
// locks wrong that the agents know.
TEST(LockDifferentialItself, TheKernelAgreesWithItself) {
  Differential differential{{native_ground(), native_ground()}};
  compare(differential, 20);
}

class LockDifferentialMutation : public testing::TestWithParam<const char*> {};

TEST_P(LockDifferentialMutation, IsFound) {
  Differential differential{{native_ground(), native_ground(GetParam())}};
  for (std::uint64_t seed = 1; seed <= 60; ++seed) {
    const auto difference = differential.run(seed, kSteps, std::chrono::seconds{3});
    if (!difference) continue;
    std::printf("%s", report(*difference).c_str());
    return;
  }
  FAIL() << "no sequence shows it";
}

INSTANTIATE_TEST_SUITE_P(All, LockDifferentialMutation,
                         testing::Values("unlock_short", "zero_is_one", "ofd_is_posix",
                                         "flock_shares", "close_keeps", "close_leaks", "no_eintr",
                                         "no_edeadlk"),
                         [](const auto& tested) { return std::string{tested.param}; });

#endif

}  // namespace
}  // namespace latchfs::locktest

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  for (int i = 1; i + 1 < argc; ++i) {
    if (std::strcmp(argv[i], "--seed") == 0) ::setenv("LATCHFS_SEED", argv[i + 1], 1);
  }
  return RUN_ALL_TESTS();
}
