#include "control/filelock_request.h"

#include <fmt/core.h>

#include <algorithm>
#include <string_view>
#include <utility>

#include "control/json_input.h"

namespace latchfs::control {
namespace {

using Kind = JsonReader::Kind;

std::string_view name_of(Kind kind) {
  switch (kind) {
    case Kind::kString:
      return "a string";
    case Kind::kNumber:
      return "a number";
    case Kind::kTrue:
    case Kind::kFalse:
      return "true or false";
    case Kind::kNull:
      return "null";
    case Kind::kObject:
      return "an object";
    case Kind::kArray:
      break;
  }
  return "an array";
}

// A name as it stands in a place: as it is, or quoted if it is not plain.
std::string name_in_place(std::string_view name) {
  constexpr std::string_view kPlain =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-";
  constexpr std::size_t kShown = 64;
  const bool plain = !name.empty() && name.size() <= kShown &&
                     name.find_first_not_of(kPlain) == std::string_view::npos;
  if (plain) return fmt::format(".{}", name);
  return fmt::format("[{}]", json_string(name.substr(0, kShown)));
}

bool has_nul(std::string_view text) { return text.find('\0') != std::string_view::npos; }

class BatchReader final : public JsonReader {
 public:
  explicit BatchReader(FilelockAct act) : act_{act} {}

  std::optional<Malformed> value(Kind kind, std::string&& text) override {
    switch (at_) {
      case At::kStart:
        return open(kind, Kind::kObject, At::kRequest);
      case At::kRequest:
        return open(kind, Kind::kArray, At::kPaths);
      case At::kPaths:
        items_.emplace_back();
        has_path_ = has_revert_ = false;
        return open(kind, Kind::kObject, At::kItem);
      case At::kItem:
        return item_value(kind, std::move(text));
      case At::kTags:
        return tag_value(kind, std::move(text));
    }
    return std::nullopt;
  }

  std::optional<Malformed> member(std::string&& name) override {
    name_ = std::move(name);
    switch (at_) {
      case At::kRequest:
        if (name_ != "paths") return unknown("\"paths\" is all there is");
        if (has_paths_) return twice();
        has_paths_ = true;
        return std::nullopt;
      case At::kItem:
        return item_member();
      case At::kTags:
        return tag_member();
      case At::kStart:
      case At::kPaths:
        break;
    }
    return std::nullopt;
  }

  std::optional<Malformed> end() override {
    switch (at_) {
      case At::kTags:
        at_ = At::kItem;
        return std::nullopt;
      case At::kItem:
        at_ = At::kPaths;
        if (!has_path_) return Malformed{item_place() + ".path is missing"};
        return std::nullopt;
      case At::kPaths:
        at_ = At::kRequest;
        if (items_.empty()) return Malformed{"paths is empty"};
        return std::nullopt;
      case At::kRequest:
      case At::kStart:
        break;
    }
    if (!has_paths_) return Malformed{"paths is missing"};
    return std::nullopt;
  }

  std::vector<FilelockItem>& items() { return items_; }

 private:
  enum class At : std::uint8_t { kStart, kRequest, kPaths, kItem, kTags };

  std::optional<Malformed> open(Kind kind, Kind expected, At inside) {
    if (kind != expected) return wrong(kind, name_of(expected));
    at_ = inside;
    return std::nullopt;
  }

  std::optional<Malformed> item_value(Kind kind, std::string&& text) {
    FilelockItem& item = items_.back();
    if (name_ == "path") {
      if (kind != Kind::kString) return wrong(kind, name_of(Kind::kString));
      if (has_nul(text)) return Malformed{place() + " holds a NUL"};
      if (text.empty() || text.front() != '/') {
        return Malformed{place() + " does not begin with '/'"};
      }
      item.path = std::move(text);
      return std::nullopt;
    }
    if (name_ == "revert") {
      if (kind != Kind::kTrue && kind != Kind::kFalse) return wrong(kind, "true or false");
      item.revert = kind == Kind::kTrue;
      return std::nullopt;
    }
    item.tags.emplace();
    return open(kind, Kind::kObject, At::kTags);
  }

  std::optional<Malformed> tag_value(Kind kind, std::string&& text) {
    if (kind != Kind::kString) return wrong(kind, name_of(Kind::kString));
    if (has_nul(text)) return Malformed{place() + " holds a NUL"};
    if (text.size() > kMaxTagValue) {
      return Malformed{fmt::format("{} is longer than {} bytes", place(), kMaxTagValue)};
    }
    items_.back().tags->emplace_back(name_, std::move(text));
    return std::nullopt;
  }

  std::optional<Malformed> item_member() {
    const std::string_view other = act_ == FilelockAct::kApply ? "tags" : "revert";
    if (name_ == "path") {
      if (has_path_) return twice();
      has_path_ = true;
    } else if (name_ != other) {
      return unknown(fmt::format("\"path\" and \"{}\" are all there is", other));
    } else if (name_ == "tags") {
      if (items_.back().tags) return twice();
    } else {
      if (has_revert_) return twice();
      has_revert_ = true;
    }
    return std::nullopt;
  }

  std::optional<Malformed> tag_member() {
    const Tags& tags = *items_.back().tags;
    const std::string tags_place = item_place() + ".tags";
    if (tags.size() == kMaxTags) {
      return Malformed{fmt::format("{} has more than {} members", tags_place, kMaxTags)};
    }
    if (name_.empty()) return Malformed{tags_place + " has a member without a name"};
    if (name_.size() > kMaxTagKey) {
      return Malformed{fmt::format("{} has a name longer than {} bytes", tags_place, kMaxTagKey)};
    }
    if (has_nul(name_)) return Malformed{tags_place + " has a name that holds a NUL"};
    const bool seen = std::any_of(tags.begin(), tags.end(),
                                  [this](const auto& tag) { return tag.first == name_; });
    if (seen) return twice();
    return std::nullopt;
  }

  // ---- places: where the reader is, in words
  std::string item_place() const { return fmt::format("paths[{}]", items_.size() - 1); }
  std::string place() const {
    switch (at_) {
      case At::kStart:
        return "the request";
      case At::kRequest:
        return name_ == "paths" ? name_ : json_string(name_.substr(0, 64));
      case At::kPaths:
        return item_place();
      case At::kItem:
        return item_place() + name_in_place(name_);
      case At::kTags:
        break;
    }
    return item_place() + ".tags" + name_in_place(name_);
  }
  Malformed wrong(Kind kind, std::string_view expected) const {
    return {fmt::format("{} is {}, not {}", place(), name_of(kind), expected)};
  }
  Malformed twice() const { return {place() + " is given twice"}; }
  Malformed unknown(std::string_view known) const {
    return {fmt::format("{} is unknown: {}", place(), known)};
  }

  const FilelockAct act_;
  At at_{At::kStart};
  std::string name_;
  bool has_paths_{};
  bool has_path_{};
  bool has_revert_{};
  std::vector<FilelockItem> items_;
};

std::variant<std::vector<FilelockItem>, Malformed> parse_lines(std::string_view text) {
  std::vector<FilelockItem> items;
  std::size_t number = 0;
  while (!text.empty()) {
    const auto newline = std::min(text.find('\n'), text.size());
    const std::string_view line = text.substr(0, newline);
    text.remove_prefix(std::min(newline + 1, text.size()));
    ++number;
    if (trim(line).empty()) continue;
    if (line.front() != '/') {
      return Malformed{fmt::format("line {} does not begin with '/'", number)};
    }
    if (has_nul(line)) return Malformed{fmt::format("line {} holds a NUL", number)};
    items.push_back({std::string{line}, std::nullopt, false});
  }
  if (items.empty()) return Malformed{"an empty request"};
  return items;
}

}  // namespace

std::variant<std::vector<FilelockItem>, Malformed> parse_filelock(FilelockAct act,
                                                                  const Intake::Request& request) {
  if (!request.json) return parse_lines(request.text);
  BatchReader reader{act};
  if (auto bad = read_json(request.text, reader)) return std::move(*bad);
  return std::move(reader.items());
}

}  // namespace latchfs::control
