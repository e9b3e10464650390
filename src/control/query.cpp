#include "control/query.h"

#include <fmt/core.h>

#include <algorithm>

namespace latchfs::control {
namespace {

// Input quoted in a message: short, and safe on a terminal.
std::string quoted(std::string_view text) {
  constexpr std::size_t kShown = 64;
  std::string out = json_string(text.substr(0, kShown));
  if (text.size() > kShown) out += "…";
  return out;
}

Malformed bad_value(std::string_view key, std::string_view value, std::string_view expected) {
  return {fmt::format("{} is {}, which is not {}", key, quoted(value), expected)};
}

std::optional<std::string> parse_mode(std::string_view text) {
  if (text == "shared") return "API_BYTE_RANGE_SHARED";
  if (text == "exclusive") return "API_BYTE_RANGE_EXCLUSIVE";
  for (const std::string_view name : {"API_BYTE_RANGE_SHARED", "API_BYTE_RANGE_EXCLUSIVE",
                                      "API_BYTE_RANGE_READ_OP", "API_BYTE_RANGE_WRITE_OP"}) {
    if (text == name) return std::string{name};
  }
  return std::nullopt;
}

// `next` of filelocks is a path, URL-encoded: it may be put into a query as it stands, and encoded
// once more, as programs do that take it for any text.
std::optional<std::string> parse_after_path(const std::string& value) {
  if (value.empty() || value.front() == '/') return value;
  auto path = url_decode(value);
  if (!path || path->empty() || path->front() != '/') return std::nullopt;
  return path;
}

// Takes one pair into the query; the complaint if its value is wrong.
std::optional<Malformed> take(Query& query, ListKind kind, const std::string& key,
                              const std::string& value) {
  if (key == "ref") {
    auto ref = parse_ref(value);
    if (auto* bad = std::get_if<Malformed>(&ref)) return std::move(*bad);
    query.ref = std::move(std::get<FileRef>(ref));
  } else if (key == "after" && kind == ListKind::kFilelocks) {
    const auto path = parse_after_path(value);
    if (!path) return bad_value(key, value, "the `next` of an earlier page");
    query.after_path = *path;
  } else if (key == "after") {
    const auto cursor = parse_list_cursor(value);
    if (!cursor) return bad_value(key, value, "the `next` of an earlier page");
    query.after = *cursor;
  } else if (key == "limit") {
    query.limit = parse_decimal(value);
    if (!query.limit || *query.limit == 0) return bad_value(key, value, "a number from 1");
  } else if (key == "snapshot") {
    query.snapshot = value;
  } else if (key == "owner_id") {
    const auto owner = parse_owner_id(value);
    if (!owner) return bad_value(key, value, "an owner_id as listings print it");
    query.owner_id = *owner;
  } else if (key == "owner_name") {
    query.owner_name = value;
  } else if (key == "owner_address") {
    query.owner_address = value;
  } else if (key == "pid") {
    query.pid = parse_decimal32(value);
    if (!query.pid) return bad_value(key, value, "a process id");
  } else if (key == "uid") {
    query.uid = parse_decimal32(value);
    if (!query.uid) return bad_value(key, value, "a user id in decimal");
  } else if (key == "user") {
    query.user = value;
  } else if (key == "mode") {
    query.mode = parse_mode(value);
    if (!query.mode) return bad_value(key, value, "shared, exclusive or an API_BYTE_RANGE_ name");
  }
  return std::nullopt;
}

}  // namespace

std::variant<FileRef, Malformed> parse_ref(std::string_view text) {
  if (text.empty()) return Malformed{"ref is empty"};
  if (text.find('\0') != std::string_view::npos) return Malformed{"ref holds a NUL"};
  FileRef ref;
  if (text.front() == '/') {
    ref.path = text;
    return ref;
  }
  std::string_view number = text;
  if (const auto colon = text.find(':'); colon != std::string_view::npos) {
    ref.dev = parse_decimal(text.substr(0, colon));
    if (!ref.dev) return bad_value("ref", text, "an absolute path or a file_id");
    number = text.substr(colon + 1);
  }
  const auto ino = parse_decimal(number);
  if (!ino) return bad_value("ref", text, "an absolute path or a file_id");
  ref.ino = *ino;
  return ref;
}

std::string to_string(const FileRef& ref) {
  if (!ref.path.empty()) return ref.path;
  return ref.dev ? fmt::format("{}:{}", *ref.dev, ref.ino) : fmt::format("{}", ref.ino);
}

std::string_view api_mode(LockKind kind, LockMode mode) {
  if (kind == LockKind::kReadOp) return "API_BYTE_RANGE_READ_OP";
  if (kind == LockKind::kWriteOp) return "API_BYTE_RANGE_WRITE_OP";
  return mode == LockMode::kExclusive ? "API_BYTE_RANGE_EXCLUSIVE" : "API_BYTE_RANGE_SHARED";
}

std::string_view kind_name(LockKind kind) {
  switch (kind) {
    case LockKind::kPosix:
      return "posix";
    case LockKind::kOfd:
      return "ofd";
    case LockKind::kFlock:
      return "flock";
    case LockKind::kFcntl:
    case LockKind::kReadOp:
    case LockKind::kWriteOp:
      break;
  }
  return "";
}

std::variant<Pairs, Malformed> split_pairs(std::string_view text,
                                           const std::vector<std::string_view>& known) {
  Pairs pairs;
  if (text.empty()) return pairs;
  std::size_t begin = 0;
  while (begin <= text.size()) {
    const auto end = std::min(text.find('&', begin), text.size());
    const std::string_view pair = text.substr(begin, end - begin);
    begin = end + 1;
    const auto equals = pair.find('=');
    if (equals == std::string_view::npos) {
      return Malformed{pair.empty() ? std::string{"an empty part between '&'"}
                                    : fmt::format("{} is not key=value", quoted(pair))};
    }
    const auto key = url_decode(pair.substr(0, equals));
    const auto value = url_decode(pair.substr(equals + 1));
    if (!key || !value) {
      return Malformed{fmt::format("{} holds a bad %-escape or a NUL", quoted(pair))};
    }
    if (std::find(known.begin(), known.end(), *key) == known.end()) {
      return Malformed{fmt::format("unknown key {}", quoted(*key))};
    }
    const bool twice = std::any_of(pairs.begin(), pairs.end(),
                                   [&key](const auto& seen) { return seen.first == *key; });
    if (twice) return Malformed{fmt::format("{} is given twice", *key)};
    pairs.emplace_back(*key, *value);
  }
  return pairs;
}

std::variant<Query, Malformed> parse_query(std::string_view text, ListKind kind) {
  static const std::vector<std::string_view> of_locks{
      "ref",        "after",         "limit", "snapshot", "owner_id",
      "owner_name", "owner_address", "pid",   "uid",      "mode"};
  static const std::vector<std::string_view> of_filelocks{"ref", "after", "limit", "uid", "user"};
  auto split = split_pairs(text, kind == ListKind::kFilelocks ? of_filelocks : of_locks);
  if (auto* bad = std::get_if<Malformed>(&split)) return std::move(*bad);
  Query query;
  for (const auto& [key, value] : std::get<Pairs>(split)) {
    if (auto bad = take(query, kind, key, value)) return std::move(*bad);
  }
  return query;
}

std::string canonical(const Query& query) {
  std::string out;
  const auto add = [&out](std::string_view key, std::string_view value) {
    if (!out.empty()) out += '&';
    out += key;
    out += '=';
    out += url_encode(value);
  };
  if (query.ref) add("ref", to_string(*query.ref));
  if (!query.after.at_start) add("after", to_string(query.after));
  if (!query.after_path.empty()) add("after", query.after_path);
  if (query.limit) add("limit", std::to_string(*query.limit));
  if (query.snapshot) add("snapshot", *query.snapshot);
  if (query.owner_id) add("owner_id", to_string(*query.owner_id));
  if (query.owner_name) add("owner_name", *query.owner_name);
  if (query.owner_address) add("owner_address", *query.owner_address);
  if (query.pid) add("pid", std::to_string(*query.pid));
  if (query.uid) add("uid", std::to_string(*query.uid));
  if (query.mode) add("mode", *query.mode);
  if (query.user) add("user", *query.user);
  return out;
}

}  // namespace latchfs::control
