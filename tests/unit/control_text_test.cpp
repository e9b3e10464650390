#include <gtest/gtest.h>

#include "control/text.h"
#include "support/control_world.h"

namespace latchfs::control {
namespace {

TEST(JsonString, PlainTextStaysAsItIs) {
  EXPECT_EQ(json_string(""), R"("")");
  EXPECT_EQ(json_string("/db/app.sqlite"), R"("/db/app.sqlite")");
  EXPECT_EQ(json_string("Größe 表 🔒"), "\"Größe 表 🔒\"");
}

TEST(JsonString, QuotesAndControlsAreEscaped) {
  EXPECT_EQ(json_string("a\"b\\c"), R"("a\"b\\c")");
  EXPECT_EQ(json_string("a\nb\tc\rd"), R"("a\nb\tc\rd")");
  EXPECT_EQ(json_string(std::string_view{"\0\x01\x1f\x7f", 4}), R"("\u0000\u0001\u001f\u007f")");
  EXPECT_EQ(json_string("\xC2\x9B"
                        "31m"),
            R"("\u009b31m")");
}

TEST(JsonString, BytesThatAreNotUtf8BecomeReplacementCharacters) {
  EXPECT_EQ(json_string("a\xFFz"), "\"a\uFFFDz\"");
  EXPECT_EQ(json_string("\xC0\xAF"), "\"\uFFFD\uFFFD\"");                      // overlong
  EXPECT_EQ(json_string("\xED\xA0\x80"), "\"\uFFFD\uFFFD\uFFFD\"");            // surrogate
  EXPECT_EQ(json_string("\xF4\x90\x80\x80"), "\"\uFFFD\uFFFD\uFFFD\uFFFD\"");  // too high
  EXPECT_EQ(json_string("\xE2\x82"), "\"\uFFFD\uFFFD\"");                      // cut short
}

TEST(JsonString, EveryPairOfBytesIsValidJson) {
  for (int a = 0; a < 256; ++a) {
    for (int b = 0; b < 256; ++b) {
      const std::string bytes{static_cast<char>(a), static_cast<char>(b)};
      const std::string text = json_string(bytes);
      ASSERT_TRUE(testing::is_json(text)) << text;
      ASSERT_EQ(text.find('\n'), std::string::npos);
    }
  }
}

TEST(ParseDecimal, TakesDigitsOnly) {
  EXPECT_EQ(parse_decimal("0"), 0U);
  EXPECT_EQ(parse_decimal("007"), 7U);
  EXPECT_EQ(parse_decimal("18446744073709551615"), UINT64_MAX);
  for (const auto* bad : {"", " 1", "1 ", "+1", "-1", "0x1", "1e3", "18446744073709551616"}) {
    EXPECT_EQ(parse_decimal(bad), std::nullopt) << bad;
  }
  EXPECT_EQ(parse_decimal32("4294967295"), UINT32_MAX);
  EXPECT_EQ(parse_decimal32("4294967296"), std::nullopt);
}

TEST(UrlDecode, DecodesEscapesAndPlus) {
  EXPECT_EQ(url_decode(""), "");
  EXPECT_EQ(url_decode("%2Fa%2fb"), "/a/b");
  EXPECT_EQ(url_decode("a+b%2Bc"), "a b+c");
  EXPECT_EQ(url_decode("%FF"), "\xFF");
}

TEST(UrlDecode, RefusesBadEscapesAndNul) {
  for (const auto* bad : {"%", "%2", "a%", "%zz", "%2g", "%%41", "%00", "a%00b"}) {
    EXPECT_EQ(url_decode(bad), std::nullopt) << bad;
  }
}

TEST(UrlEncode, GoesThereAndBack) {
  std::string all;
  for (int byte = 1; byte < 256; ++byte) all += static_cast<char>(byte);
  EXPECT_EQ(url_decode(url_encode(all)), all);
  EXPECT_EQ(url_encode("/a b+c&d=é"), "%2Fa%20b%2Bc%26d%3D%C3%A9");
}

}  // namespace
}  // namespace latchfs::control
