#include "daemon/export_check.h"

#include <fmt/core.h>

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <set>
#include <system_error>
#include <utility>

#include "base/log.h"

namespace latchfs::daemon {

namespace {

constexpr std::size_t kMaxText = std::size_t{1} << 20;

bool is_blank(char c) { return c == ' ' || c == '\t' || c == '\r'; }
bool is_octal(char c) { return c >= '0' && c <= '7'; }

// The words of one line after the other.
class Words {
 public:
  explicit Words(std::string_view text) : text_{text.substr(0, kMaxText)} {}

  // False at the end of the text; else stands at the first word of the next line.
  bool next_line() {
    if (begun_) skip_line();
    begun_ = true;
    return at_ < text_.size();
  }
  // The next word of this line; nothing at its end.
  std::optional<std::string> next() {
    skip_blanks();
    if (at_end_of_line()) return std::nullopt;
    std::string word;
    bool quoted = false;
    while (at_ < text_.size() && (quoted || !ends_word())) {
      const char c = text_[at_];
      if (c == '\n') break;  // a quote that nobody closed
      if (c == '"') {
        quoted = !quoted;
        ++at_;
      } else if (c == '\\') {
        escape(word);
      } else {
        word += c;
        ++at_;
      }
    }
    return word;
  }

 private:
  bool continues() const {
    return at_ + 1 < text_.size() && text_[at_] == '\\' && text_[at_ + 1] == '\n';
  }
  bool at_end_of_line() const {
    return at_ >= text_.size() || text_[at_] == '\n' || text_[at_] == '#';
  }
  bool ends_word() const {
    return is_blank(text_[at_]) || text_[at_] == '\n' || text_[at_] == '#' || continues();
  }
  void skip_blanks() {
    while (at_ < text_.size()) {
      if (continues()) {
        at_ += 2;
      } else if (is_blank(text_[at_])) {
        ++at_;
      } else {
        return;
      }
    }
  }
  void skip_line() {
    bool comment = false;
    while (at_ < text_.size() && text_[at_] != '\n') {
      comment = comment || text_[at_] == '#';
      // (A comment ends with its line, whatever it ends with.)
      at_ += !comment && continues() ? 2 : 1;
    }
    if (at_ < text_.size()) ++at_;
  }
  void escape(std::string& word) {
    const std::string_view digits = text_.substr(at_ + 1, 3);
    if (digits.size() == 3 && std::all_of(digits.begin(), digits.end(), is_octal)) {
      const int value = (digits[0] - '0') * 64 + (digits[1] - '0') * 8 + (digits[2] - '0');
      word += static_cast<char>(value & 0xff);
      at_ += 4;
    } else {
      word += text_[at_++];
    }
  }

  std::string_view text_;
  std::size_t at_{};
  bool begun_{};
};

std::vector<std::string> split_options(std::string_view list) {
  std::vector<std::string> options;
  while (!list.empty()) {
    const std::size_t comma = std::min(list.find(','), list.size());
    if (comma != 0) options.emplace_back(list.substr(0, comma));
    list.remove_prefix(std::min(comma + 1, list.size()));
  }
  return options;
}

// "client(options)", "client", "(options)".
ExportClient client_of(const std::string& word, std::vector<std::string> options) {
  const std::size_t open = word.find('(');
  ExportClient client{word.substr(0, open), std::move(options)};
  if (open == std::string::npos) return client;
  const std::size_t close = std::min(word.find(')', open), word.size());
  for (auto& option : split_options(std::string_view{word}.substr(open + 1, close - open - 1))) {
    client.options.push_back(std::move(option));
  }
  return client;
}

// "mp" and "mp=/path" alike.
bool has(const ExportClient& client, std::string_view name) {
  return std::any_of(client.options.begin(), client.options.end(), [&](const std::string& o) {
    return o.compare(0, name.size(), name) == 0 &&
           (o.size() == name.size() || o[name.size()] == '=');
  });
}

// Which of two opposites holds: the last one named.
bool checks_subtree(const ExportClient& client) {
  bool checks = false;
  for (const std::string& option : client.options) {
    if (option == "subtree_check") checks = true;
    if (option == "no_subtree_check") checks = false;
  }
  return checks;
}

// A path without the slashes and "." that mean nothing; ".." stays.
std::string plain(const std::string& path) {
  std::string clean = std::filesystem::path{path}.lexically_normal().string();
  if (clean.size() > 1 && clean.back() == '/') clean.pop_back();
  return clean;
}

bool is_or_is_below(const std::string& path, const std::string& top) {
  if (top == "/") return true;
  return path == top || (path.size() > top.size() && path.compare(0, top.size(), top) == 0 &&
                         path[top.size()] == '/');
}

std::string whom(const ExportClient& client) {
  return client.name.empty() ? "everybody" : log::printable(client.name);
}

void look_at(const Export& exported, const ExportClient& client, std::vector<std::string>& said) {
  const std::string what =
      fmt::format("the export of {} to {}", log::printable(exported.path), whom(client));
  if (!has(client, "fsid")) {
    said.push_back(fmt::format(
        "{} has no fsid=: the NFS server cannot name a FUSE file system to its clients; add "
        "fsid=NUMBER, the same for ever",
        what));
  }
  if (!has(client, "mp") && !has(client, "mountpoint")) {
    said.push_back(fmt::format(
        "{} has no 'mp': while latchfs is not mounted clients get, and write to, the directory "
        "below it; add mp",
        what));
  }
  if (checks_subtree(client)) {
    said.push_back(fmt::format(
        "{} has subtree_check: files that were renamed go stale; use no_subtree_check", what));
  }
}

}  // namespace

std::vector<Export> parse_exports(std::string_view text) {
  std::vector<Export> exports;
  for (Words words{text}; words.next_line();) {
    const auto path = words.next();
    if (!path || path->empty() || path->front() != '/') continue;
    Export exported{*path, {}};
    std::vector<std::string> defaults;
    while (const auto word = words.next()) {
      if (word->size() > 1 && word->front() == '-') {
        defaults = split_options(std::string_view{*word}.substr(1));
      } else {
        exported.clients.push_back(client_of(*word, defaults));
      }
    }
    // A path alone is exported to everybody.
    if (exported.clients.empty()) exported.clients.push_back({"", std::move(defaults)});
    exports.push_back(std::move(exported));
  }
  return exports;
}

std::vector<std::string> export_warnings(const std::vector<Export>& exports,
                                         const ExportSetting& setting) {
  std::vector<std::string> said;
  bool ours = false;
  const Export* above = nullptr;
  for (const Export& exported : exports) {
    const std::string path = plain(exported.path);
    if (is_or_is_below(path, setting.mountpoint)) {
      ours = true;
      for (const ExportClient& client : exported.clients) look_at(exported, client, said);
    } else if (is_or_is_below(setting.mountpoint, path)) {
      above = &exported;
    }
  }
  if (!ours && above != nullptr) {
    said.push_back(fmt::format(
        "{} is exported, which this mount is below: NFS clients do not see it there; export {} "
        "itself, with fsid=NUMBER,mp",
        log::printable(above->path), log::printable(setting.mountpoint)));
  }
  if (!ours) return said;
  if (setting.leases) {
    said.emplace_back(
        "fs.leases-enable is not 0: what an NFSv4 client locks under a delegation nobody else "
        "sees; sysctl fs.leases-enable=0, before the NFS server starts");
  }
  if (setting.mandatory) {
    said.emplace_back(
        "enforce=mandatory on an exported mount: what NFS clients read and write does not say "
        "whose it is, so their own locks hold against them, too; use enforce=advisory");
  }
  // The same of several clients, or of a line that is there twice, is said once.
  std::set<std::string> seen;
  const auto again = [&](const std::string& line) { return !seen.insert(line).second; };
  said.erase(std::remove_if(said.begin(), said.end(), again), said.end());
  return said;
}

std::vector<Export> read_exports(const std::string& etc) {
  namespace fs = std::filesystem;
  std::vector<std::string> files{etc + "/exports"};
  std::error_code ignored;
  for (fs::directory_iterator at{etc + "/exports.d", ignored}, end; !ignored && at != end;
       at.increment(ignored)) {
    const std::string name = at->path().filename().string();
    if (name.front() != '.' && at->path().extension() == ".exports") files.push_back(at->path());
  }
  std::sort(files.begin() + 1, files.end());
  std::vector<Export> exports;
  for (const std::string& name : files) {
    // A pipe by that name would be waited for.
    if (!fs::is_regular_file(name, ignored)) continue;
    std::ifstream in{name, std::ios::binary};
    std::string text(kMaxText, '\0');
    in.read(text.data(), static_cast<std::streamsize>(text.size()));
    text.resize(static_cast<std::size_t>(in.gcount()));
    auto more = parse_exports(text);
    std::move(more.begin(), more.end(), std::back_inserter(exports));
  }
  return exports;
}

bool leases_enabled(const std::string& proc) {
  std::ifstream in{proc + "/sys/fs/leases-enable"};
  int value = 0;
  return (in >> value) && value != 0;
}

}  // namespace latchfs::daemon
