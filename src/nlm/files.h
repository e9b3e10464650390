// From a file handle to a file of a mount, and whether a user may lock it.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "base/unique_fd.h"
#include "latchfs/result.h"
#include "latchfs/types.h"
#include "nlm/nfs_handle.h"

namespace latchfs::nlm {

// Who asks, squashed already.
struct User {
  std::uint32_t uid{};
  std::uint32_t gid{};
  std::vector<std::uint32_t> groups;
  bool operator==(const User&) const = default;
};

// Open: as long as this lives the file keeps its inode number, also when it is removed.
struct OpenFile {
  FileId id;
  UniqueFd fd;       // none in tests without files
  bool read_only{};  // the file system is
  Fsid fsid;         // where it was found
};
using OpenFilePtr = std::shared_ptr<const OpenFile>;

// Any thread. May wait for the mount's daemon: call it holding nothing.
class Files {
 public:
  virtual ~Files() = default;

  [[nodiscard]] virtual bool exports(const Fsid& fsid) const = 0;
  // ESTALE: no such export, or no such file any more. EINVAL: no regular file. ENOTCONN: the mount
  // is not there, or not one of our table. Else what the mount answered.
  [[nodiscard]] virtual Result<OpenFilePtr> open(const NfsHandle& handle) = 0;
  // Whether he may read the file or owns it (as nfsd: NFSD_MAY_LOCK): else EACCES. ESTALE or
  // ENOTCONN: the file has to be opened anew, its mount went away.
  [[nodiscard]] virtual Result<void> may_lock(const OpenFile& file, const User& user) = 0;
  // Lets go of what has not been used for a while.
  virtual void let_go() {}
};

}  // namespace latchfs::nlm
