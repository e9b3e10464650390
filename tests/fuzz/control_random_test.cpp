// Random and mutated bytes through every parser of the control tree: fixed seeds, and one fresh a
// run. LATCHFS_SEED=N replays one.
#include <gtest/gtest.h>

#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "fuzz/control_targets.h"

namespace latchfs::fuzz {
namespace {

class Mutator {
 public:
  explicit Mutator(std::uint64_t seed) : random_{seed} {}

  std::string next(std::string_view sample) {
    std::string text{below(8) == 0 ? std::string{} : std::string{sample}};
    if (text.empty()) {
      const std::size_t length = below(64);
      for (std::size_t i = 0; i < length; ++i) text += static_cast<char>(below(256));
    }
    for (std::size_t n = 1 + below(4); n > 0; --n) mutate(text);
    return text;
  }

 private:
  std::size_t below(std::size_t n) { return static_cast<std::size_t>(random_() % n); }

  void mutate(std::string& text) {
    static const std::vector<std::string> tokens{"%",
                                                 "%2F",
                                                 "%00",
                                                 "%zz",
                                                 "&",
                                                 "=",
                                                 "+",
                                                 "\"",
                                                 "\\",
                                                 "{",
                                                 "}",
                                                 "[",
                                                 "]",
                                                 ",",
                                                 ":",
                                                 "null",
                                                 "true",
                                                 "-1",
                                                 "1e9",
                                                 "0",
                                                 "ref",
                                                 "path",
                                                 "tags",
                                                 "revert",
                                                 "\n/",
                                                 "\\u0000",
                                                 "\\ud8",
                                                 "\xFF",
                                                 "\n",
                                                 "\r",
                                                 " ",
                                                 "..",
                                                 "/",
                                                 "//",
                                                 "?",
                                                 "offset",
                                                 "size=",
                                                 "18446744073709551615",
                                                 "18446744073709551616",
                                                 "9223372036854775808",
                                                 "9223372036854775807",
                                                 std::string(1, '\0'),
                                                 std::string(300, 'x'),
                                                 std::string(2100, '{')};
    const std::size_t at = below(text.size() + 1);
    switch (below(7)) {
      case 0:
        text.insert(at, tokens[below(tokens.size())]);
        break;
      case 1:
        text.erase(at, 1 + below(8));
        break;
      case 2:
        if (at < text.size()) text[at] = static_cast<char>(below(256));
        break;
      case 3:
        text.resize(at);
        break;
      case 4:
        text.insert(at, text.substr(below(text.size() + 1), below(40)));
        break;
      case 5:
        text.replace(at, below(8), tokens[below(tokens.size())]);
        break;
      default:
        if (at < text.size()) text[at] = static_cast<char>(text[at] ^ (1 << below(8)));
        break;
    }
  }

  std::mt19937_64 random_;
};

std::vector<std::uint64_t> seeds() {
  if (const char* one = std::getenv("LATCHFS_SEED")) return {std::strtoull(one, nullptr, 10)};
  return {1, 2, 3, 20261121, std::random_device{}()};
}

class ControlRandom : public ::testing::TestWithParam<Target> {};

TEST_P(ControlRandom, AnyBytes) {
  const Target& target = GetParam();
  target.run(target.sample);
  target.run("");
  // The whole tree is slower than a parser.
  const int rounds = target.name.starts_with("tree") ? 200 : 3000;
  for (const std::uint64_t seed : seeds()) {
    Mutator mutator{seed};
    for (int i = 0; i < rounds; ++i) {
      const std::string bytes = mutator.next(target.sample);
      try {
        target.run(bytes);
      } catch (const Broken& broken) {
        FAIL() << broken.what() << "; LATCHFS_SEED=" << seed << " round " << i << ": "
               << ::testing::PrintToString(bytes);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Targets, ControlRandom,
                         ::testing::ValuesIn(targets().begin(), targets().end()),
                         [](const auto& test) { return std::string{test.param.name}; });

}  // namespace
}  // namespace latchfs::fuzz
