#include "control/text.h"

#include <charconv>
#include <cstddef>

namespace latchfs::control {
namespace {

constexpr char kHexUpper[] = "0123456789ABCDEF";
constexpr char kHexLower[] = "0123456789abcdef";
constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

unsigned char at(std::string_view text, std::size_t i) {
  return static_cast<unsigned char>(text[i]);
}

bool is_continuation(std::string_view text, std::size_t i) {
  return i < text.size() && (at(text, i) & 0xC0) == 0x80;
}

// Length of the well-formed UTF-8 sequence at i (Unicode table 3-7: no overlong forms, no
// surrogates, nothing above U+10FFFF); 0 if there is none.
std::size_t sequence_length(std::string_view text, std::size_t i) {
  const unsigned char lead = at(text, i);
  if (lead < 0x80) return 1;
  if (lead < 0xC2 || lead > 0xF4) return 0;
  if (!is_continuation(text, i + 1)) return 0;
  if (lead < 0xE0) return 2;
  const unsigned char second = at(text, i + 1);
  if (!is_continuation(text, i + 2)) return 0;
  if (lead < 0xF0) {
    if (lead == 0xE0 && second < 0xA0) return 0;
    if (lead == 0xED && second > 0x9F) return 0;
    return 3;
  }
  if (!is_continuation(text, i + 3)) return 0;
  if (lead == 0xF0 && second < 0x90) return 0;
  if (lead == 0xF4 && second > 0x8F) return 0;
  return 4;
}

void append_u00(std::string& out, unsigned char code) {
  out += "\\u00";
  out += kHexLower[code >> 4];
  out += kHexLower[code & 15];
}

// Printable ASCII that JSON takes as it is.
bool is_plain(char ch) { return ch >= 0x20 && ch < 0x7F && ch != '"' && ch != '\\'; }

void append_escaped(std::string& out, char ch) {
  switch (ch) {
    case '"':
      out += "\\\"";
      break;
    case '\\':
      out += "\\\\";
      break;
    case '\n':
      out += "\\n";
      break;
    case '\t':
      out += "\\t";
      break;
    case '\r':
      out += "\\r";
      break;
    default:
      append_u00(out, static_cast<unsigned char>(ch));
      break;
  }
}

int hex_value(char ch) {
  if (ch >= '0' && ch <= '9') return ch - '0';
  if (ch >= 'a' && ch <= 'f') return ch - 'a' + 10;
  if (ch >= 'A' && ch <= 'F') return ch - 'A' + 10;
  return -1;
}

bool is_unreserved(char ch) {
  return (ch >= 'a' && ch <= 'z') || (ch >= 'A' && ch <= 'Z') || (ch >= '0' && ch <= '9') ||
         ch == '-' || ch == '.' || ch == '_' || ch == '~';
}

template <class Number>
std::optional<Number> parse_number(std::string_view text) {
  if (text.empty()) return std::nullopt;
  for (const char ch : text) {
    if (ch < '0' || ch > '9') return std::nullopt;
  }
  Number value = 0;
  const auto [end, ec] = std::from_chars(text.data(), text.data() + text.size(), value, 10);
  if (ec != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  return value;
}

}  // namespace

void append_json_string(std::string& out, std::string_view bytes) {
  out += '"';
  std::size_t i = 0;
  while (i < bytes.size()) {
    std::size_t plain = i;
    while (plain < bytes.size() && is_plain(bytes[plain])) ++plain;
    out.append(bytes, i, plain - i);
    i = plain;
    if (i == bytes.size()) break;
    const std::size_t length = sequence_length(bytes, i);
    if (length == 0) {
      out += kReplacement;
      ++i;
      continue;
    }
    if (length == 1) {
      append_escaped(out, bytes[i]);
    } else if (length == 2 && at(bytes, i) == 0xC2 && at(bytes, i + 1) < 0xA0) {
      append_u00(out, at(bytes, i + 1));
    } else {
      out += bytes.substr(i, length);
    }
    i += length;
  }
  out += '"';
}

std::string json_string(std::string_view bytes) {
  std::string out;
  append_json_string(out, bytes);
  return out;
}

void append_number(std::string& out, std::uint64_t value) {
  char digits[20];
  const auto [end, ec] = std::to_chars(digits, digits + sizeof digits, value);
  static_cast<void>(ec);
  out.append(digits, end);
}

void append_quoted_number(std::string& out, std::uint64_t value) {
  out += '"';
  append_number(out, value);
  out += '"';
}

std::optional<std::uint64_t> parse_decimal(std::string_view text) {
  return parse_number<std::uint64_t>(text);
}

std::optional<std::uint32_t> parse_decimal32(std::string_view text) {
  return parse_number<std::uint32_t>(text);
}

std::optional<std::string> url_decode(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (std::size_t i = 0; i < text.size(); ++i) {
    char ch = text[i];
    if (ch == '+') {
      ch = ' ';
    } else if (ch == '%') {
      if (text.size() - i < 3) return std::nullopt;
      const int high = hex_value(text[i + 1]);
      const int low = hex_value(text[i + 2]);
      if (high < 0 || low < 0) return std::nullopt;
      ch = static_cast<char>(high * 16 + low);
      i += 2;
    }
    if (ch == '\0') return std::nullopt;
    out += ch;
  }
  return out;
}

std::string url_encode(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size());
  for (const char ch : bytes) {
    if (is_unreserved(ch)) {
      out += ch;
      continue;
    }
    const auto byte = static_cast<unsigned char>(ch);
    out += '%';
    out += kHexUpper[byte >> 4];
    out += kHexUpper[byte & 15];
  }
  return out;
}

std::string_view trim(std::string_view text) {
  const auto first = text.find_first_not_of(kSpace);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kSpace) - first + 1);
}

}  // namespace latchfs::control
