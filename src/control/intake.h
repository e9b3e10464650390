// Collects requests from the writes of one open file.
//
// JSON begins with '{' and is complete when its object closes; the query form is complete at its
// newline, or when the file is closed. Where paths are taken instead of the query form (one a
// line), all lines that a write completes are one request; the rest waits for the next write, or
// for the file to be closed. One request at a time: what follows a complete one in the same write
// must be white space. After a complete or malformed request the next write begins a new one. After
// an oversized one everything is TooLarge until finish(): the kernel hands a large write over in
// pieces and reports those that went well, so that the program comes again with the rest, which
// must not be taken for a request.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>

#include "control/json_input.h"
#include "control/text.h"

namespace latchfs::control {

class Intake {
 public:
  static constexpr std::size_t kMaxRequest = std::size_t{1} << 20;

  struct Request {
    std::string text;
    bool json{};  // else the query form, or lines
  };
  struct TooLarge {};
  // Incomplete: more is needed; the bytes are kept.
  using Taken = std::variant<Incomplete, Request, Malformed, TooLarge>;

  // What may be written besides JSON.
  enum class Short : std::uint8_t { kQuery, kPaths };
  explicit Intake(Short form = Short::kQuery) : form_{form} {}

  Taken add(std::string_view data);
  // No more will come, it seems. Incomplete: nothing was waiting. JSON that is not complete is
  // Malformed then, but kept in case more comes after all: a shell's `printf … >&3` closes a copy
  // of its descriptor after each piece.
  Taken finish();
  [[nodiscard]] bool waiting() const { return !pending_.empty() || only_space_ || too_large_; }

 private:
  Taken drop(Taken taken);
  Taken add_to_json(std::string_view data);
  Taken add_to_query(std::string_view data);
  Taken add_to_paths(std::string_view data);
  bool may_begin(std::string_view data) const;

  Short form_;
  std::string pending_;  // begins with the request's first byte
  bool only_space_{};    // white space came, and nothing else yet
  bool indented_{};      // some of it since the last newline
  bool had_request_{};
  bool too_large_{};
  std::size_t check_at_{};  // pending_.size() from which JSON is checked again
  // Where the bytes so far leave us in the JSON text.
  std::size_t depth_{};
  bool in_string_{};
  bool escaped_{};
};

}  // namespace latchfs::control
