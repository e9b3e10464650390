// Filelocks in a map: what the control tree's tests stand on instead of a mount that keeps them.
//
// Rules as CONTRACT section 4 has them, over the files of FakeFiles: who may write a file may lock
// it, the locking user and admins unlock. Files are in the order of their paths' bytes.
#pragma once

#include <sys/stat.h>

#include <atomic>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "control/filelocks.h"
#include "support/fake_files.h"

namespace latchfs::testing {

class FakeFilelocks final : public control::Filelocks {
 public:
  explicit FakeFilelocks(FakeFiles& files) : files_{files} {}

  struct Call {
    std::string path;
    std::optional<control::Tags> tags;  // of apply
    bool revert{};                      // of remove
    uid_t uid{};
    bool admin{};
  };

  // ---- what the test arranges and looks at

  // Locked by `uid` at 2026-11-21T09:30:00.123456Z, whatever the rules say.
  void add(const std::string& path, FileId file, uid_t uid, control::Tags tags = {},
           const std::string& state = "locked") {
    const std::lock_guard lock{mu_};
    control::FilelockEntry entry;
    entry.path = path;
    entry.file = file;
    entry.uid = uid;
    entry.user = uid == 1000 ? "alice" : uid == 1001 ? "bob" : uid == 0 ? "root" : "";
    entry.locked_at_ns = 1'795'253'400'123'456'000;
    entry.tags = std::move(tags);
    entry.state = state;
    entries_[path] = entry;
    ++changes_;
  }
  void erase(const std::string& path) {
    const std::lock_guard lock{mu_};
    entries_.erase(path);
    ++changes_;
  }
  std::vector<std::string> locked() {
    const std::lock_guard lock{mu_};
    std::vector<std::string> out;
    for (const auto& [path, entry] : entries_) out.push_back(path);
    return out;
  }
  std::vector<Call> applied;
  std::vector<Call> removed;
  std::map<std::string, control::FilelockFailure> failing;  // by path
  std::function<void(std::string_view)> on_apply;
  // Pages have no more, whatever is asked for, and end after so many entries looked at, of which
  // those that `unseen` names count as names that are no filelocks.
  std::size_t page_size{1000};
  std::function<bool(const std::string&)> unseen;
  int list_error{};
  std::uint64_t list_calls{};
  std::uint64_t find_calls{};

  // ---- Filelocks

  std::optional<control::FilelockFailure> apply(std::string_view path,
                                                const std::optional<control::Tags>& tags,
                                                const Caller& caller, bool admin) override {
    if (on_apply) on_apply(path);
    applied.push_back({std::string{path}, tags, false, caller.uid, admin});
    const auto file = files_.resolve(path, caller);
    if (!file) return fail(file.error().value());
    if (const auto bad = failing.find(std::string{path}); bad != failing.end()) return bad->second;
    if (!S_ISREG(file->attr.st_mode)) return fail(EISDIR, "not a regular file");
    const mode_t mode = file->attr.st_mode;
    const mode_t bits = caller.uid == file->attr.st_uid ? mode >> 6 : mode;
    if (caller.uid != 0 && (bits & 2) == 0) return fail(EACCES);
    {
      const std::lock_guard lock{mu_};
      const auto held = entries_.find(std::string{path});
      if (held != entries_.end()) {
        if (held->second.uid != caller.uid) {
          return fail(EBUSY, "locked by " + held->second.user);
        }
        if (tags) held->second.tags = *tags;
        return std::nullopt;
      }
    }
    add(std::string{path}, file->id, caller.uid, tags.value_or(control::Tags{}));
    return std::nullopt;
  }
  std::optional<control::FilelockFailure> remove(std::string_view path, bool revert,
                                                 const Caller& caller, bool admin) override {
    removed.push_back({std::string{path}, std::nullopt, revert, caller.uid, admin});
    const auto file = files_.resolve(path, caller);
    if (!file) return fail(file.error().value());
    const std::lock_guard lock{mu_};
    const auto held = entries_.find(std::string{path});
    if (held == entries_.end()) return fail(ENOENT, "no filelock");
    if (held->second.uid != caller.uid && !admin) return fail(EACCES);
    entries_.erase(held);
    ++changes_;
    return std::nullopt;
  }
  Result<Page> list(std::string_view after, std::uint32_t limit) override {
    const std::lock_guard lock{mu_};
    ++list_calls;
    if (list_error != 0) return errno_code(list_error);
    Page page;
    std::size_t looked_at = 0;
    for (auto it = entries_.upper_bound(std::string{after}); it != entries_.end(); ++it) {
      if (page.entries.size() == limit || looked_at == page_size) {
        page.next = last_;
        return page;
      }
      ++looked_at;
      last_ = it->first;
      if (!unseen || !unseen(it->first)) page.entries.push_back(it->second);
    }
    return page;
  }
  Result<std::optional<control::FilelockEntry>> find(std::string_view path,
                                                     const Caller& caller) override {
    const auto file = files_.resolve(path, caller);
    if (!file) return file.error();
    const std::lock_guard lock{mu_};
    ++find_calls;
    const auto held = entries_.find(std::string{path});
    if (held == entries_.end()) return std::optional<control::FilelockEntry>{};
    return std::optional<control::FilelockEntry>{held->second};
  }
  std::uint64_t changes() const noexcept override { return changes_; }

 private:
  static std::optional<control::FilelockFailure> fail(int err, std::string words = {}) {
    return control::FilelockFailure{err, std::move(words)};
  }

  FakeFiles& files_;
  std::mutex mu_;
  std::map<std::string, control::FilelockEntry> entries_;
  std::string last_;
  std::atomic<std::uint64_t> changes_{1};
};

}  // namespace latchfs::testing
