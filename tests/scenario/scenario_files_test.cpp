// Every scenario of every *.scn file, on a native directory, on a mount, and on two mounts of one
// directory. Words: tests/support/lock_step.h. "= NAME" begins a scenario, "#" a comment.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "support/lock_compare.h"
#include "support/lock_script.h"
#include "support/mount_ground.h"

namespace latchfs::locktest {
namespace {

struct Line {
  std::string where;  // FILE:LINE
  Step step;
  std::string expected;  // empty: anything
};

struct Scenario {
  std::string file;
  std::string name;
  std::vector<Line> lines;
};

std::string trimmed(const std::string& text) {
  const std::size_t first = text.find_first_not_of(" \t");
  if (first == std::string::npos) return {};
  return text.substr(first, text.find_last_not_of(" \t") - first + 1);
}

// Words that gtest accepts as a name.
std::string test_name(std::string text) {
  std::replace_if(
      text.begin(), text.end(), [](unsigned char c) { return std::isalnum(c) == 0; }, '_');
  return text;
}

Line parse_line(const std::string& where, const std::string& text) {
  const std::size_t arrow = text.find("->");
  const auto step = parse_step(trimmed(text.substr(0, arrow)));
  if (!step) throw std::runtime_error(where + ": no step: " + text);
  return {where, *step, arrow == std::string::npos ? "" : trimmed(text.substr(arrow + 2))};
}

std::vector<Scenario> read_scenarios(const std::filesystem::path& path) {
  std::vector<Scenario> scenarios;
  std::ifstream in{path};
  int number = 0;
  for (std::string raw; std::getline(in, raw);) {
    ++number;
    const std::string text = trimmed(raw.substr(0, raw.find('#')));
    const std::string where = path.filename().string() + ":" + std::to_string(number);
    if (text.empty()) continue;
    if (text[0] == '=') {
      scenarios.push_back({path.stem(), trimmed(text.substr(1)), {}});
    } else if (scenarios.empty()) {
      throw std::runtime_error(where + ": a step before the first = NAME");
    } else {
      scenarios.back().lines.push_back(parse_line(where, text));
    }
  }
  return scenarios;
}

// The kernel's outcomes must be the ones written down.
class OnKernel : public testing::Test {
 public:
  explicit OnKernel(Scenario scenario) : scenario_{std::move(scenario)} {}
  void TestBody() override {
    World world{native_ground()};
    for (const Line& line : scenario_.lines) {
      const std::string got = to_string(world.run(line.step));
      if (got == "unlisted" || line.expected.empty()) continue;
      ASSERT_EQ(got, line.expected) << line.where << ": " << to_string(line.step);
    }
  }

 private:
  Scenario scenario_;
};

// A mount's must be the kernel's, but for deviations().
class OnMount : public testing::Test {
 public:
  OnMount(Scenario scenario, unsigned mounts) : scenario_{std::move(scenario)}, mounts_{mounts} {}
  void TestBody() override {
    Ground ground = mount_ground(mounts_);
    run_on(ground);
    EXPECT_EQ(to_string(aftermath(ground)), "free");
  }

 private:
  void run_on(const Ground& ground) const {
    World native{native_ground()};
    World mount{ground};
    for (const Line& line : scenario_.lines) {
      const Outcome want = native.run(line.step);
      const Outcome got = mount.run(line.step);
      ASSERT_TRUE(agree(line.step, want, got))
          << line.where << ": " << to_string(line.step) << "\n  kernel: " << to_string(want)
          << "\n  mount:  " << to_string(got);
    }
  }

  Scenario scenario_;
  unsigned mounts_;
};

void register_scenario(const Scenario& s) {
  const std::string name = test_name(s.file + "_" + s.name);
  testing::RegisterTest("ScenarioOnKernel", name.c_str(), nullptr, nullptr, __FILE__, __LINE__,
                        [s]() -> testing::Test* { return new OnKernel(s); });
  testing::RegisterTest("ScenarioOnMount", name.c_str(), nullptr, nullptr, __FILE__, __LINE__,
                        [s]() -> testing::Test* { return new OnMount(s, 1); });
  testing::RegisterTest("ScenarioOnTwoMounts", name.c_str(), nullptr, nullptr, __FILE__, __LINE__,
                        [s]() -> testing::Test* { return new OnMount(s, 2); });
}

}  // namespace
}  // namespace latchfs::locktest

int main(int argc, char** argv) {
  using namespace latchfs::locktest;  // NOLINT: main only starts what is above
  std::size_t count = 0;
  try {
    for (const auto& entry : std::filesystem::directory_iterator{SCENARIO_DIR}) {
      if (entry.path().extension() != ".scn") continue;
      for (const Scenario& scenario : read_scenarios(entry.path())) {
        register_scenario(scenario);
        ++count;
      }
    }
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 2;
  }
  if (count == 0) return 2;
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
