// JSON that users write. The only part of the room that knows the JSON library.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "control/text.h"

namespace latchfs::control {

struct Complete {};
struct Incomplete {};
// Is `text` one JSON value (white space around it is fine), the beginning of one, or neither?
[[nodiscard]] std::variant<Complete, Incomplete, Malformed> check_json(std::string_view text);

// The members of a JSON object whose values are all strings or whole numbers from 0 (given back
// as their decimal text), in order, duplicates included. Malformed for anything else, with words
// about what is wrong. `text` is complete.
using Members = std::vector<std::pair<std::string, std::string>>;
[[nodiscard]] std::variant<Members, Malformed> parse_flat_object(std::string_view text);

// What a JSON text holds, told in its order to whoever wants more than a flat object. Nothing is
// kept here, so that a hostile text takes no more memory than itself.
class JsonReader {
 public:
  enum class Kind : std::uint8_t { kString, kNumber, kTrue, kFalse, kNull, kObject, kArray };
  JsonReader() = default;
  JsonReader(const JsonReader&) = delete;
  JsonReader& operator=(const JsonReader&) = delete;
  virtual ~JsonReader() = default;

  // What is wrong with it, if so: then nothing more is told. For a string its text, for an object
  // or an array its beginning.
  virtual std::optional<Malformed> value(Kind kind, std::string&& text) = 0;
  // The name of the member whose value comes next.
  virtual std::optional<Malformed> member(std::string&& name) = 0;
  // The end of the object or array that began last.
  virtual std::optional<Malformed> end() = 0;
};
// `text` is complete. Nothing: all was told.
[[nodiscard]] std::optional<Malformed> read_json(std::string_view text, JsonReader& reader);

}  // namespace latchfs::control
