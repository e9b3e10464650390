#include "control/context.h"

#include <fmt/core.h>
#include <fnmatch.h>

#include <utility>

namespace latchfs::control {
namespace {

// `path` without the mount point in front: "/" for the mount point itself, "" if it is not there.
std::string_view below_mountpoint(std::string_view path, std::string_view mountpoint) {
  while (mountpoint.size() > 1 && mountpoint.back() == '/') mountpoint.remove_suffix(1);
  if (mountpoint.size() < 2 || path.substr(0, mountpoint.size()) != mountpoint) return {};
  path.remove_prefix(mountpoint.size());
  if (path.empty()) return "/";
  return path.front() == '/' ? path : std::string_view{};
}

}  // namespace

Context::Context(LockService& locks, FileView& files, Filelocks& filelocks, Options options)
    : locks_{locks}, files_{files}, filelocks_{filelocks}, options_{std::move(options)} {
  std::string& glob = options_.snapshots;
  glob.erase(0, std::min(glob.find_first_not_of('/'), glob.size()));
  while (!glob.empty() && glob.back() == '/') glob.pop_back();
  if (const auto root = files_.getattr(FileView::kRootNode)) root_dev_ = root->id.dev;
}

std::string Context::snapshot_of(std::string_view path) const {
  if (options_.snapshots.empty() || path.empty()) return {};
  for (auto slash = path.find('/', 1); slash != std::string_view::npos;
       slash = path.find('/', slash + 1)) {
    const std::string directory{path.substr(1, slash - 1)};
    if (::fnmatch(options_.snapshots.c_str(), directory.c_str(), FNM_PATHNAME) == 0) {
      return directory.substr(directory.rfind('/') + 1);  // npos + 1 is 0: the whole
    }
  }
  return {};
}

std::string_view Context::without_mountpoint(std::string_view path, int err) const {
  if (err != ENOENT && err != ENOTDIR) return {};
  return below_mountpoint(path, options_.mountpoint);
}

Result<FileId> Context::resolve(const FileRef& ref, const Caller& caller) const {
  if (ref.path.empty()) return FileId{ref.dev.value_or(root_dev_), ref.ino};
  auto found = files_.resolve(ref.path, caller);
  if (!found) {
    const auto rest = without_mountpoint(ref.path, found.error().value());
    if (!rest.empty()) found = files_.resolve(rest, caller);
  }
  if (!found) return found.error();
  return found->id;
}

std::vector<RemoteClient> Context::machines_of(const Grant& grant) const {
  if (grant.holder.client != 0) {
    const auto client = locks_.client_of(grant);
    return client ? std::vector{*client} : std::vector<RemoteClient>{};
  }
  if (auto clients = files_.nfs_clients(grant)) return *std::move(clients);
  return {{options_.node_name, options_.node_address}};
}

std::string Context::file_id_text(FileId file) const {
  if (file.dev == root_dev_) return std::to_string(file.ino);
  return fmt::format("{}:{}", file.dev, file.ino);
}

}  // namespace latchfs::control
