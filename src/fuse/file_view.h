// The mount's files as the control tree sees them (control/file_view.h).
//
// Thread-safe.
#pragma once

#include <optional>
#include <string>

#include "control/file_view.h"
#include "posix/inode_table.h"

namespace latchfs::fuse {

class MountFileView final : public control::FileView {
 public:
  MountFileView(posix::InodeTable& inodes, std::string control_name, std::optional<gid_t> admin_gid)
      : inodes_{inodes}, control_name_{std::move(control_name)}, admin_gid_{admin_gid} {}

  Result<control::FileEntry> lookup(std::uint64_t parent, std::string_view name,
                                    const Caller& caller) override;
  void forget(std::uint64_t node, std::uint64_t count) noexcept override;
  Result<control::FileEntry> getattr(std::uint64_t node) override;
  Result<std::vector<control::FileName>> readdir(std::uint64_t node, const Caller& caller) override;
  Result<control::FileEntry> resolve(std::string_view path, const Caller& caller) override;
  control::Located locate(const Grant& grant) override;
  bool may_read(std::string_view path, FileId id, const Caller& caller) override;
  bool is_admin(const Caller& caller) override;

 private:
  // An O_PATH descriptor of what the path names, walked as the caller.
  Result<UniqueFd> walk(std::string_view path, const Caller& caller);

  posix::InodeTable& inodes_;
  const std::string control_name_;
  const std::optional<gid_t> admin_gid_;
};

}  // namespace latchfs::fuse
