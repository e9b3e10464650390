#include "control/intake.h"

#include <utility>

namespace latchfs::control {
namespace {

// JSON is checked at every write up to this size, then whenever it has doubled or may have become
// complete: a megabyte written byte by byte must not be parsed a million times.
constexpr std::size_t kCheckAlways = 512;

bool may_begin_query(char ch) {
  return (ch >= 'a' && ch <= 'z') || (ch >= 'A' && ch <= 'Z') || ch == '_' || ch == '%';
}

}  // namespace

Intake::Taken Intake::drop(Taken taken) {
  had_request_ = had_request_ || std::holds_alternative<Request>(taken);
  pending_ = {};
  only_space_ = indented_ = false;
  check_at_ = depth_ = 0;
  in_string_ = escaped_ = false;
  return taken;
}

Intake::Taken Intake::add_to_json(std::string_view data) {
  bool closed = false;
  for (std::size_t i = 0; i < data.size() && !closed; ++i) {
    const char ch = data[i];
    if (in_string_) {
      in_string_ = escaped_ || ch != '"';
      escaped_ = !escaped_ && ch == '\\';
    } else if (ch == '"') {
      in_string_ = true;
    } else if (ch == '{' || ch == '[') {
      ++depth_;
    } else if (ch == '}' || ch == ']') {
      closed = --depth_ == 0;  // it began with '{': depth_ was at least 1
    }
  }
  pending_ += data;
  if (!closed && pending_.size() > kCheckAlways && pending_.size() < check_at_) {
    return Incomplete{};
  }
  check_at_ = 2 * pending_.size();
  auto state = check_json(pending_);
  if (auto* bad = std::get_if<Malformed>(&state)) return drop(std::move(*bad));
  if (std::holds_alternative<Incomplete>(state)) return Incomplete{};
  return drop(Request{std::string{trim(pending_)}, true});
}

Intake::Taken Intake::add_to_query(std::string_view data) {
  const auto newline = data.find('\n');
  pending_ += data.substr(0, newline);
  if (newline == std::string_view::npos) return Incomplete{};
  if (!trim(data.substr(newline)).empty()) {
    return drop(Malformed{"more than one line: one request a write"});
  }
  return drop(Request{std::string{trim(pending_)}, false});
}

Intake::Taken Intake::add_to_paths(std::string_view data) {
  const auto newline = data.rfind('\n');
  if (newline == std::string_view::npos) {
    pending_ += data;
    return Incomplete{};
  }
  std::string lines = std::move(pending_);
  lines += data.substr(0, newline + 1);
  const std::string_view rest = data.substr(newline + 1);
  const bool blank = rest.find_first_not_of(kSpace) == std::string_view::npos;
  if (!blank && rest.front() != '/') {
    return drop(Malformed{"the last line does not begin with '/'"});
  }
  Taken taken = drop(Request{std::move(lines), false});
  if (blank) {
    only_space_ = indented_ = !rest.empty();
  } else {
    pending_ = rest;
  }
  return taken;
}

// `data` begins with the first byte that is no white space.
bool Intake::may_begin(std::string_view data) const {
  if (data.front() == '{') return true;
  if (form_ == Short::kQuery) return may_begin_query(data.front());
  return data.front() == '/' && !indented_;
}

Intake::Taken Intake::add(std::string_view data) {
  if (too_large_ || data.size() > kMaxRequest - pending_.size()) {
    too_large_ = true;
    return drop(TooLarge{});
  }
  if (pending_.empty()) {
    const auto first = data.find_first_not_of(kSpace);
    only_space_ = only_space_ || (first == std::string_view::npos && !data.empty());
    const std::string_view space = data.substr(0, first);
    if (const auto newline = space.rfind('\n'); newline != std::string_view::npos) {
      indented_ = newline + 1 < space.size();
    } else {
      indented_ = indented_ || !space.empty();
    }
    if (first == std::string_view::npos) return Incomplete{};
    data.remove_prefix(first);
    if (!may_begin(data)) {
      return drop(Malformed{form_ == Short::kQuery
                                ? "neither a JSON object nor key=value&key=value"
                                : "neither a JSON object nor lines that begin with '/'"});
    }
  }
  const bool json = (pending_.empty() ? data : std::string_view{pending_}).front() == '{';
  if (json) return add_to_json(data);
  return form_ == Short::kQuery ? add_to_query(data) : add_to_paths(data);
}

Intake::Taken Intake::finish() {
  if (too_large_) {
    too_large_ = false;
    return TooLarge{};
  }
  if (pending_.empty()) {
    // The newline that a program writes after its request is no request of its own.
    const bool empty_request = only_space_ && !had_request_;
    drop(Incomplete{});
    if (empty_request) return Malformed{"an empty request"};
    return Incomplete{};
  }
  if (pending_.front() == '{') return Malformed{"the JSON ends before its object is closed"};
  // A path's last byte may be white space.
  return drop(Request{form_ == Short::kPaths ? pending_ : std::string{trim(pending_)}, false});
}

}  // namespace latchfs::control
