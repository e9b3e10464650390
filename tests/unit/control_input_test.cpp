// Requests as they come in: JSON completeness and the intake.
#include <gtest/gtest.h>

#include <ctime>

#include "control/intake.h"
#include "control/json_input.h"
#include "support/control_world.h"
#include "support/sanitized.h"

namespace latchfs::control {
namespace {

bool is_complete(std::string_view text) {
  return std::holds_alternative<Complete>(check_json(text));
}
bool is_incomplete(std::string_view text) {
  return std::holds_alternative<Incomplete>(check_json(text));
}
bool is_malformed(std::string_view text) {
  return std::holds_alternative<Malformed>(check_json(text));
}

TEST(CheckJson, EveryBeginningOfAnObjectIsIncomplete) {
  const std::string text =
      R"({"a": "x\"\u00e9\\ é🔒", "b": [1, -2.5e+10, true, false, null], "c": {"d": {}}, "e": ""})";
  ASSERT_TRUE(testing::is_json(text));
  for (std::size_t n = 0; n < text.size(); ++n) {
    EXPECT_TRUE(is_incomplete(text.substr(0, n))) << text.substr(0, n);
  }
  EXPECT_TRUE(is_complete(text));
  EXPECT_TRUE(is_complete(" " + text + "\n\t "));
}

TEST(CheckJson, WhatCannotBecomeJsonIsMalformed) {
  for (const auto* bad :
       {"}", "{]", "{\"a\" 1", "{\"a\": tru}", "{,", "{\"a\": 01", "{\"a\": \"\x01",
        "{\"a\": \"\\x", "{\"a\": \"\xFF", "{} x", "{}{", "{'a'"}) {
    EXPECT_TRUE(is_malformed(bad)) << bad;
  }
  EXPECT_TRUE(is_malformed(std::string_view{"{\"a\": \0", 7}));
  EXPECT_TRUE(is_malformed(std::string_view{"{}\0x", 4}));
}

TEST(CheckJson, DeepNestingIsNoProblem) {
  EXPECT_TRUE(is_incomplete(std::string(1'000'000, '[')));
  EXPECT_TRUE(is_complete(std::string(100'000, '[') + std::string(100'000, ']')));
}

TEST(FlatObject, TakesStringsAndWholeNumbers) {
  auto parsed = parse_flat_object(R"({"a": "x", "b": 18446744073709551615, "a": "", "": 0})");
  ASSERT_TRUE(std::holds_alternative<Members>(parsed));
  const Members expected{{"a", "x"}, {"b", "18446744073709551615"}, {"a", ""}, {"", "0"}};
  EXPECT_EQ(std::get<Members>(parsed), expected);
}

TEST(FlatObject, RefusesTheRestInWords) {
  const auto why = [](std::string_view text) {
    const auto parsed = parse_flat_object(text);
    const auto* bad = std::get_if<Malformed>(&parsed);
    return bad == nullptr ? std::string{} : bad->why;
  };
  EXPECT_EQ(why("{\"a\": null}"), "\"a\" is null, not a string");
  EXPECT_EQ(why("{\"a\": true}"), "\"a\" is true or false, not a string");
  EXPECT_EQ(why("{\"a\": -1}"), "\"a\" is a negative number, not a string");
  EXPECT_EQ(why("{\"a\": []}"), "\"a\" is an array, not a string");
  EXPECT_EQ(why("{\"a\": {}}"), "\"a\" is an object, not a string");
  for (const auto* bad :
       {"[]", "1", "\"x\"", "null", "{\"a\": 1.0}", "{\"a\": 18446744073709551616}", "{\"a\": 1e5}",
        "", "{", "{\"a\": \"x\"", "{}}"}) {
    EXPECT_NE(why(bad), "") << bad;
  }
}

// Feeds `text` in pieces of `chunk` bytes; what the last piece gave.
Intake::Taken feed(Intake& intake, std::string_view text, std::size_t chunk) {
  Intake::Taken last = Incomplete{};
  while (!text.empty()) {
    last = intake.add(text.substr(0, chunk));
    if (!std::holds_alternative<Incomplete>(last)) return last;
    text.remove_prefix(std::min(chunk, text.size()));
  }
  return last;
}

TEST(Intake, ChunksDoNotMatter) {
  const std::string object = R"({"a": "}\"{", "b": {"c": ["]"]}})";
  for (std::size_t chunk = 1; chunk <= object.size() + 3; ++chunk) {
    Intake intake;
    auto taken = feed(intake, " \n" + object, chunk);
    ASSERT_TRUE(std::holds_alternative<Intake::Request>(taken)) << chunk;
    EXPECT_EQ(std::get<Intake::Request>(taken).text, object);
    EXPECT_TRUE(std::get<Intake::Request>(taken).json);
    EXPECT_FALSE(intake.waiting());
  }
  for (std::size_t chunk = 1; chunk <= 12; ++chunk) {
    Intake intake;
    auto taken = feed(intake, "\n a=b&c=d \r\n", chunk);
    ASSERT_TRUE(std::holds_alternative<Intake::Request>(taken)) << chunk;
    EXPECT_EQ(std::get<Intake::Request>(taken).text, "a=b&c=d");
    EXPECT_FALSE(std::get<Intake::Request>(taken).json);
  }
}

TEST(Intake, FinishEndsTheQueryFormOnly) {
  Intake intake;
  EXPECT_TRUE(std::holds_alternative<Incomplete>(intake.finish()));
  intake.add("a=b");
  EXPECT_TRUE(intake.waiting());
  auto taken = intake.finish();
  ASSERT_TRUE(std::holds_alternative<Intake::Request>(taken));
  EXPECT_EQ(std::get<Intake::Request>(taken).text, "a=b");
  intake.add("{\"a\": 1");
  EXPECT_TRUE(std::holds_alternative<Malformed>(intake.finish()));
  EXPECT_TRUE(std::holds_alternative<Intake::Request>(intake.add("}"))) << "more came after all";
  EXPECT_FALSE(intake.waiting());
  intake.add("\n\n");
  EXPECT_TRUE(std::holds_alternative<Incomplete>(intake.finish())) << "after a request";
  Intake fresh;
  fresh.add("\n");
  EXPECT_TRUE(std::holds_alternative<Malformed>(fresh.finish())) << "an empty request";
}

TEST(Intake, TheLimitIsExact) {
  Intake intake;
  const std::string most = "a=" + std::string(Intake::kMaxRequest - 3, 'x') + "\n";
  EXPECT_TRUE(std::holds_alternative<Intake::Request>(intake.add(most)));
  EXPECT_TRUE(std::holds_alternative<Intake::TooLarge>(intake.add("a" + most)));
  EXPECT_TRUE(std::holds_alternative<Intake::TooLarge>(intake.add("a=b\n"))) << "the rest of it";
  EXPECT_TRUE(intake.waiting());
  EXPECT_TRUE(std::holds_alternative<Intake::TooLarge>(intake.finish()));
  EXPECT_FALSE(intake.waiting());
  EXPECT_TRUE(std::holds_alternative<Incomplete>(intake.add(most.substr(0, most.size() - 1))));
  EXPECT_TRUE(std::holds_alternative<Intake::TooLarge>(intake.add("xx")));
}

TEST(Intake, PathsInsteadOfTheQueryForm) {
  Intake intake{Intake::Short::kPaths};
  const auto text_of = [](const Intake::Taken& taken) {
    const auto* request = std::get_if<Intake::Request>(&taken);
    return request == nullptr ? std::string{"none"} : request->text;
  };
  EXPECT_EQ(text_of(intake.add("/a\n/b \n/c")), "/a\n/b \n");
  EXPECT_TRUE(intake.waiting());
  EXPECT_EQ(text_of(intake.add("{\"d")), "none") << "still the name that began";
  EXPECT_EQ(text_of(intake.finish()), "/c{\"d");
  EXPECT_FALSE(intake.waiting());
  auto object = intake.add("\n {\"a\": 1}\n");
  ASSERT_TRUE(std::holds_alternative<Intake::Request>(object)) << "JSON may be indented";
  EXPECT_TRUE(std::get<Intake::Request>(object).json);
  EXPECT_TRUE(std::holds_alternative<Malformed>(intake.add("a=b\n")));
  EXPECT_TRUE(std::holds_alternative<Malformed>(Intake{}.add("/a\n"))) << "not for release";
  EXPECT_EQ(text_of(intake.add("/" + std::string(Intake::kMaxRequest - 2, 'x') + "\n")).size(),
            Intake::kMaxRequest);
  EXPECT_TRUE(std::holds_alternative<Incomplete>(
      intake.add("/" + std::string(Intake::kMaxRequest - 1, 'x'))));
  EXPECT_TRUE(std::holds_alternative<Intake::TooLarge>(intake.add("\n")));
}

TEST(Intake, AMegabyteByteByByteIsNotParsedAMillionTimes) {
  // Its own time, not that of others on the machine.
  const auto used = [] {
    timespec now{};
    ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return now.tv_sec;
  };
  const auto begun = used();
  for (const char fill : {'}', ' ', 'x'}) {
    Intake intake;
    intake.add("{\"a\": \"");
    for (int i = 0; i < 1'000'000; ++i) intake.add({&fill, 1});
    EXPECT_TRUE(std::holds_alternative<Intake::Request>(intake.add("\"}")));
  }
  Intake query;
  query.add("a=");
  for (int i = 0; i < 1'000'000; ++i) query.add("x");
  Intake space;
  for (int i = 0; i < 2'000'000; ++i) space.add("\n");
  EXPECT_LT(used() - begun, test::kSanitized ? 120 : 30);
}

}  // namespace
}  // namespace latchfs::control
