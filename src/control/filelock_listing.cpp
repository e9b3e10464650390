#include "control/filelock_listing.h"

#include <utility>

#include "base/clock.h"
#include "control/text.h"

namespace latchfs::control {
namespace {

constexpr std::uint32_t kPage = 256;

void field(std::string& out, std::string_view key, std::string_view value) {
  out += ", \"";
  out += key;
  out += "\": ";
  append_json_string(out, value);
}

}  // namespace

void append_tags(std::string& out, const Tags& tags) {
  out += '{';
  bool first = true;
  for (const auto& [key, value] : tags) {
    if (!first) out += ", ";
    first = false;
    append_json_string(out, key);
    out += ": ";
    append_json_string(out, value);
  }
  out += '}';
}

void append_filelock(std::string& out, const Context& context, const FilelockEntry& entry) {
  out += "{\"path\": ";
  append_json_string(out, entry.path);
  field(out, "file_id", context.file_id_text(entry.file));
  field(out, "user", entry.user);
  out += ", \"uid\": ";
  append_number(out, entry.uid);
  field(out, "locked_at", rfc3339(entry.locked_at_ns));
  out += ", \"tags\": ";
  append_tags(out, entry.tags);
  field(out, "state", entry.state);
  out += '}';
}

Result<Filelocks::Page> FilelockListing::fetch_one() const {
  const std::string& path = scope_.query.ref->path;
  auto found = context_.filelocks().find(path, scope_.viewer.caller);
  if (!found) {
    const auto rest = context_.without_mountpoint(path, found.error().value());
    if (!rest.empty()) found = context_.filelocks().find(rest, scope_.viewer.caller);
  }
  if (!found) return found.error();
  Filelocks::Page page;
  // What came after it in the order of paths is for the keeper to say; itself does not.
  if (*found && (*found)->path != at_.after_path) page.entries.push_back(std::move(**found));
  return page;
}

Result<Filelocks::Page> FilelockListing::fetch() const {
  if (scope_.query.ref && !scope_.query.ref->path.empty()) return fetch_one();
  return context_.filelocks().list(at_.after_path, kPage);
}

bool FilelockListing::shown(const FilelockEntry& entry) const {
  const Query& query = scope_.query;
  if (query.uid && *query.uid != entry.uid) return false;
  if (query.user && *query.user != entry.user) return false;
  if (scope_.file && *scope_.file != entry.file) return false;
  if (scope_.viewer.admin || entry.uid == scope_.viewer.caller.uid) return true;
  return context_.files().may_read(entry.path, entry.file, scope_.viewer.caller);
}

Result<bool> FilelockListing::more(std::string& out) {
  if (at_.ended || late_) return false;
  const auto page = fetch();
  if (!page) return page.error();
  if (!at_.opened) out += "{\"filelocks\": [\n";
  at_.opened = true;
  std::string last = at_.after_path;  // the last one shown
  for (const FilelockEntry& entry : page->entries) {
    late_ = stop_at_ns_ && monotonic_ns() >= *stop_at_ns_;
    if (late_) return true;
    if (!shown(entry)) continue;
    if (at_.left == 0U) {
      close(out, url_encode(last));
      return true;
    }
    out += at_.any ? ",\n" : "";
    at_.any = true;
    append_filelock(out, context_, entry);
    if (at_.left) --*at_.left;
    last = entry.path;
  }
  at_.after_path = page->next;
  if (page->next.empty() || at_.left == 0U) close(out, url_encode(page->next));
  return true;
}

}  // namespace latchfs::control
