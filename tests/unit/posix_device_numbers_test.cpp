#include <gtest/gtest.h>

#include <fstream>
#include <optional>
#include <random>
#include <set>
#include <sstream>

#include "posix/device_numbers.h"
#include "posix/devices.h"
#include "posix_scratch.h"

namespace latchfs::posix {
namespace {

class DeviceNumbersTest : public Scratch {
 protected:
  DeviceNumbers numbers(const std::string& source = "a", unsigned most = 511) {
    return DeviceNumbers{at("state"), source, most};
  }
  static std::optional<DeviceNumbers::Way> way_of(DeviceNumbers of, unsigned number) {
    const auto way = of.way_of(number);
    if (way) return *way;
    EXPECT_EQ(way.error(), errno_code(ESTALE));
    return std::nullopt;
  }
  // Of a daemon that has these already.
  static auto but(std::set<unsigned> taken) {
    return [taken = std::move(taken)](unsigned n) { return taken.count(n) == 0; };
  }
  std::string file() {
    for (const auto& entry : std::filesystem::directory_iterator{at("state")}) {
      return entry.path();
    }
    return "";
  }
  std::string text() {
    std::ostringstream all;
    all << std::ifstream{file()}.rdbuf();
    return all.str();
  }
};

TEST_F(DeviceNumbersTest, AreTheSameInTheNextDaemon) {
  EXPECT_EQ(*numbers().number_of({7, "x"}, but({})), 1u);
  EXPECT_EQ(*numbers().number_of({7, "a b\nc"}, but({1})), 2u);
  EXPECT_EQ(*numbers().number_of({7, "a b\nc"}, but({})), 2u);
  EXPECT_EQ(*numbers().number_of({7, "x"}, but({})), 1u);
  EXPECT_EQ(*numbers().number_of({8, "x"}, but({})), 3u);
  EXPECT_EQ(way_of(numbers(), 2), (DeviceNumbers::Way{7, "a b\nc"}));
  EXPECT_EQ(way_of(numbers(), 4), std::nullopt);
  // Another SOURCE's are its own.
  EXPECT_EQ(*numbers("b").number_of({9, "y"}, but({})), 1u);
}

TEST_F(DeviceNumbersTest, OfAWayThatIsNotKnownAreNotRemembered) {
  EXPECT_EQ(*numbers().number_of({7, "x"}, but({})), 1u);
  EXPECT_EQ(*numbers().number_of({}, but({})), 2u);
  EXPECT_EQ(way_of(numbers(), 2), std::nullopt);
}

// What is mounted there now is another file system than the daemon has under the number.
TEST_F(DeviceNumbersTest, GoToTheLastThatWasThere) {
  EXPECT_EQ(*numbers().number_of({7, "x"}, but({})), 1u);
  EXPECT_EQ(*numbers().number_of({7, "x"}, but({1})), 2u);
  EXPECT_EQ(*numbers().number_of({7, "x"}, but({})), 2u);
}

TEST_F(DeviceNumbersTest, AreBoundedTheOldestGivesWay) {
  for (unsigned i = 1; i < 8; ++i) {
    EXPECT_EQ(*numbers("a", 8).number_of({100 + i, "x"}, but({})), i);
  }
  EXPECT_EQ(*numbers("a", 8).number_of({200, "x"}, but({1})), 2u);
  EXPECT_EQ(way_of(numbers("a", 8), 2), (DeviceNumbers::Way{200, "x"}));
  EXPECT_EQ(*numbers("a", 8).number_of({101, "x"}, but({})), 1u);
  EXPECT_EQ(numbers("a", 8).number_of({300, "x"}, [](unsigned) { return false; }).error(),
            errno_code(EOVERFLOW));
  const std::string all = text();
  EXPECT_EQ(all.find('x'), std::string::npos) << all;  // names are in hexadecimal
}

// Whatever comes and goes (snapshots), the file does not grow for ever, and keeps the last ones.
TEST_F(DeviceNumbersTest, AreWrittenAnewWhenTheFileHasGrown) {
  const std::string name(255, 'n');
  std::string hex;
  for (int i = 0; i < 255; ++i) hex += "6e";
  constexpr std::uint64_t kMany = 1020;
  ASSERT_TRUE(numbers("a", 8).number_of({1, "x"}, but({})));
  {
    std::ofstream grown{file(), std::ios::app};
    for (std::uint64_t i = 1; i <= kMany; ++i) grown << 1 + i % 7 << ' ' << i << ' ' << hex << '\n';
  }
  ASSERT_GT(std::filesystem::file_size(file()), 500'000u);
  for (std::uint64_t i = kMany + 1; i <= kMany + 20; ++i) {
    ASSERT_TRUE(numbers("a", 8).number_of({i, name}, but({})));
  }
  EXPECT_LT(std::filesystem::file_size(file()), 20'000u);
  std::set<std::uint64_t> kept;
  for (unsigned n = 1; n < 8; ++n) kept.insert(way_of(numbers("a", 8), n).value().parent);
  for (std::uint64_t i = 0; i < 7; ++i) EXPECT_EQ(kept.count(kMany + 20 - i), 1u) << i;
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator{at("state")}, {}), 1);
}

TEST_F(DeviceNumbersTest, AreNotReadFromWhatOthersCanWrite) {
  EXPECT_EQ(*numbers().number_of({7, "x"}, but({})), 1u);
  ASSERT_EQ(::chmod(at("state").c_str(), 0777), 0);
  EXPECT_EQ(way_of(numbers(), 1), std::nullopt);
  EXPECT_EQ(*numbers().number_of({8, "y"}, but({})), 1u);  // of this daemon only
  ASSERT_EQ(::chmod(at("state").c_str(), 0700), 0);
  EXPECT_EQ(way_of(numbers(), 1), (DeviceNumbers::Way{7, "x"}));
  EXPECT_EQ(*(DeviceNumbers{"", "a", 511}).number_of({7, "x"}, but({})), 1u);
}

TEST_F(DeviceNumbersTest, SurviveWhateverIsInTheFile) {
  EXPECT_EQ(*numbers().number_of({7, "x"}, but({})), 1u);
  const std::string bad[] = {"2",
                             "2 7",
                             "2 7 ",
                             "2 7 7",
                             "2 7 2f",
                             "2 7 2e2e",
                             "2 7 00",
                             "0 7 78",
                             "511 7 78",
                             "2 0 78",
                             "-2 7 78",
                             "2 7 78zz",
                             "99999999999999999999 7 78",
                             std::string(2000, '7')};
  for (const auto& line : bad) {
    std::ofstream{file(), std::ios::app} << line << "\n";
    EXPECT_EQ(way_of(numbers(), 2), std::nullopt) << line;
  }
  std::ofstream{file(), std::ios::app} << "2 7 7";  // torn by a death
  EXPECT_EQ(*numbers().number_of({9, "z"}, but({1, 2})), 3u);
  EXPECT_EQ(way_of(numbers(), 3), (DeviceNumbers::Way{9, "z"}));
  std::mt19937 random{7};
  for (int i = 0; i < 300; ++i) {
    std::string noise;
    for (auto n = random() % 200; n != 0; --n) noise += "0123456789abcdef \n\0\xff"[random() % 20];
    std::ofstream{file(), std::ios::app} << noise;
    const auto number = numbers().number_of({50 + random() % 20, "n"}, but({}));
    ASSERT_TRUE(number);
    EXPECT_GE(*number, 1u);
    EXPECT_LT(*number, 511u);
  }
}

// Whoever has handles of what is not mounted, or makes them up, is not worth a look each time.
TEST_F(DeviceNumbersTest, AreNotAskedForAllTheTime) {
  constexpr std::int64_t kSecond = 1'000'000'000;
  EXPECT_EQ(*numbers().number_of({7, "x"}, but({})), 1u);
  Devices devices{false, numbers()};
  const auto error = [&](unsigned slot, std::int64_t now) {
    return devices.remembered(slot, now).error();
  };
  EXPECT_EQ(error(2, kSecond), errno_code(ESTALE));
  EXPECT_EQ(*numbers().number_of({8, "y"}, but({})), 2u);
  EXPECT_EQ(error(2, 2 * kSecond - 1), errno_code(ESTALE));
  EXPECT_EQ(devices.remembered(2, 2 * kSecond)->name, "y");

  EXPECT_EQ(devices.remembered(1, kSecond)->name, "x");
  EXPECT_EQ(devices.remembered(1, kSecond)->name, "x");
  devices.not_there(1, kSecond);
  EXPECT_EQ(error(1, kSecond), errno_code(ESTALE));
  EXPECT_EQ(devices.remembered(1, 2 * kSecond)->name, "x");
  EXPECT_EQ(error(Devices::kMost, kSecond), errno_code(ESTALE));
}

}  // namespace
}  // namespace latchfs::posix
