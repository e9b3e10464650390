// The mount against the native filesystem: see support/fs_compare.h.
//
// LATCHFS_SEED=n: only that seed. LATCHFS_STEPS=n: steps a seed (default 600).
// LATCHFS_REPLAY=file: the steps in that file, as a failure printed them. LATCHFS_SHRINK=n: at most
// so many attempts to shorten a failure (default 60, 0 for none).
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <iostream>
#include <random>

#include "mount/fs_deviations.h"
#include "support/fs_compare.h"
#include "support/fs_mount.h"
#include "support/fs_op.h"
#include "support/fs_stage.h"

namespace latchfs::fsdiff {
namespace {

std::uint64_t number_from(const char* variable, std::uint64_t usual) {
  const char* text = std::getenv(variable);
  return text != nullptr ? std::strtoull(text, nullptr, 10) : usual;
}

// Each of them once found something, or covers what the others do not. LATCHFS_FRESH=N: and N that
// are new. Not by default: what these find first is, more often than a fault, one more place where
// two refusals differ in their errno, and wants to be looked at by somebody.
std::vector<std::uint64_t> seeds() {
  if (std::getenv("LATCHFS_SEED") != nullptr) return {number_from("LATCHFS_SEED", 0)};
  std::vector<std::uint64_t> all{1, 2, 3, 4, 5, 6};
  for (std::uint64_t i = number_from("LATCHFS_FRESH", 0); i > 0; --i) {
    all.push_back(std::random_device{}());
  }
  return all;
}

class FsDifferential : public testing::Test {
 protected:
  void SetUp() override {
    if (geteuid() != 0) FAIL() << "fs_differential needs root: it acts as several users";
    if (access("/dev/fuse", R_OK | W_OK) != 0) FAIL() << "fs_differential needs /dev/fuse";
    use_private_mounts();
  }

  static Plan plan() {
    Plan out;
    out.mounter = latchfs_mounter();
    out.steps = static_cast<int>(number_from("LATCHFS_STEPS", 600));
    out.deviations = &deviations();
    // See fs_deviations.cpp for why.
    out.compare.holes = false;
    out.compare.special_times = false;
    out.compare.access_times = AccessTimes::kMayMissReads;
    return out;
  }

  static void agree(const Plan& plan) {
    if (const char* file = std::getenv("LATCHFS_REPLAY")) return replay(plan, file);
    for (std::uint64_t seed : seeds()) {
      auto failure = run_random(plan, seed);
      if (!failure) continue;
      const auto attempts = number_from("LATCHFS_SHRINK", 60);
      if (attempts > 0) failure = shrink(plan, *failure, static_cast<int>(attempts));
      std::string steps;
      for (const Op& op : failure->ops) steps += print(op) + "\n";
      ADD_FAILURE() << "LATCHFS_SEED=" << seed << " " << failure->what << "\n"
                    << failure->ops.size() << " steps, for LATCHFS_REPLAY:\n"
                    << steps;
      return;
    }
  }

 private:
  static void replay(const Plan& plan, const char* file) {
    std::vector<Op> ops;
    std::ifstream in{file};
    for (std::string line; std::getline(in, line);) {
      if (line.empty() || line[0] == '#') continue;
      const auto op = parse(line);
      ASSERT_TRUE(op.has_value()) << "not a step: " << line;
      ops.push_back(*op);
    }
    const auto failure = run_steps(plan, ops);
    EXPECT_FALSE(failure.has_value()) << failure->what;
  }
};

TEST_F(FsDifferential, OneMountEqualsNative) { agree(plan()); }

TEST_F(FsDifferential, AsRootAlone) {
  Plan p = plan();
  p.actors = {0};
  agree(p);
}

TEST_F(FsDifferential, AsOneUserAlone) {
  Plan p = plan();
  p.actors = {1};
  agree(p);
}

// A user's own mount of his own directory, by his own daemon.
TEST_F(FsDifferential, UsersMountEqualsNative) {
  Plan p = plan();
  p.mounter = users_mounter(1);
  p.sole_actor = 1;
  p.deviations = &deviations_of_a_users_mount();
  agree(p);
}

TEST_F(FsDifferential, HolesEqualNative) {
  Plan p = plan();
  p.compare.holes = true;
  p.deviations = &deviations_without_preallocation();
  agree(p);
}

TEST_F(FsDifferential, WithImmutableFiles) {
  Plan p = plan();
  p.deviations = &deviations_with_protection();
  agree(p);
}

TEST_F(FsDifferential, TwoMountsOfOneDirectoryEqualNative) {
  Plan p = plan();
  p.mounts = 2;
  p.deviations = &deviations_between_mounts();
  // Otherwise what was done through one mount is seen through the other up to a second later.
  p.mounter = latchfs_mounter({"attr_timeout=0", "entry_timeout=0"});
  agree(p);
}

}  // namespace
}  // namespace latchfs::fsdiff
