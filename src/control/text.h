// Text forms the control tree reads and writes: JSON strings, decimal numbers, URL encoding.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace latchfs::control {

// What is wrong with some input, in words for the person who wrote it.
struct Malformed {
  std::string why;
};

// Appends `bytes` as a JSON string, quotes included: valid JSON on one line whatever the bytes.
//
// A byte that is not part of well-formed UTF-8 becomes U+FFFD. Not a lone surrogate (as Python's
// surrogateescape would have it): strict parsers refuse those, so that one odd file name would
// make the whole listing unreadable for them. Who needs the exact name has file_id, which `ref`
// takes, and `ref=%XX…`, which can spell any byte. DEL and the C1 controls are escaped as well:
// listings are looked at with cat(1).
void append_json_string(std::string& out, std::string_view bytes);
[[nodiscard]] std::string json_string(std::string_view bytes);

void append_number(std::string& out, std::uint64_t value);
// A number as a JSON string.
void append_quoted_number(std::string& out, std::uint64_t value);

// Decimal digits only: no sign, no space, not empty, no overflow.
[[nodiscard]] std::optional<std::uint64_t> parse_decimal(std::string_view text);
[[nodiscard]] std::optional<std::uint32_t> parse_decimal32(std::string_view text);

// %XX and '+' (a space, as form encoders write it; they write a plus as %2B). Nothing for a bad
// escape and for a NUL, which no name can hold.
[[nodiscard]] std::optional<std::string> url_decode(std::string_view text);
// All but RFC 3986's unreserved characters becomes %XX.
[[nodiscard]] std::string url_encode(std::string_view bytes);

inline constexpr std::string_view kSpace = " \t\r\n";
// Without kSpace at both ends.
[[nodiscard]] std::string_view trim(std::string_view text);

}  // namespace latchfs::control
