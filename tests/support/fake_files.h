// A directory tree in a map: what the control tree's tests stand on instead of a mount.
//
// Permissions: uid 0 may all; the owner by the owner's bits, everybody else by the others'.
// A file's inode number is its node number plus 1000; all are on device kDev but where a test
// says otherwise.
#pragma once

#include <sys/stat.h>

#include <map>
#include <mutex>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "control/file_view.h"

namespace latchfs::testing {

class FakeFiles final : public control::FileView {
 public:
  static constexpr std::uint64_t kDev = 7;

  FakeFiles() { make("/", S_IFDIR | 0755, 0); }

  // ---- what the test arranges

  // The file at `path`, whose directory exists.
  FileId make(const std::string& path, mode_t mode, uid_t uid, std::uint64_t dev = kDev) {
    const std::lock_guard lock{mu_};
    const std::uint64_t node = next_++;
    File file;
    file.path = path;
    file.entry.node = node;
    file.entry.id = {dev, node + 1000};
    file.entry.attr.st_mode = mode;
    file.entry.attr.st_uid = uid;
    file.entry.attr.st_gid = uid;
    file.entry.attr.st_ino = node + 1000;
    file.entry.attr.st_nlink = 1;
    file.entry.attr.st_mtim.tv_sec = 12345;
    files_[node] = file;
    return file.entry.id;
  }
  FileId file(const std::string& path, uid_t uid = 0, mode_t mode = 0644) {
    return make(path, S_IFREG | mode, uid);
  }
  void directory(const std::string& path, uid_t uid = 0, mode_t mode = 0755) {
    make(path, S_IFDIR | mode, uid);
  }
  void rename(FileId id, const std::string& path) {
    const std::lock_guard lock{mu_};
    for (auto& [node, file] : files_) {
      if (file.entry.id == id) file.path = path;
    }
  }
  void chmod(const std::string& path, mode_t mode) {
    const std::lock_guard lock{mu_};
    for (auto& [node, file] : files_) {
      if (file.path == path) {
        file.entry.attr.st_mode = (file.entry.attr.st_mode & S_IFMT) | mode;
      }
    }
  }
  std::set<uid_t> admins{0};
  pid_t user_server{-1};    // a server that hides its users
  pid_t kernel_server{-1};  // one that opens once for all of them
  std::set<FileId> outside;
  std::set<FileId> unnamed;  // locate() finds no path for these
  std::uint64_t locates{};
  // References held on nodes, by node.
  std::map<std::uint64_t, std::int64_t> references;
  std::int64_t all_references() {
    std::int64_t sum = 0;
    for (const auto& [node, count] : references) sum += count;
    return sum;
  }

  // ---- FileView

  Result<control::FileEntry> lookup(std::uint64_t parent, std::string_view name,
                                    const Caller& caller) override {
    const std::lock_guard lock{mu_};
    const auto found = files_.find(parent);
    if (found == files_.end()) return errno_code(ESTALE);
    const File& dir = found->second;
    if (!S_ISDIR(dir.entry.attr.st_mode)) return errno_code(ENOTDIR);
    if (!allowed(dir, caller, 1)) return errno_code(EACCES);
    const File* file = at(join(dir.path, name));
    if (file == nullptr) return errno_code(ENOENT);
    ++references[file->entry.node];
    return file->entry;
  }
  Result<control::FileEntry> revive(std::uint64_t node, Which which) override {
    const std::lock_guard lock{mu_};
    const auto found = files_.find(node);
    if (found == files_.end()) return errno_code(ESTALE);
    const File* file = which == Which::kItself ? &found->second : at(parent_of(found->second.path));
    ++references[file->entry.node];
    return file->entry;
  }
  void forget(std::uint64_t node, std::uint64_t count) noexcept override {
    const std::lock_guard lock{mu_};
    references[node] -= static_cast<std::int64_t>(count);
  }
  Result<control::FileEntry> getattr(std::uint64_t node) override {
    const std::lock_guard lock{mu_};
    const auto found = files_.find(node);
    if (found == files_.end()) return errno_code(ESTALE);
    return found->second.entry;
  }
  Result<control::FileEntry> resolve(std::string_view path, const Caller& caller) override {
    const std::lock_guard lock{mu_};
    std::string walked = "/";
    std::size_t begin = 0;
    while (begin < path.size()) {
      const auto end = std::min(path.find('/', begin), path.size());
      const std::string_view name = path.substr(begin, end - begin);
      begin = end + 1;
      if (name.empty()) continue;
      if (name.size() > 255) return errno_code(ENAMETOOLONG);
      const File* dir = at(walked);
      if (dir == nullptr) return errno_code(ENOENT);
      if (S_ISLNK(dir->entry.attr.st_mode)) return errno_code(ELOOP);
      if (!S_ISDIR(dir->entry.attr.st_mode)) return errno_code(ENOTDIR);
      if (!allowed(*dir, caller, 1)) return errno_code(EACCES);
      walked = join(walked, name);
    }
    const File* file = at(walked);
    if (file == nullptr) return errno_code(ENOENT);
    if (S_ISLNK(file->entry.attr.st_mode)) return errno_code(ELOOP);
    control::FileEntry entry = file->entry;
    entry.node = 0;
    return entry;
  }
  control::Located locate(const Grant& grant) override {
    const std::lock_guard lock{mu_};
    ++locates;
    if (outside.count(grant.file) != 0) return {"", true};
    if (unnamed.count(grant.file) != 0) return {};
    for (const auto& [node, file] : files_) {
      if (file.entry.id == grant.file) return {file.path, false};
    }
    return {};
  }
  std::map<FileId, std::vector<RemoteClient>> nfs_locked;  // files the NFS server has locks on
  std::optional<std::vector<RemoteClient>> nfs_clients(const Grant& grant) override {
    const std::lock_guard lock{mu_};
    const auto found = nfs_locked.find(grant.file);
    if (found == nfs_locked.end()) return std::nullopt;
    return found->second;
  }
  bool may_read(std::string_view path, FileId id, const Caller& caller) override {
    const auto entry = resolve(path, caller);
    if (!entry || entry->id != id) return false;
    const std::lock_guard lock{mu_};
    return allowed(*at(std::string{path}), caller, 4);
  }
  bool is_admin(const Caller& caller) override { return admins.count(caller.uid) != 0; }
  bool hides_users(const Caller& caller) override { return caller.pid == user_server; }
  bool shares_files(const Caller& caller) override { return caller.pid == kernel_server; }

 private:
  struct File {
    std::string path;
    control::FileEntry entry;
  };

  static std::string join(const std::string& dir, std::string_view name) {
    return (dir == "/" ? "/" : dir + "/") + std::string{name};
  }
  static std::string parent_of(const std::string& path) {
    const auto slash = path.rfind('/');
    return slash == 0 ? "/" : path.substr(0, slash);
  }
  static bool allowed(const File& file, const Caller& caller, mode_t bits) {
    if (caller.uid == 0) return true;
    const mode_t mode = file.entry.attr.st_mode;
    return ((caller.uid == file.entry.attr.st_uid ? mode >> 6 : mode) & bits) == bits;
  }
  const File* at(const std::string& path) const {
    for (const auto& [node, file] : files_) {
      if (file.path == path) return &file;
    }
    return nullptr;
  }

  std::mutex mu_;
  std::map<std::uint64_t, File> files_;
  std::uint64_t next_{kRootNode};
};

}  // namespace latchfs::testing
