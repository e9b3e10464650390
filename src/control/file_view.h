// What the control tree must know about the files of the mount. Implemented above (fuse/), faked
// in tests. Nodes are the mount's node ids; a node that lookup() returned is referenced once and
// given back by forget().
#pragma once

#include <sys/stat.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/caller.h"
#include "latchfs/result.h"
#include "latchfs/types.h"

namespace latchfs::control {

struct FileEntry {
  std::uint64_t node{};
  FileId id;
  struct stat attr {};
  std::uint32_t generation{};  // of the node, which may be another file's one day
};

// Where a grant's file is, seen from this mount.
struct Located {
  std::string path;  // "/db/app.sqlite"; "" if this mount knows no name for it
  bool outside{};    // certainly not below the mount's root: not listed
};

class FileView {
 public:
  virtual ~FileView() = default;

  static constexpr std::uint64_t kRootNode = 1;

  // One step down, as the caller; symlinks are not followed. ENOENT, EACCES, ENOTDIR, ...
  [[nodiscard]] virtual Result<FileEntry> lookup(std::uint64_t parent, std::string_view name,
                                                 const Caller&) = 0;
  // The node once more, whether the mount still knows it or not, or the directory it is in: what
  // NFS servers ask for by handle. ESTALE: there is no such file (any more).
  enum class Which : std::uint8_t { kItself, kItsDirectory };
  [[nodiscard]] virtual Result<FileEntry> revive(std::uint64_t node, Which) = 0;
  virtual void forget(std::uint64_t node, std::uint64_t count) noexcept = 0;
  // ESTALE if the node is not known.
  [[nodiscard]] virtual Result<FileEntry> getattr(std::uint64_t node) = 0;

  // An absolute path ("/" is the mount's root) walked as the caller, no symlink followed anywhere
  // (ELOOP). Takes no reference: FileEntry::node is 0.
  [[nodiscard]] virtual Result<FileEntry> resolve(std::string_view path, const Caller&) = 0;

  // The current path of the file a grant is on, also after renames. Never a guess.
  [[nodiscard]] virtual Located locate(const Grant&) = 0;

  // The NFS clients that a lock which this machine's NFS server took may be held for (one: it is
  // his; several: one of them; none: nobody knows). Nothing: the lock is of a process here.
  [[nodiscard]] virtual std::optional<std::vector<RemoteClient>> nfs_clients(const Grant&) = 0;

  // Could the caller open the file at this mount path for reading, path walk included?
  [[nodiscard]] virtual bool may_read(std::string_view path, FileId, const Caller&) = 0;

  // uid 0 or a member of admin_group (supplementary groups count).
  [[nodiscard]] virtual bool is_admin(const Caller&) = 0;

  // Is the caller a server that opens for one user what others read, as root or as him, so that
  // nobody knows which of them sees it (NFS-Ganesha)? What it writes it does as the user.
  [[nodiscard]] virtual bool hides_users(const Caller&) = 0;

  // Is the caller a server that opens once what many users then read and write, each of them under
  // his own name (the kernel's NFS server)?
  [[nodiscard]] virtual bool shares_files(const Caller&) = 0;
};

}  // namespace latchfs::control
