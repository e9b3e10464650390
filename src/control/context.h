// What every part of the tree works on.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "control/file_view.h"
#include "control/filelocks.h"
#include "control/query.h"
#include "control/tree.h"
#include "latchfs/lock_service.h"

namespace latchfs::control {

// Shared by all parts of one Tree; outlives them.
class Context {
 public:
  Context(LockService& locks, FileView& files, Filelocks& filelocks, Options options);
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;
  ~Context() = default;

  LockService& locks() const { return locks_; }
  FileView& files() const { return files_; }
  Filelocks& filelocks() const { return filelocks_; }
  const Options& options() const { return options_; }

  // The snapshot a file belongs to: the last name of the outermost directory above it that
  // matches the `snapshots` GLOB (fnmatch(3) with FNM_PATHNAME over the path without its leading
  // '/'); "" if there is none.
  std::string snapshot_of(std::string_view path) const;

  // What to try next where nothing is at `path` (`err` says so): it without the mount point in
  // front. "": nothing.
  std::string_view without_mountpoint(std::string_view path, int err) const;

  // A file as a user named it. A path is walked as the caller; one that is not there is tried
  // once more without the mount point in front. Numbers are not checked: whether anything is
  // locked under them is for the table to say.
  Result<FileId> resolve(const FileRef& ref, const Caller& caller) const;

  // The machines a grant may be held for: as a rule one, this one's; of an NFS client's lock those
  // FileView::nfs_clients() names.
  std::vector<RemoteClient> machines_of(const Grant& grant) const;

  // As listings print it and FileRef reads it.
  std::string file_id_text(FileId file) const;

  // The device of the mount's root; 0 if the root cannot be asked.
  std::uint64_t root_dev() const { return root_dev_; }

 private:
  LockService& locks_;
  FileView& files_;
  Filelocks& filelocks_;
  Options options_;
  std::uint64_t root_dev_{};
};

}  // namespace latchfs::control
