#include <gtest/gtest.h>

#include <atomic>
#include <set>
#include <thread>
#include <vector>

#include "fuse/handle_table.h"

namespace latchfs::fuse {
namespace {

TEST(HandleTable, FindsByNumber) {
  HandleTable<int> table;
  const std::uint64_t a = table.insert(std::make_shared<int>(1));
  const std::uint64_t b = table.insert(std::make_shared<int>(2));
  EXPECT_NE(a, b);
  EXPECT_NE(a, 0u);
  EXPECT_EQ(*table.find(a), 1);
  EXPECT_EQ(*table.find(b), 2);
  EXPECT_EQ(table.size(), 2u);
}

TEST(HandleTable, StaleAndInventedNumbersFindNothing) {
  HandleTable<int> table;
  const std::uint64_t a = table.insert(std::make_shared<int>(1));
  EXPECT_EQ(*table.remove(a), 1);
  EXPECT_EQ(table.find(a), nullptr);
  EXPECT_EQ(table.remove(a), nullptr);
  for (std::uint64_t n = 0; n < 64; ++n) {
    EXPECT_EQ(table.find(n), nullptr);
    EXPECT_EQ(table.find(n << 32), nullptr);
    EXPECT_EQ(table.find(~n), nullptr);
  }
}

TEST(HandleTable, ANumberIsNotUsedAgain) {
  HandleTable<int> table;
  std::set<std::uint64_t> seen;
  for (int i = 0; i < 1000; ++i) {
    const std::uint64_t fh = table.insert(std::make_shared<int>(i));
    EXPECT_TRUE(seen.insert(fh).second);
    table.remove(fh);
  }
  EXPECT_EQ(table.size(), 0u);
}

TEST(HandleTable, RemovedContentLivesAsLongAsItIsUsed) {
  HandleTable<int> table;
  const std::uint64_t fh = table.insert(std::make_shared<int>(7));
  const std::shared_ptr<int> held = table.find(fh);
  table.remove(fh);
  EXPECT_EQ(*held, 7);
}

TEST(HandleTable, ManyThreadsAtOnce) {
  HandleTable<std::uint64_t> table;
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (std::uint64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&table, &wrong, t] {
      std::vector<std::pair<std::uint64_t, std::uint64_t>> mine;
      for (std::uint64_t i = 0; i < 5000; ++i) {
        const std::uint64_t value = t << 32 | i;
        mine.emplace_back(table.insert(std::make_shared<std::uint64_t>(value)), value);
        const auto& [fh, expected] = mine[i * 7 % mine.size()];
        const auto found = table.find(fh);
        if (!found || *found != expected) ++wrong;
      }
      for (const auto& [fh, expected] : mine) {
        const auto gone = table.remove(fh);
        if (!gone || *gone != expected) ++wrong;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_EQ(table.size(), 0u);
}

}  // namespace
}  // namespace latchfs::fuse
