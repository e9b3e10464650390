#include "control/release_request.h"

#include <fmt/core.h>

#include <algorithm>
#include <string_view>
#include <utility>
#include <vector>

#include "control/json_input.h"

namespace latchfs::control {
namespace {

const std::vector<std::string_view>& known_keys() {
  static const std::vector<std::string_view> keys{"ref",      "offset",   "size",
                                                  "owner_id", "snapshot", "owner_address"};
  return keys;
}

std::variant<Pairs, Malformed> pairs_of(const Intake::Request& request) {
  if (!request.json) return split_pairs(request.text, known_keys());
  auto parsed = parse_flat_object(request.text);
  if (auto* bad = std::get_if<Malformed>(&parsed)) return std::move(*bad);
  Pairs pairs;
  for (auto& [key, value] : std::get<Members>(parsed)) {
    if (std::find(known_keys().begin(), known_keys().end(), key) == known_keys().end()) {
      return Malformed{fmt::format("unknown key {}", json_string(key.substr(0, 64)))};
    }
    const std::string& name = key;
    const bool twice = std::any_of(pairs.begin(), pairs.end(),
                                   [&name](const auto& seen) { return seen.first == name; });
    if (twice) return Malformed{fmt::format("{} is given twice", key)};
    pairs.emplace_back(std::move(key), std::move(value));
  }
  return pairs;
}

const std::string* find(const Pairs& pairs, std::string_view key) {
  const auto found = std::find_if(pairs.begin(), pairs.end(),
                                  [key](const auto& pair) { return pair.first == key; });
  return found == pairs.end() ? nullptr : &found->second;
}

std::string short_json(std::string_view value) { return json_string(value.substr(0, 64)); }

}  // namespace

std::variant<ReleaseRequest, ReleaseOfClient, Malformed> parse_release(
    const Intake::Request& request) {
  auto split = pairs_of(request);
  if (auto* bad = std::get_if<Malformed>(&split)) return std::move(*bad);
  const Pairs& pairs = std::get<Pairs>(split);
  if (const auto* address = find(pairs, "owner_address")) {
    if (pairs.size() != 1) {
      return Malformed{"owner_address stands alone: it releases all that this machine holds"};
    }
    if (address->empty()) return Malformed{"owner_address is empty"};
    return ReleaseOfClient{*address};
  }
  for (const std::string_view key : {"ref", "offset", "size", "owner_id"}) {
    if (find(pairs, key) == nullptr) return Malformed{fmt::format("{} is missing", key)};
  }

  ReleaseRequest release;
  release.ref_text = *find(pairs, "ref");
  auto ref = parse_ref(release.ref_text);
  if (auto* bad = std::get_if<Malformed>(&ref)) return std::move(*bad);
  release.ref = std::move(std::get<FileRef>(ref));

  const std::string& offset_text = *find(pairs, "offset");
  const std::string& size_text = *find(pairs, "size");
  const auto offset = parse_decimal(offset_text);
  if (!offset) return Malformed{fmt::format("offset is {}, not a number", short_json(offset_text))};
  const auto size = parse_decimal(size_text);
  if (!size) return Malformed{fmt::format("size is {}, not a number", short_json(size_text))};
  const auto range = ByteRange::from_offset_size(*offset, *size);
  if (!range) {
    return Malformed{fmt::format("offset {} and size {} reach beyond 2^63", *offset, *size)};
  }
  release.range = *range;

  const std::string& owner_text = *find(pairs, "owner_id");
  const auto owner = parse_owner_id(owner_text);
  if (!owner) {
    return Malformed{
        fmt::format("owner_id is {}, not one that listings print", short_json(owner_text))};
  }
  release.owner = *owner;
  if (const auto* snapshot = find(pairs, "snapshot")) release.snapshot = *snapshot;
  return release;
}

}  // namespace latchfs::control
