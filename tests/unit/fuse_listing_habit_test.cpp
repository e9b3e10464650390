#include <gtest/gtest.h>

#include "fuse/listing_habit.h"

namespace latchfs::fuse {
namespace {

constexpr std::int64_t kNow = 1'000'000'000'000;

void look_up(ListingHabit& habit, std::uint64_t directory, std::uint32_t times) {
  for (std::uint32_t i = 0; i < times; ++i) habit.looked_up(directory, [] { return kNow; });
}

TEST(ListingHabit, AttributesAreWantedOnceEnoughNamesWereLookedUp) {
  ListingHabit habit;
  habit.told_names(7);
  look_up(habit, 7, ListingHabit::kEnough - 1);
  EXPECT_FALSE(habit.wants_attributes(kNow));
  look_up(habit, 7, 1);
  EXPECT_TRUE(habit.wants_attributes(kNow));
  EXPECT_TRUE(habit.wants_attributes(kNow + ListingHabit::kLastsNs - 1));
  EXPECT_FALSE(habit.wants_attributes(kNow + ListingHabit::kLastsNs));
}

TEST(ListingHabit, LookingUpWhatWasNotListedSaysNothing) {
  ListingHabit habit;
  look_up(habit, 7, 10 * ListingHabit::kEnough);
  habit.told_names(7);
  look_up(habit, 8, 10 * ListingHabit::kEnough);
  EXPECT_FALSE(habit.wants_attributes(kNow));
}

TEST(ListingHabit, EachListingCountsAnew) {
  ListingHabit habit;
  for (int i = 0; i < 10; ++i) {
    habit.told_names(7);
    look_up(habit, 7, ListingHabit::kEnough - 1);
  }
  EXPECT_FALSE(habit.wants_attributes(kNow));
}

}  // namespace
}  // namespace latchfs::fuse
