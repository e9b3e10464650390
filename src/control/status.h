// How the seed tells what went wrong: "error": {code, reason, user_message}.
#pragma once

#include <string>
#include <string_view>

namespace latchfs::control {

// The seed's code and reason for an errno.
struct Status {
  std::string_view code;
  std::string_view reason;
};
[[nodiscard]] Status status_of(int err);

// What to tell a user about an errno when nothing better is known.
[[nodiscard]] std::string words_for(int err);

// Appends `"error": {…}`.
void append_error(std::string& out, int err, std::string_view why);

}  // namespace latchfs::control
