#include "support/lock_step.h"

#include <unistd.h>

#include <charconv>
#include <cstring>
#include <sstream>
#include <utility>

namespace latchfs::locktest {
namespace {

struct VerbName {
  Verb verb;
  std::string_view name;
};
constexpr VerbName kVerbs[] = {
    {Verb::kOpen, "open"},   {Verb::kDup, "dup"},         {Verb::kClose, "close"},
    {Verb::kSeek, "seek"},   {Verb::kTrunc, "trunc"},     {Verb::kFork, "fork"},
    {Verb::kExec, "exec"},   {Verb::kExit, "exit"},       {Verb::kKill, "kill"},
    {Verb::kIntr, "intr"},   {Verb::kRestart, "restart"}, {Verb::kList, "LIST"},
    {Verb::kLock, "(lock)"}, {Verb::kGet, "GET"},
};

std::string_view name_of(Verb verb) {
  for (const VerbName& v : kVerbs) {
    if (v.verb == verb) return v.name;
  }
  return "?";
}

std::string_view name_of(Mode mode) {
  switch (mode) {
    case Mode::kShared:
      return "SH";
    case Mode::kExclusive:
      return "EX";
    case Mode::kUnlock:
      return "UN";
  }
  return "?";
}

std::vector<std::string> words_of(std::string_view text) {
  std::istringstream in{std::string{text}};
  std::vector<std::string> words;
  for (std::string word; in >> word;) words.push_back(word);
  return words;
}

std::optional<std::int64_t> number(const std::string& word) {
  std::int64_t value{};
  const char* const end = word.data() + word.size();
  const auto [at, err] = std::from_chars(word.data(), end, value);
  if (err != std::errc{} || at != end) return std::nullopt;
  return value;
}

bool is_actor(const std::string& w) { return w.size() == 1 && w[0] >= 'A' && w[0] <= 'Z'; }
bool is_slot(const std::string& w) { return w.size() == 1 && w[0] >= 'a' && w[0] <= 'z'; }

// The words after the actor, read from the left.
class Reader {
 public:
  explicit Reader(std::vector<std::string> words) : words_{std::move(words)} {}

  std::string next() { return at_ < words_.size() ? words_[at_++] : std::string{}; }
  [[nodiscard]] std::string peek() const {
    return at_ < words_.size() ? words_[at_] : std::string{};
  }
  bool take(std::string_view word) {
    if (peek() != word) return false;
    ++at_;
    return true;
  }
  [[nodiscard]] bool done() const { return at_ == words_.size(); }

 private:
  std::vector<std::string> words_;
  std::size_t at_{};
};

bool read_range(Reader& in, Step& step) {
  const auto start = number(in.next());
  const auto len = number(in.next());
  if (!start || !len) return false;
  step.start = *start;
  step.len = *len;
  if (in.take("cur")) step.whence = SEEK_CUR;
  if (in.take("end")) step.whence = SEEK_END;
  return true;
}

bool read_mode(const std::string& word, Step& step) {
  if (word.size() < 2) return false;
  const std::string base = word.substr(0, 2);
  if (base == "SH") {
    step.mode = Mode::kShared;
  } else if (base == "EX") {
    step.mode = Mode::kExclusive;
  } else if (base == "UN") {
    step.mode = Mode::kUnlock;
  } else {
    return false;
  }
  step.wait = word.size() == 3 && word[2] == 'W';
  return word.size() == 2 || step.wait;
}

bool read_lock(Reader& in, Step& step) {
  if (in.take("ofd")) step.kind = Kind::kOfd;
  if (in.take("flock")) step.kind = Kind::kFlock;
  step.verb = in.take("GET") ? Verb::kGet : Verb::kLock;
  if (!read_mode(in.next(), step)) return false;
  if (step.kind == Kind::kFlock) return step.verb == Verb::kLock;
  return read_range(in, step);
}

bool read_number(Reader& in, Step& step) {
  const auto value = number(in.next());
  if (value) step.start = *value;
  return value.has_value();
}

bool read_args(Verb verb, Reader& in, Step& step) {
  step.verb = verb;
  switch (verb) {
    case Verb::kOpen:
      step.file = in.next();
      step.flags = in.next();
      return !step.flags.empty();
    case Verb::kDup:
      if (!is_slot(in.peek())) return false;
      step.other = in.next()[0];
      return true;
    case Verb::kFork:
      if (!is_actor(in.peek())) return false;
      step.other = in.next()[0];
      return true;
    case Verb::kSeek:
    case Verb::kTrunc:
      return read_number(in, step);
    case Verb::kList:
      step.file = in.done() ? "f0" : in.next();
      return true;
    default:
      return true;
  }
}

}  // namespace

std::optional<Step> parse_step(std::string_view text) {
  std::vector<std::string> words = words_of(text);
  Step step;
  if (words.size() < 2 || !is_actor(words[0])) return std::nullopt;
  step.actor = words[0][0];
  if (words.back()[0] == '@') {
    const std::string slot = words.back().substr(1);
    if (!is_slot(slot)) return std::nullopt;
    step.slot = slot[0];
    words.pop_back();
  }
  words.erase(words.begin());
  Reader in{std::move(words)};
  for (const VerbName& v : kVerbs) {
    if (v.verb == Verb::kLock || v.verb == Verb::kGet) continue;
    if (!in.take(v.name)) continue;
    return read_args(v.verb, in, step) && in.done() ? std::optional{step} : std::nullopt;
  }
  return read_lock(in, step) && in.done() ? std::optional{step} : std::nullopt;
}

std::string to_string(const Step& step) {
  std::ostringstream out;
  out << step.actor << ' ';
  if (step.verb == Verb::kLock || step.verb == Verb::kGet) {
    if (step.kind == Kind::kOfd) out << "ofd ";
    if (step.kind == Kind::kFlock) out << "flock ";
    if (step.verb == Verb::kGet) out << "GET ";
    out << name_of(step.mode) << (step.wait ? "W" : "");
    if (step.kind != Kind::kFlock) out << ' ' << step.start << ' ' << step.len;
    if (step.whence == SEEK_CUR) out << " cur";
    if (step.whence == SEEK_END) out << " end";
  } else {
    out << name_of(step.verb);
    if (!step.file.empty()) out << ' ' << step.file;
    if (!step.flags.empty()) out << ' ' << step.flags;
    if (step.other != '\0') out << ' ' << step.other;
    if (step.verb == Verb::kSeek || step.verb == Verb::kTrunc) out << ' ' << step.start;
  }
  if (step.slot != 'd') out << " @" << step.slot;
  return out.str();
}

std::string to_string(const Held& held) {
  std::ostringstream out;
  out << held.who << (held.kind == Kind::kFlock ? ":flock" : "") << ' ' << name_of(held.mode);
  if (held.kind != Kind::kFlock) out << ' ' << held.start << ' ' << held.len;
  return out.str();
}

std::string to_string(const Outcome& outcome) {
  std::string out = outcome.result;
  const char* before = out.empty() ? "" : " ";
  for (const Held& held : outcome.locks) {
    out += before + to_string(held);
    before = ", ";
  }
  before = "; ";
  for (const Completion& c : outcome.completed) {
    out += before;
    out += c.actor;
    if (c.slot != 'd') out += std::string("@") + c.slot;
    out += " " + c.result;
    before = ", ";
  }
  return out;
}

std::string render_script(const std::vector<Step>& steps, const std::vector<Outcome>& outcomes) {
  std::string out;
  for (std::size_t i = 0; i < steps.size(); ++i) {
    out += to_string(steps[i]);
    if (i < outcomes.size()) out += " -> " + to_string(outcomes[i]);
    out += '\n';
  }
  return out;
}

std::string errno_name(int err) {
  const char* const name = ::strerrorname_np(err);
  return name != nullptr ? name : "errno " + std::to_string(err);
}

}  // namespace latchfs::locktest
