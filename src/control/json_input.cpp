#include "control/json_input.h"

#include <fmt/core.h>

#include <nlohmann/json.hpp>
#include <optional>

namespace latchfs::control {
namespace {

using Json = nlohmann::json;

// What both handlers below have in common: a refusal of everything, and where the parser stopped.
class Handler : public nlohmann::json_sax<Json> {
 public:
  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, const string_t&) override { return true; }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }
  bool start_object(std::size_t) override { return true; }
  bool key(string_t&) override { return true; }
  bool end_object() override { return true; }
  bool start_array(std::size_t) override { return true; }
  bool end_array() override { return true; }
  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::detail::exception& error) override {
    stopped_at_ = position;
    error_ = error.what();
    // "[json.exception.parse_error.101] parse error at line 1, column 2: …"
    if (const auto text = error_.find("] "); text != std::string::npos) error_.erase(0, text + 2);
    // It quotes what it read last in full: that may be a string of a megabyte.
    constexpr std::size_t kShown = 400;
    if (error_.size() > kShown) error_.replace(kShown, std::string::npos, "…");
    return false;
  }

  // Bytes the parser had taken when it gave up, the end of input counting as one.
  std::size_t stopped_at() const { return stopped_at_; }
  const std::string& error() const { return error_; }

 protected:
  bool refuse(std::string why) {
    error_ = std::move(why);
    return false;
  }

 private:
  std::size_t stopped_at_{};
  std::string error_;
};

class FlatObject final : public Handler {
 public:
  bool null() override { return wrong_value("null"); }
  bool boolean(bool) override { return wrong_value("true or false"); }
  bool number_integer(number_integer_t) override { return wrong_value("a negative number"); }
  bool number_unsigned(number_unsigned_t value) override { return take(std::to_string(value)); }
  bool number_float(number_float_t, const string_t&) override {
    return wrong_value("not a whole number below 2^64");
  }
  bool string(string_t& value) override { return take(std::move(value)); }
  bool start_object(std::size_t) override {
    if (inside_) return wrong_value("an object");
    inside_ = true;
    return true;
  }
  bool key(string_t& name) override {
    key_ = std::move(name);
    return true;
  }
  bool start_array(std::size_t) override { return wrong_value("an array"); }

  Members& members() { return members_; }

 private:
  bool take(std::string value) {
    if (!inside_) return wrong_value("a single value");
    members_.emplace_back(std::move(key_), std::move(value));
    return true;
  }
  bool wrong_value(std::string_view what) {
    if (!inside_) return refuse(fmt::format("the request is {}, not an object", what));
    return refuse(fmt::format("{} is {}, not a string", json_string(key_.substr(0, 64)), what));
  }

  bool inside_{};
  std::string key_;
  Members members_;
};

class Teller final : public Handler {
 public:
  using Kind = JsonReader::Kind;
  explicit Teller(JsonReader& reader) : reader_{reader} {}

  bool null() override { return tell(Kind::kNull); }
  bool boolean(bool value) override { return tell(value ? Kind::kTrue : Kind::kFalse); }
  bool number_integer(number_integer_t) override { return tell(Kind::kNumber); }
  bool number_unsigned(number_unsigned_t) override { return tell(Kind::kNumber); }
  bool number_float(number_float_t, const string_t&) override { return tell(Kind::kNumber); }
  bool string(string_t& value) override { return tell(Kind::kString, std::move(value)); }
  bool start_object(std::size_t) override { return tell(Kind::kObject); }
  bool key(string_t& name) override { return go_on(reader_.member(std::move(name))); }
  bool end_object() override { return go_on(reader_.end()); }
  bool start_array(std::size_t) override { return tell(Kind::kArray); }
  bool end_array() override { return go_on(reader_.end()); }

 private:
  bool tell(Kind kind, std::string text = {}) {
    return go_on(reader_.value(kind, std::move(text)));
  }
  bool go_on(std::optional<Malformed> bad) { return !bad || refuse(std::move(bad->why)); }

  JsonReader& reader_;
};

// The library takes a NUL for the end of input.
std::optional<Malformed> find_nul(std::string_view text) {
  const auto nul = text.find('\0');
  if (nul == std::string_view::npos) return std::nullopt;
  return Malformed{fmt::format("byte {} is a NUL", nul + 1)};
}

}  // namespace

std::variant<Complete, Incomplete, Malformed> check_json(std::string_view text) {
  if (auto nul = find_nul(text)) return std::move(*nul);
  Handler handler;
  if (Json::sax_parse(text.begin(), text.end(), &handler)) return Complete{};
  // It wanted more than there is: what there is may yet become a value.
  if (handler.stopped_at() > text.size()) return Incomplete{};
  return Malformed{handler.error()};
}

std::variant<Members, Malformed> parse_flat_object(std::string_view text) {
  if (auto nul = find_nul(text)) return std::move(*nul);
  FlatObject handler;
  if (!Json::sax_parse(text.begin(), text.end(), &handler)) return Malformed{handler.error()};
  return std::move(handler.members());
}

std::optional<Malformed> read_json(std::string_view text, JsonReader& reader) {
  if (auto nul = find_nul(text)) return nul;
  Teller handler{reader};
  if (!Json::sax_parse(text.begin(), text.end(), &handler)) return Malformed{handler.error()};
  return std::nullopt;
}

}  // namespace latchfs::control
