// What waits, is granted, is interrupted and dies, in every order: wait_world.h says what is real
// and what a step is, and checks each state. The planted bugs show that the checks would find them.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>

#include "model/explore.h"
#include "support/sanitized.h"

namespace latchfs::test {
namespace {

constexpr auto kEx = LockMode::kExclusive;
constexpr auto kSh = LockMode::kShared;

// OFD locks but for the deadlocks: their requests are one step, POSIX ones are two.
Op lock(LockMode mode = kEx, std::uint64_t file = 1) {
  return {.what = Op::What::kLock, .file = file, .mode = mode, .kind = LockKind::kOfd};
}
Op posix(std::uint64_t file, std::uint64_t begin = 0, std::uint64_t end = 10, LockMode mode = kEx) {
  return {Op::What::kLock, file, mode, LockKind::kPosix, begin, end};
}
Op unlock(std::uint64_t file = 1) {
  return {.what = Op::What::kUnlock, .file = file, .begin = 0, .end = 100};
}
Op await(std::uint64_t grants, std::uint64_t waiters) {
  return {.what = Op::What::kAwait, .grants = grants, .waiters = waiters};
}
Op close() { return {.what = Op::What::kClose, .file = 1}; }

const std::vector<Op> kWrite{lock(), unlock()};
const std::vector<Op> kRead{lock(kSh), unlock()};
const std::vector<Op> kOneThenTwo{posix(1), posix(2), unlock(2), unlock(1)};
const std::vector<Op> kTwoThenOne{posix(2), posix(1), unlock(1), unlock(2)};
const std::vector<Op> kReadThenWrite{posix(1, 0, 10, kSh), posix(1), unlock()};
// The third waits for the first, then for the second, which waits for the third.
const std::vector<Op> kInTheWayFirst{posix(1, 0, 10), await(0, 2), unlock(1)};
const std::vector<Op> kInTheWayThen{posix(1, 20, 30), await(3, 0), posix(2), unlock(2), unlock(1)};
const std::vector<Op> kOverBoth{posix(2), await(3, 0), posix(1, 0, 30), unlock(1), unlock(2)};

struct Case {
  Scenario scenario;
  bool small{};  // enough for the sanitizers, ten times slower
};

const std::vector<Case>& cases() {
  static const std::vector<Case> all{
      {{.name = "OneMountAndASignal",
        .processes = {{.ops = kWrite}, {.ops = kWrite, .interrupted = 0}}},
       true},
      {{.name = "TwoMountsAndASignal",
        .mounts = 2,
        .processes = {{.ops = kWrite}, {.mount = 1, .ops = kWrite, .interrupted = 0}}},
       true},
      {{.name = "TheHolderStaysAndTheWaiterIsInterrupted",
        .mounts = 2,
        .processes = {{.ops = {lock()}},
                      {.mount = 1, .ops = {lock()}, .interrupted = 0, .after = 0}}},
       true},
      {{.name = "ThreeInTurn",
        .mounts = 2,
        .processes = {{.ops = kWrite}, {.mount = 1, .ops = kWrite}, {.ops = kWrite}}}},
      {{.name = "TwoGrantsForOneDaemon",
        .mounts = 2,
        .processes = {{.ops = {lock(), lock(kEx, 3), await(2, 2), unlock(), unlock(3)}},
                      {.mount = 1, .ops = {await(2, 0), lock()}},
                      {.mount = 1, .ops = {await(2, 1), lock(kEx, 3)}}}},
       true},
      {{.name = "ReadersBesideEachOther",
        .mounts = 2,
        .processes = {{.ops = kWrite}, {.mount = 1, .ops = kRead}, {.ops = kRead}}}},
      {{.name = "AReaderIsInterrupted",
        .mounts = 2,
        .processes = {{.ops = kWrite},
                      {.mount = 1, .ops = kRead, .interrupted = 0, .after = 0},
                      {.mount = 1, .ops = kRead, .after = 0}}}},
      {{.name = "AWriterBetweenReaders",
        .processes = {{.ops = kWrite},
                      {.ops = kRead, .after = 0},
                      {.ops = kWrite, .after = 0},
                      {.ops = kRead, .after = 0}}}},
      {{.name = "AThreadClosesWhileAnotherWaits",
        .mounts = 2,
        .processes = {{.ops = kWrite},
                      {.mount = 1, .ops = kWrite},
                      {.mount = 1, .ops = {close()}, .owner_of = 1}}},
       true},
      {{.name = "Deadlock",
        .mounts = 2,
        .shards = 2,
        .processes = {{.ops = kOneThenTwo}, {.mount = 1, .ops = kTwoThenOne}}}},
      {{.name = "DeadlockAndASignal",
        .shards = 2,
        .processes = {{.ops = kOneThenTwo, .interrupted = 1}, {.ops = kTwoThenOne}}},
       true},
      {{.name = "TwoReadersUpgrade",
        .mounts = 2,
        .processes = {{.ops = kReadThenWrite}, {.mount = 1, .ops = kReadThenWrite}}},
       true},
      {{.name = "TheFirstBlockerGoesAndACycleCloses",
        .mounts = 2,
        .processes = {{.ops = kInTheWayFirst},
                      {.mount = 1, .ops = kInTheWayThen, .after = 0},
                      {.mount = 1, .ops = kOverBoth, .after = 0}}}},
      {{.name = "TheHoldersDaemonDies",
        .mounts = 2,
        .processes = {{.mount = 1, .ops = kWrite}, {.ops = kWrite}},
        .killed = 1}},
      {{.name = "AWaitersDaemonDies",
        .mounts = 2,
        .processes = {{.ops = kWrite}, {.mount = 1, .ops = kWrite, .after = 0}},
        .killed = 1},
       true},
      {{.name = "ADaemonDiesThatGrantsToAnother",
        .mounts = 3,
        .processes = {{.mount = 1, .ops = kWrite}, {.mount = 2, .ops = kWrite, .after = 0}},
        .killed = 1}},
      {{.name = "TwoReapADaemonAtOnce",
        .mounts = 3,
        .processes = {{.mount = 1, .ops = {lock(), await(1, 1), unlock()}},
                      {.mount = 2, .ops = kWrite, .after = 0}},
        .killed = 1,
        .killed_beside = 1,
        .all_reap = true}},
      {{.name = "ADaemonDiesAndWhatItGrantsIsInterrupted",
        .mounts = 2,
        .processes = {{.mount = 1, .ops = kWrite}, {.ops = kWrite, .interrupted = 0, .after = 0}},
        .killed = 1}},
      {{.name = "TheMiddleOfAQueueDies",
        .mounts = 2,
        .processes = {{.ops = kWrite},
                      {.mount = 1, .ops = kWrite, .after = 0},
                      {.ops = kWrite, .after = 0}},
        .killed = 1}},
      {{.name = "ADaemonDiesThatWouldHaveFoundACycle",
        .mounts = 2,
        .processes = {{.mount = 1, .ops = kInTheWayFirst},
                      {.ops = kInTheWayThen, .after = 0},
                      {.ops = kOverBoth, .after = 1}},
        .killed = 1,
        .killed_beside = 2}},
  };
  return all;
}

std::vector<Case> affordable() {
  std::vector<Case> all = cases();
  if (kSanitized) std::erase_if(all, [](const Case& one) { return !one.small; });
  return all;
}

void print(const Explored& all) {
  std::printf("%llu states, %.3g interleavings, %llu steps; answers:",
              static_cast<unsigned long long>(all.states), all.interleavings,
              static_cast<unsigned long long>(all.steps));
  for (const std::string& answers : all.answers) std::printf(" [%s]", answers.c_str());
  std::printf("\n");
}

class WaitModel : public ::testing::TestWithParam<Case> {};

TEST_P(WaitModel, EveryOrderEndsWell) {
  const Explored all = explore(GetParam().scenario);
  EXPECT_EQ(all.wrong, "");
  print(all);
}

INSTANTIATE_TEST_SUITE_P(All, WaitModel, ::testing::ValuesIn(affordable()),
                         [](const auto& one) { return one.param.scenario.name; });

const Scenario& named(const std::string& name) {
  return std::find_if(cases().begin(), cases().end(),
                      [&](const Case& one) { return one.scenario.name == name; })
      ->scenario;
}

// Recognising states must not hide anything: every single interleaving, one after the other.
TEST(WaitModel, RecognisingStatesHidesNothing) {
  for (const char* name : {"OneMountAndASignal", "TheHolderStaysAndTheWaiterIsInterrupted"}) {
    if (kSanitized && named(name).mounts > 1) continue;
    const Explored pruned = explore(named(name));
    const Explored full = explore(named(name), Bug::kNone, false);
    EXPECT_EQ(full.wrong, "");
    EXPECT_EQ(full.interleavings, pruned.interleavings) << name;
    EXPECT_EQ(full.answers, pruned.answers) << name;
    EXPECT_GT(full.states, 10 * pruned.states) << name;
  }
}

struct Planted {
  Bug bug;
  const char* scenario;
  const char* found;  // how it shows
};
std::string text(Bug bug) { return std::to_string(static_cast<int>(bug)); }

class WaitModelFinds : public ::testing::TestWithParam<Planted> {};

TEST_P(WaitModelFinds, APlantedBug) {
  const Explored all = explore(named(GetParam().scenario), GetParam().bug);
  EXPECT_NE(all.wrong.find(GetParam().found), std::string::npos) << all.wrong;
}

INSTANTIATE_TEST_SUITE_P(
    Bugs, WaitModelFinds,
    ::testing::Values(
        Planted{Bug::kDropsEarlyGrant, "OneMountAndASignal", "for good"},
        Planted{Bug::kDropsEarlyInterrupt, "TheHolderStaysAndTheWaiterIsInterrupted", "for good"},
        Planted{Bug::kCancelAlwaysWins, "OneMountAndASignal", "that nobody was told of"},
        Planted{Bug::kDoesNotRing, "TwoMountsAndASignal", "for good"},
        Planted{Bug::kReaperDoesNotRing, "ADaemonDiesThatGrantsToAnother", "for good"},
        Planted{Bug::kReaperDoesNotAsk, "ADaemonDiesThatWouldHaveFoundACycle", "for good"},
        Planted{Bug::kForgetsBlindly, "ThreeInTurn", "for good"},
        Planted{Bug::kSeenTooLate, "TwoGrantsForOneDaemon", "for good"},
        Planted{Bug::kNewestFirst, "ThreeInTurn", "served first"},
        Planted{Bug::kSearchesNothing, "Deadlock", "for good"}),
    [](const auto& planted) { return "Bug" + text(planted.param.bug); });

}  // namespace
}  // namespace latchfs::test
