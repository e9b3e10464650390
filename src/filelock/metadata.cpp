#include "filelock/metadata.h"

#include <fcntl.h>
#include <unistd.h>

#include <charconv>
#include <nlohmann/json.hpp>
#include <optional>

#include "filelock/side_files.h"
#include "posix/sys.h"

namespace latchfs::filelock {
namespace {

using Json = nlohmann::json;

constexpr int kVersion = 1;
// The library prints by recursion.
constexpr int kMostDepth = 64;

bool is_shallow(std::string_view text) {
  int depth = 0;
  bool in_string = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') {
        ++i;
      } else if (c == '"') {
        in_string = false;
      }
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      if (++depth > kMostDepth) return false;
    } else if (c == '}' || c == ']') {
      --depth;
    }
  }
  return true;
}

// Discarded if it is no JSON. (The library takes a NUL for the end of input.)
Json parse(std::string_view text) {
  if (text.find('\0') != std::string_view::npos || !is_shallow(text)) {
    return Json(Json::value_t::discarded);
  }
  return Json::parse(text.begin(), text.end(), nullptr, false);
}

std::string time_text(const struct timespec& ts) {
  return fmt::format("{}.{:09}", ts.tv_sec, ts.tv_nsec);
}

bool parse_time(const std::string& text, struct timespec& ts) {
  constexpr std::size_t kDigits = 9;
  const auto dot = text.find('.');
  if (dot == std::string::npos || text.size() != dot + 1 + kDigits) return false;
  const char* const middle = text.data() + dot;
  const char* const end = text.data() + text.size();
  const auto seconds = std::from_chars(text.data(), middle, ts.tv_sec);
  const auto rest = std::from_chars(middle + 1, end, ts.tv_nsec);
  return seconds.ec == std::errc{} && seconds.ptr == middle && rest.ec == std::errc{} &&
         rest.ptr == end && ts.tv_nsec >= 0;
}

// Takes members of an object; remembers that one was missing or of another type.
class Reader {
 public:
  explicit Reader(const Json& object) : object_{object} {}

  [[nodiscard]] bool fine() const { return fine_; }
  void take(const char* name, std::string& to) {
    const auto* member = find(name);
    if (member != nullptr && member->is_string()) {
      to = member->get<std::string>();
    } else {
      fine_ = false;
    }
  }
  template <class Number>
  void take_number(const char* name, Number& to) {
    const auto* member = find(name);
    if (member == nullptr || !member->is_number_integer()) {
      fine_ = false;
    } else if (member->is_number_unsigned()) {
      const auto value = member->get<std::uint64_t>();
      fine_ = fine_ && std::in_range<Number>(value);
      to = static_cast<Number>(value);
    } else {
      const auto value = member->get<std::int64_t>();
      fine_ = fine_ && std::in_range<Number>(value);
      to = static_cast<Number>(value);
    }
  }
  void take_time(const char* name, struct timespec& to) {
    std::string text;
    take(name, text);
    fine_ = fine_ && parse_time(text, to);
  }
  const Json* take_object(const char* name) {
    const auto* member = find(name);
    if (member != nullptr && member->is_object()) return member;
    fine_ = false;
    return nullptr;
  }

 private:
  const Json* find(const char* name) const {
    const auto it = object_.find(name);
    return it == object_.end() ? nullptr : &*it;
  }
  const Json& object_;
  bool fine_{true};
};

std::string dump(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

bool parse_file(const Json& object, FileFacts& file) {
  Reader reader{object};
  reader.take_number("dev", file.dev);
  reader.take_number("ino", file.ino);
  reader.take_number("size", file.size);
  reader.take_number("mode", file.mode);
  reader.take_number("uid", file.uid);
  reader.take_number("gid", file.gid);
  reader.take_time("atime", file.atime);
  reader.take_time("mtime", file.mtime);
  return reader.fine();
}

Failure damaged(std::string_view why) {
  return refused(EBADMSG, fmt::format("the lock's metadata is damaged: {}", why));
}

Outcome<std::string> read_text(int fd, off_t expected) {
  if (expected > static_cast<off_t>(kMostMetadata)) return damaged("it is over 1 MiB");
  std::string text(static_cast<std::size_t>(expected), '\0');
  std::size_t size = 0;
  while (size < text.size()) {
    const ssize_t n = ::read(fd, text.data() + size, text.size() - size);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return failed(last_errno(), "the lock's metadata cannot be read");
    if (n == 0) break;
    size += static_cast<std::size_t>(n);
  }
  text.resize(size);
  return text;
}

}  // namespace

FileFacts facts_of(const struct stat& st) {
  return {st.st_dev, st.st_ino, st.st_size, st.st_mode,
          st.st_uid, st.st_gid, st.st_atim, st.st_mtim};
}

Outcome<std::string> metadata_text(const Metadata& metadata) {
  const Json tags = parse(metadata.tags);
  if (!tags.is_object()) return refused(EINVAL, "the tags are no JSON object");
  const Json json{
      {"version", kVersion},
      {"lock_id", metadata.id.text()},
      {"state", metadata.state == LockState::kLocked ? "locked" : "reverting"},
      {"name", metadata.name},
      {"path", metadata.path},
      {"user", metadata.user},
      {"uid", metadata.uid},
      {"locked_at", metadata.locked_at},
      {"tags", tags},
      {"file",
       {{"dev", metadata.file.dev},
        {"ino", metadata.file.ino},
        {"size", metadata.file.size},
        {"mode", metadata.file.mode},
        {"uid", metadata.file.uid},
        {"gid", metadata.file.gid},
        {"atime", time_text(metadata.file.atime)},
        {"mtime", time_text(metadata.file.mtime)}}},
  };
  std::string text = dump(json) + "\n";
  if (text.size() > kMostMetadata) {
    return refused(EMSGSIZE, "path and tags are too long: the lock's metadata would be over 1 MiB");
  }
  return text;
}

Outcome<Metadata> parse_metadata(std::string_view text) {
  if (text.size() > kMostMetadata) return damaged("it is over 1 MiB");
  const Json json = parse(text);
  if (!json.is_object()) return damaged("it is no JSON object");
  Reader reader{json};
  int version = 0;
  reader.take_number("version", version);
  if (!reader.fine()) return damaged("it has no version");
  if (version != kVersion) return damaged(fmt::format("version {} is not known", version));
  Metadata metadata;
  std::string id;
  std::string state;
  reader.take("lock_id", id);
  reader.take("state", state);
  reader.take("name", metadata.name);
  reader.take("path", metadata.path);
  reader.take("user", metadata.user);
  reader.take_number("uid", metadata.uid);
  reader.take("locked_at", metadata.locked_at);
  const Json* const tags = reader.take_object("tags");
  const Json* const file = reader.take_object("file");
  const auto parsed_id = LockId::parse(id);
  if (!reader.fine() || !parsed_id || !parse_file(*file, metadata.file)) {
    return damaged("a member is missing or wrong");
  }
  if (state != "locked" && state != "reverting") return damaged("its state is not known");
  metadata.id = *parsed_id;
  metadata.state = state == "locked" ? LockState::kLocked : LockState::kReverting;
  metadata.tags = dump(*tags);
  return metadata;
}

Outcome<Metadata> read_metadata(int dir, std::string_view name, const LockId& id) {
  const auto names = side_names(name);
  if (!names) return names.failure();
  const auto side = look_at_side(dir, names->metadata, id);
  if (!side) return failed(side.error(), in_quotes(names->metadata) + " cannot be looked at");
  if (side->state == SideState::kMissing) {
    return refused(ENOENT, in_quotes(names->metadata) + " is missing");
  }
  if (side->state != SideState::kOurs || side->attr.st_uid != ::geteuid()) {
    return refused(EBUSY, in_quotes(names->metadata) + " is not this lock's");
  }
  const auto fd = reopen(side->fd.get(), O_RDONLY);
  if (!fd) return failed(fd.error(), in_quotes(names->metadata) + " cannot be read");
  const auto text = read_text(fd->get(), side->attr.st_size);
  if (!text) return text.failure();
  auto metadata = parse_metadata(*text);
  if (metadata && metadata->id != id) return damaged("it names another lock");
  return metadata;
}

}  // namespace latchfs::filelock
