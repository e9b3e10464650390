// Death at every instruction of everything that changes the shared table: docs/recovery.md.
//
// LATCHFS_CRASH_STRIDE=1 lets survivors recover at every point (scripts/crash-test); else a sample.
#include <gtest/gtest.h>
#include <sched.h>

#include <algorithm>
#include <cstdlib>
#include <ostream>

#include "base/log.h"
#include "crash/step_check.h"

namespace latchfs::test {

// Else acts are printed byte by byte.
static void PrintTo(const StepAct& act, std::ostream* out) {  // NOLINT: GoogleTest's name
  *out << act.name;
}

namespace {

std::uint64_t stride_or(std::uint64_t usual) {
  const char* text = std::getenv("LATCHFS_CRASH_STRIDE");
  return text != nullptr ? std::max(1ULL, std::strtoull(text, nullptr, 10)) : usual;
}

constexpr std::uint64_t kSample = 29;

std::vector<StepAct> acts_to_run() {
  std::vector<StepAct> some = step_acts();
  if (stride_or(kSample) != 1) std::erase_if(some, [](const StepAct& a) { return a.only_full; });
  return some;
}

std::string told(const StepReport& report) {
  std::string all;
  for (const std::string& one : report.first) all += one + "\n";
  return all;
}

// (The line is what scripts/crash-test adds up.)
void print(const std::string& name, const StepReport& r) {
  std::printf("crash points: %s %llu instructions %llu points %llu recovered %llu failures\n",
              name.c_str(), static_cast<unsigned long long>(r.instructions),
              static_cast<unsigned long long>(r.points),
              static_cast<unsigned long long>(r.recovered + r.deaths),
              static_cast<unsigned long long>(r.failures));
}

class ShmStep : public ::testing::TestWithParam<StepAct> {};

TEST_P(ShmStep, OldOrNewAfterEveryInstruction) {
  const StepReport report =
      check_act(GetParam(), stride_or(kSample), stride_or(kSample) == 1 ? 20 : 1);
  print(GetParam().name, report);
  EXPECT_EQ(report.failures, 0u) << told(report);
  EXPECT_GT(report.points, 0u);
}

INSTANTIATE_TEST_SUITE_P(Acts, ShmStep, ::testing::ValuesIn(acts_to_run()),
                         [](const auto& a) { return a.param.name; });

class ShmStepBroken : public ::testing::TestWithParam<StepAct> {};

TEST_P(ShmStepBroken, IsFound) {
  const StepReport report = check_act(GetParam(), stride_or(3), 0);
  std::printf("broken on purpose: %s, %llu of %llu\n", GetParam().name.c_str(),
              static_cast<unsigned long long>(report.failures),
              static_cast<unsigned long long>(report.recovered));
  if (GetParam().name == "sound") {
    EXPECT_EQ(report.failures, 0u) << told(report);
  } else {
    EXPECT_GT(report.failures, 0u);
  }
}

INSTANTIATE_TEST_SUITE_P(Stores, ShmStepBroken, ::testing::ValuesIn(broken_acts()),
                         [](const auto& a) { return a.param.name; });

}  // namespace
}  // namespace latchfs::test

int main(int argc, char** argv) {
  // What is wrong comes back to the tests; stores broken on purpose would fill the screen.
  if (!latchfs::log::open("/dev/null", latchfs::log::Level::kError)) return 1;
  // Tracer and traced take turns, once an instruction: on one processor that takes a third of the
  // time.
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(static_cast<std::size_t>(::sched_getcpu()), &one);
  (void)::sched_setaffinity(0, sizeof one, &one);
  ::testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
