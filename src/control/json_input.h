// JSON that users write. The only part of the room that knows the JSON library.
#pragma once

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

}  // namespace latchfs::control
