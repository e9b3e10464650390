// The mount's files as the control tree sees them (control/file_view.h).
//
// Thread-safe.
#pragma once

#include <optional>
#include <string>
#include <unordered_map>

#include "base/mutex.h"
#include "control/file_view.h"
#include "latchfs/lock_service.h"
#include "posix/inode_table.h"
#include "posix/nfsd_clients.h"
#include "posix/path_finder.h"

namespace latchfs::fuse {

class MountFileView final : public control::FileView {
 public:
  // locks: tells which daemon holds a grant's file open.
  MountFileView(posix::InodeTable& inodes, LockService& locks, std::string control_name,
                std::optional<gid_t> admin_gid);

  Result<control::FileEntry> lookup(std::uint64_t parent, std::string_view name,
                                    const Caller& caller) override;
  [[nodiscard]] Result<control::FileEntry> revive(std::uint64_t node, Which) override;
  void forget(std::uint64_t node, std::uint64_t count) noexcept override;
  Result<control::FileEntry> getattr(std::uint64_t node) override;
  Result<control::FileEntry> resolve(std::string_view path, const Caller& caller) override;
  control::Located locate(const Grant& grant) override;
  std::optional<std::vector<RemoteClient>> nfs_clients(const Grant& grant) override;
  bool may_read(std::string_view path, FileId id, const Caller& caller) override;
  bool is_admin(const Caller& caller) override;
  bool hides_users(const Caller& caller) override;
  bool shares_files(const Caller& caller) override;

  // A name in a directory, and what has it: both O_PATH; no file if nothing has the name.
  struct Place {
    UniqueFd directory;
    std::string name;
    UniqueFd file;
  };
  // As resolve(), but that the last name may be missing. EISDIR: the root.
  Result<Place> place_of(std::string_view path, const Caller& caller);

  // To read its names; as the caller.
  Result<UniqueFd> open_directory(std::uint64_t node, const Caller& caller);

 private:
  // Can the kernel be asked what this caller may, by acting as him? A daemon that is an ordinary
  // user's acts as its user always.
  [[nodiscard]] bool can_act_as(const Caller& caller) const { return root_ || caller.uid == own_; }
  // An O_PATH descriptor of what the path names, walked as the caller. With `last` only of the
  // directory above it, and the name there ("" for the root).
  Result<UniqueFd> walk(std::string_view path, const Caller& caller, std::string* last = nullptr);
  Result<UniqueFd> step_as(const Caller& caller, int dir, const char* name);
  // A mount that shares the table; empty if it is gone.
  struct Sharer {
    pid_t daemon{};
    std::string mountpoint;
    dev_t super_block{};  // 0: not looked for yet
  };
  Sharer sharer(std::uint64_t mount);
  // What a lock was taken through: so it is mounted, and stays what it is. 0: it is not to be seen.
  dev_t super_block_of(std::uint64_t mount);

  posix::InodeTable& inodes_;
  LockService& locks_;
  posix::PathFinder finder_;
  const std::string control_name_;
  const std::optional<gid_t> admin_gid_;
  const uid_t own_;
  const bool root_;

  Mutex mu_;  // leaf
  // Mount numbers are never used again, so what was found stays right; a dead daemon's
  // descriptors are not found by the finder.
  std::unordered_map<std::uint64_t, Sharer> sharers_ GUARDED_BY(mu_);
  posix::NfsdClients nfsd_clients_;
};

}  // namespace latchfs::fuse
