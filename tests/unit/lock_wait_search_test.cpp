// The deadlock search by itself, its steps counted: each owner once, the nearest first, and an end.
#include <gtest/gtest.h>

#include <map>

#include "lock/wait_search.h"

namespace latchfs::lock {
namespace {

constexpr std::uint64_t kMax = WaitSearch::kMaxFollowed;

struct Graph {
  std::map<std::uint64_t, std::vector<std::uint64_t>> waits_for;
  std::uint64_t asked = 0;
  std::uint64_t others = 0;  // looked at beside each owner's own

  bool reaches(WaitSearch& search, std::uint64_t to) {
    return search.reaches({1, to}, [&](const WaitNode& of, std::vector<WaitNode>& out) {
      ++asked;
      for (const std::uint64_t blocker : waits_for[of.second]) out.emplace_back(1, blocker);
      return out.size() + others;
    });
  }
};

Graph chain(std::uint64_t owners) {
  Graph graph;
  for (std::uint64_t i = 1; i < owners; ++i) graph.waits_for[i] = {i + 1};
  return graph;
}

TEST(WaitSearch, FollowsAChainToItsEnd) {
  Graph graph = chain(1000);
  WaitSearch search{{1, 1}};
  EXPECT_TRUE(graph.reaches(search, 1)) << "itself";
  EXPECT_TRUE(graph.reaches(search, 1000));
  EXPECT_EQ(search.followed(), 999u);
  EXPECT_FALSE(graph.reaches(search, 1001));
  EXPECT_EQ(graph.asked, 1000u);
}

TEST(WaitSearch, GoesOnWhereTheLastQuestionEnded) {
  Graph graph = chain(1000);
  WaitSearch search{{1, 1}};
  EXPECT_TRUE(graph.reaches(search, 500));
  EXPECT_TRUE(graph.reaches(search, 300));
  EXPECT_EQ(graph.asked, 499u);
  EXPECT_TRUE(graph.reaches(search, 501));
  EXPECT_EQ(graph.asked, 500u);
}

TEST(WaitSearch, ALongChainIsLeftUnfinished) {
  Graph graph = chain(10'000);
  WaitSearch search{{1, 1}};
  EXPECT_FALSE(graph.reaches(search, 10'000));
  EXPECT_EQ(search.followed(), kMax);
  EXPECT_FALSE(graph.reaches(search, kMax + 2));
  EXPECT_TRUE(graph.reaches(search, kMax + 1)) << "the last that the limit lets it reach";
  EXPECT_EQ(graph.asked, kMax);
}

// Owners that each wait, by several threads, for all of the next layer: paths double with each
// layer, owners do not.
TEST(WaitSearch, NobodyIsFollowedTwice) {
  Graph graph;
  for (std::uint64_t layer = 0; layer < 50; ++layer) {
    for (const std::uint64_t i : {0, 1}) {
      graph.waits_for[2 * layer + i] = {2 * layer + 2, 2 * layer + 3};
    }
  }
  WaitSearch search{{1, 0}};
  EXPECT_FALSE(graph.reaches(search, 1'000'000));
  EXPECT_EQ(graph.asked, 101u);
  EXPECT_EQ(search.followed(), 198u);
}

TEST(WaitSearch, AShortCycleIsFoundBesideALongChain) {
  Graph graph = chain(10'000);
  graph.waits_for[1] = {2, 20'000};
  graph.waits_for[20'000] = {20'001};
  WaitSearch search{{1, 1}};
  EXPECT_TRUE(graph.reaches(search, 20'001));
  EXPECT_LT(search.followed(), 10u);
}

TEST(WaitSearch, LookingAtVeryManyEndsTheSearch) {
  Graph graph = chain(1000);
  graph.others = 99;
  WaitSearch search{{1, 1}};
  EXPECT_FALSE(graph.reaches(search, 1000));
  EXPECT_EQ(graph.asked, WaitSearch::kMaxLookedAt / 100 + 1);
}

TEST(WaitSearch, OneOwnersTenThousandRequestsEndTheSearch) {
  Graph graph;
  for (std::uint64_t i = 0; i < 10'000; ++i) graph.waits_for[1].push_back(2 + i);
  WaitSearch search{{1, 1}};
  EXPECT_FALSE(graph.reaches(search, 20'000));
  EXPECT_EQ(graph.asked, 1u);
}

}  // namespace
}  // namespace latchfs::lock
