#include <gtest/gtest.h>

#include "fuse/recent_listings.h"

namespace latchfs::fuse {
namespace {

constexpr std::int64_t kSecond = 1'000'000'000;

TEST(RecentListings, RemembersForAsLongAsAskedAbout) {
  RecentListings listings;
  const std::int64_t now = 1'000'000 * kSecond;
  EXPECT_FALSE(listings.within(7, now, kSecond));
  listings.note(7, now);
  EXPECT_TRUE(listings.within(7, now, kSecond));
  EXPECT_TRUE(listings.within(7, now + kSecond - 1'000'000, kSecond));
  EXPECT_FALSE(listings.within(7, now + kSecond, kSecond));
  EXPECT_FALSE(listings.within(7, now + 100 * kSecond, kSecond));
  // Who may believe nothing was never told anything that counts.
  EXPECT_FALSE(listings.within(7, now, 0));
}

TEST(RecentListings, TakesNoneForAnother) {
  RecentListings listings;
  const std::int64_t now = 5 * kSecond;
  for (std::uint64_t node = 0; node < 1000; ++node) listings.note(node, now);
  for (std::uint64_t node = 1000; node < 100'000; ++node) {
    EXPECT_FALSE(listings.within(node, now, kSecond)) << node;
  }
}

TEST(RecentListings, TheEmptyTableKnowsNobodyAtTheClocksStart) {
  const RecentListings listings;
  for (std::uint64_t node = 0; node < 10'000; ++node) {
    EXPECT_FALSE(listings.within(node, 1, kSecond)) << node;
  }
}

}  // namespace
}  // namespace latchfs::fuse
