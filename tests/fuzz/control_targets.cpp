#include "fuzz/control_targets.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <array>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <variant>
#include <vector>

#include "control/filelock_request.h"
#include "control/intake.h"
#include "control/json_input.h"
#include "control/query.h"
#include "control/release_request.h"
#include "control/text.h"
#include "support/control_world.h"

namespace latchfs::fuzz {
namespace {

using namespace control;  // NOLINT: every line below is about that room

void must(bool holds, const char* what) {
  if (!holds) throw Broken{what};
}

void url(std::string_view bytes) {
  const auto decoded = url_decode(bytes);
  if (decoded) {
    must(decoded->find('\0') == std::string::npos, "a decoded NUL");
    must(url_decode(url_encode(*decoded)) == decoded, "encoding goes there and back");
  }
  if (bytes.find('\0') == std::string_view::npos) {
    must(url_decode(url_encode(bytes)) == bytes, "encoding goes there and back");
  }
}

void json_text(std::string_view bytes) {
  const std::string text = json_string(bytes);
  must(testing::is_json(text), "a JSON string is JSON");
  must(text.find('\n') == std::string::npos, "a JSON string is one line");
  if (testing::is_json("\"" + std::string{bytes} + "\"")) {
    must(testing::parse_json(text).get<std::string>() == bytes ||
             bytes.find('\\') != std::string_view::npos,
         "well-formed text stays");
  }
}

void ref(std::string_view bytes) {
  const auto parsed = parse_ref(bytes);
  if (const auto* bad = std::get_if<Malformed>(&parsed)) {
    must(!bad->why.empty(), "a refusal in words");
    return;
  }
  const auto again = parse_ref(to_string(std::get<FileRef>(parsed)));
  must(std::holds_alternative<FileRef>(again) &&
           std::get<FileRef>(again) == std::get<FileRef>(parsed),
       "a ref goes there and back");
}

void query_of(ListKind kind, std::string_view bytes) {
  const auto parsed = parse_query(bytes, kind);
  if (const auto* bad = std::get_if<Malformed>(&parsed)) {
    must(!bad->why.empty() && bad->why.size() < 2000, "a refusal in some words");
    return;
  }
  const std::string one = canonical(std::get<Query>(parsed));
  const auto again = parse_query(one, kind);
  must(std::holds_alternative<Query>(again), "the canonical text is a query");
  must(canonical(std::get<Query>(again)) == one, "the canonical text is canonical");
}

void query(std::string_view bytes) { query_of(ListKind::kGrants, bytes); }
void filelock_query(std::string_view bytes) { query_of(ListKind::kFilelocks, bytes); }

void cursor(std::string_view bytes) {
  const auto parsed = parse_list_cursor(bytes);
  if (!parsed) {
    must(parsed.error().value() == EINVAL, "EINVAL");
    return;
  }
  const auto again = parse_list_cursor(to_string(*parsed));
  must(again.ok() && to_string(*again) == to_string(*parsed), "a cursor goes there and back");
}

void owner(std::string_view bytes) {
  const auto parsed = parse_owner_id(bytes);
  if (parsed) must(to_string(*parsed) == bytes, "exactly what to_string prints");
}

void json(std::string_view bytes) {
  const auto state = check_json(bytes);
  const bool has_nul = bytes.find('\0') != std::string_view::npos;
  must(std::holds_alternative<Complete>(state) == (!has_nul && testing::is_json(bytes)),
       "complete is what the library accepts");
  if (std::holds_alternative<Complete>(state)) {
    const auto end = bytes.find_last_not_of(" \t\r\n");
    // A number may always go on; what is delimited is incomplete without its end.
    if (bytes[end] == '}' || bytes[end] == ']' || bytes[end] == '"') {
      must(std::holds_alternative<Incomplete>(check_json(bytes.substr(0, end))),
           "a beginning of JSON is incomplete");
    }
  }
  const auto flat = parse_flat_object(bytes);
  if (std::holds_alternative<Members>(flat)) {
    must(std::holds_alternative<Complete>(state), "an object is JSON");
  }
}

void release(std::string_view bytes) {
  for (const bool as_json : {true, false}) {
    const auto parsed = parse_release({std::string{bytes}, as_json});
    if (const auto* bad = std::get_if<Malformed>(&parsed)) {
      must(!bad->why.empty(), "a refusal in words");
      continue;
    }
    if (const auto* all = std::get_if<ReleaseOfClient>(&parsed)) {
      must(!all->owner_address.empty(), "an address");
      continue;
    }
    const auto& request = std::get<ReleaseRequest>(parsed);
    must(request.range.begin() < request.range.end(), "a range");
    must(!request.ref_text.empty(), "a ref");
  }
}

void filelock_items(FilelockAct act, std::string_view bytes) {
  for (const bool as_json : {true, false}) {
    const auto parsed = parse_filelock(act, {std::string{bytes}, as_json});
    if (const auto* bad = std::get_if<Malformed>(&parsed)) {
      must(!bad->why.empty() && bad->why.size() < 2000, "a refusal in some words");
      continue;
    }
    const auto& items = std::get<std::vector<FilelockItem>>(parsed);
    must(!items.empty(), "something is asked for");
    for (const FilelockItem& item : items) {
      must(item.path.front() == '/', "an absolute path");
      must(item.path.find('\0') == std::string::npos, "a path without NUL");
      must(as_json || item.path.find('\n') == std::string::npos, "a line is a line");
      must(act == FilelockAct::kApply ? !item.revert : !item.tags, "what the request may say");
      if (!item.tags) continue;
      must(item.tags->size() <= kMaxTags, "as many tags as allowed");
      std::set<std::string> names;
      for (const auto& [name, value] : *item.tags) {
        must(names.insert(name).second, "no tag twice");
        must(!name.empty() && name.size() <= kMaxTagKey, "a name's length");
        must(value.size() <= kMaxTagValue, "a value's length");
      }
    }
    if (as_json) must(testing::is_json(bytes), "a batch is JSON");
  }
}

void filelock(std::string_view bytes) { filelock_items(FilelockAct::kApply, bytes); }
void unfilelock(std::string_view bytes) { filelock_items(FilelockAct::kRemove, bytes); }

// What is asked for by the paths in `bytes`, written in pieces, joined by newlines; nothing if any
// of it is refused.
std::optional<std::string> lines_taken(std::string_view bytes, std::size_t piece) {
  Intake pieces{Intake::Short::kPaths};
  std::string out;
  const auto take = [&out](const Intake::Taken& taken) {
    if (std::holds_alternative<Incomplete>(taken)) return true;
    const auto* request = std::get_if<Intake::Request>(&taken);
    if (request == nullptr || request->json) return false;
    const auto parsed = parse_filelock(FilelockAct::kApply, *request);
    if (std::holds_alternative<Malformed>(parsed)) return false;
    for (const auto& item : std::get<std::vector<FilelockItem>>(parsed)) out += item.path + '\n';
    return true;
  };
  for (; !bytes.empty(); bytes.remove_prefix(std::min(piece, bytes.size()))) {
    if (!take(pieces.add(bytes.substr(0, piece)))) return std::nullopt;
  }
  if (!take(pieces.finish())) return std::nullopt;
  return out;
}

// Lines are the same lines however they are written.
void intake_paths(std::string_view bytes) {
  const auto whole = lines_taken(bytes, bytes.size() + 1);
  if (!whole) return;
  for (const std::size_t piece : {std::size_t{1}, std::size_t{7}}) {
    // A JSON object may stand where a write begins: then pieces are more than the whole.
    if (bytes.find('{') != std::string_view::npos) return;
    must(lines_taken(bytes, piece) == whole, "pieces give what the whole gives");
  }
}

// The same bytes in one write and in pieces give the same request.
void intake(std::string_view bytes) {
  Intake whole;
  auto expected = whole.add(bytes);
  if (std::holds_alternative<Incomplete>(expected)) expected = whole.finish();
  const auto* request = std::get_if<Intake::Request>(&expected);
  for (const std::size_t piece : {std::size_t{1}, std::size_t{7}}) {
    Intake pieces;
    Intake::Taken got = Incomplete{};
    std::string_view rest = bytes;
    while (!rest.empty() && std::holds_alternative<Incomplete>(got)) {
      got = pieces.add(rest.substr(0, piece));
      rest.remove_prefix(std::min(piece, rest.size()));
    }
    if (std::holds_alternative<Incomplete>(got)) got = pieces.finish();
    if (request == nullptr) continue;
    const auto* same = std::get_if<Intake::Request>(&got);
    must(same != nullptr && same->text == request->text && same->json == request->json,
         "pieces give what the whole gives");
  }
}

// Everything at once: a name looked up, opened, read; the bytes written to `release`.
void tree(std::string_view bytes) {
  static const std::set<int> lookup_errors{0, ENOENT, EINVAL, ENAMETOOLONG, EACCES, ELOOP, ENOTDIR};
  static const std::set<int> write_errors{0,     ENOENT,  EINVAL,       EMSGSIZE, EACCES,
                                          ELOOP, ENOTDIR, ENAMETOOLONG, EISDIR};
  testing::ControlWorld world;
  const FileId file = world.files.file("/a", 0, 0600);
  world.locks.add(testing::grant(file, 1, testing::range(0, 100), 1000));
  control::Tree& tree = world.tree();
  world.files.file("/mine", testing::kAlice.uid);
  world.filelocks.add("/a", file, 1000, {{"x", "y"}});
  const std::string before = world.cat("list") + world.cat("filelock");

  const std::string asked = "list?" + std::string{bytes};
  const std::string asked_too = "filelock?" + std::string{bytes};
  for (const std::string_view name :
       {bytes, std::string_view{asked}, std::string_view{asked_too}}) {
    if (name == "..") continue;
    for (const Caller& caller : {testing::kRoot, testing::kBob}) {
      const auto node = tree.lookup(kTreeRoot, name, caller);
      must(lookup_errors.count(node.error().value()) == 1, "an errno of lookup");
      if (!node || !S_ISREG(node->attr.st_mode)) continue;
      const auto fh = tree.open(node->node, O_RDONLY, caller);
      must(fh.ok(), "what is found can be opened");
      const auto text = tree.read(*fh, 0, 1 << 20, testing::kAlice);
      must(text.ok() && text->size() == static_cast<std::size_t>(node->attr.st_size),
           "the size is the text's");
      if (name != bytes) must(testing::is_json(*text), "a listing is JSON");
      tree.release(*fh);
      tree.forget(node->node, 1);
    }
  }

  for (const auto* path : {"release", "filelock", "unfilelock"}) {
    const auto node = world.walk(path).value().node;
    const auto fh = tree.open(node, O_RDWR, testing::kBob).value();
    const int err = tree.write(fh, 0, bytes, testing::kBob).error().value();
    must(write_errors.count(err) == 1, "an errno of write");
    must(write_errors.count(tree.flush(fh, testing::kBob).error().value()) == 1, "or of close");
    must(testing::is_json(tree.read(fh, 0, 1 << 20, testing::kAlice).value()), "a reply is JSON");
    tree.release(fh);
  }
  must(world.locks.breaks().empty() && world.cat("list") + world.cat("filelock") == before,
       "a stranger's bytes change nothing");
}

constexpr std::string_view kSampleQuery =
    "ref=%2Fa&limit=3&snapshot=&owner_id=0000000000000001-0-0000000000000001&owner_name=build7"
    "&owner_address=127.0.0.1&pid=4711&uid=1000&mode=exclusive&after=0.7.3e9.0.0.1";
constexpr std::string_view kSampleObject =
    R"({"ref": "/a", "offset": "0", "size": 100, "owner_id": "0000000000000001-0-0000000000000001", "snapshot": ""})";
constexpr std::string_view kSampleRelease =
    "ref=%2Fa&offset=0&size=0&owner_id=0000000000000001-0-0000000000000001\n";

constexpr std::string_view kSampleFilelock =
    R"({"paths": [{"path": "/a", "tags": {"ticket": "42", "x": ""}}, {"path": "/mine"}]})";
constexpr std::string_view kSampleUnfilelock =
    R"({"paths": [{"path": "/a", "revert": true}, {"path": "/mine", "revert": false}]})";
constexpr std::string_view kSamplePaths = "/a\n/mine\n\n/b c\n";

constexpr std::array<Target, 18> kTargets{{
    {"url", url, "%2Fa+b%20c"},
    {"json_text", json_text, "/caf\xC3\xA9\n\"\\"},
    {"ref", ref, "7:1311"},
    {"query", query, kSampleQuery},
    {"cursor", cursor, "0.7.3e9.0.10.5"},
    {"owner", owner, "0000000000000001-0-00000000000000ab"},
    {"json", json, kSampleObject},
    {"release", release, kSampleObject},
    {"release_query", release, kSampleRelease},
    {"intake", intake, kSampleObject},
    {"intake_query", intake, kSampleRelease},
    {"filelock_query", filelock_query, "ref=%2Fa&after=%2Fa&limit=3&uid=1000&user=alice"},
    {"filelock", filelock, kSampleFilelock},
    {"filelock_lines", filelock, kSamplePaths},
    {"unfilelock", unfilelock, kSampleUnfilelock},
    {"intake_paths", intake_paths, kSamplePaths},
    {"tree", tree, kSampleObject},
    {"tree_filelock", tree, kSampleFilelock},
}};

}  // namespace

std::span<const Target> targets() { return kTargets; }

}  // namespace latchfs::fuzz
