// The differential filesystem test against itself: two native directories must agree, and every
// deliberate fault must be seen. Without this, "no difference found" would mean nothing.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <iostream>
#include <random>

#include "support/fs_compare.h"
#include "support/fs_op.h"
#include "support/fs_stage.h"

namespace latchfs::fsdiff {
namespace {

class FsSelfTest : public testing::Test {
 protected:
  void SetUp() override {
    if (geteuid() != 0) FAIL() << "fs_selftest needs root: it acts as several users";
    use_private_mounts();
  }
  static Plan native() {
    Plan plan;
    plan.mounter = native_mounter();
    return plan;
  }
};

std::string text(const Failure& failure) {
  std::string out = failure.what + "\nthe steps:\n";
  for (const Op& op : failure.ops) out += print(op) + "\n";
  return out;
}

TEST_F(FsSelfTest, StepsSurvivePrinting) {
  Op op;
  op.call = Call::kRename;
  op.actor = 3;
  op.path = "a b\n%\xff/";
  op.path2 = "%41";
  op.b = INT64_MIN;
  op.c = -1;
  const auto again = parse(print(op));
  ASSERT_TRUE(again.has_value());
  EXPECT_EQ(print(*again), print(op));
  EXPECT_EQ(again->path, op.path);
  EXPECT_EQ(again->path2, op.path2);
  EXPECT_EQ(again->b, op.b);
  EXPECT_FALSE(parse("frobnicate actor=1").has_value());
  EXPECT_FALSE(parse("mkdir what=1").has_value());
}

TEST_F(FsSelfTest, NativeAgreesWithNative) {
  Plan plan = native();
  plan.steps = 800;
  // Of what was allocated and never written, the pages that happen to be in memory count as data
  // (mm/filemap.c mapping_seek_hole_data()): not always the same ones.
  plan.compare.holes = false;
  std::map<std::string, int> tally;
  plan.tally = &tally;
  for (std::uint64_t seed : {1u, 2u}) {
    for (int mounts : {1, 2}) {
      plan.mounts = mounts;
      SCOPED_TRACE("seed=" + std::to_string(seed) + " mounts=" + std::to_string(mounts));
      const auto failure = run_random(plan, seed);
      EXPECT_FALSE(failure.has_value()) << text(*failure);
    }
  }
  if (std::getenv("LATCHFS_TALLY") != nullptr) {
    for (const auto& [what, times] : tally) std::cout << times << '\t' << what << '\n';
  }
}

class FsSabotage : public FsSelfTest, public testing::WithParamInterface<int> {};

TEST_P(FsSabotage, IsSeen) {
  Plan plan = native();
  plan.sabotage = static_cast<Sabotage>(GetParam());
  plan.steps = 1500;
  for (std::uint64_t seed = 1; seed <= 4; ++seed) {
    if (auto failure = run_random(plan, seed)) {
      RecordProperty("seen", failure->what);
      return;
    }
  }
  ADD_FAILURE() << "nobody noticed: " << name_of(plan.sabotage);
}

INSTANTIATE_TEST_SUITE_P(All, FsSabotage, testing::Range(1, static_cast<int>(Sabotage::kLast) + 1),
                         [](const testing::TestParamInfo<int>& which) {
                           std::string name = name_of(static_cast<Sabotage>(which.param));
                           for (char& c : name) c = c == ' ' ? '_' : c;
                           return name;
                         });

TEST_F(FsSelfTest, FailuresShrink) {
  Plan plan = native();
  plan.sabotage = Sabotage::kFlipByte;
  plan.steps = 300;
  auto failure = run_random(plan, 1);
  ASSERT_TRUE(failure.has_value());
  const std::size_t before = failure->ops.size();
  const Failure small = shrink(plan, *failure, 25);
  EXPECT_LT(small.ops.size(), before);
  EXPECT_TRUE(run_steps(plan, small.ops).has_value());
}

}  // namespace
}  // namespace latchfs::fsdiff
