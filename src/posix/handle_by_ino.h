// From an inode number back to a file: what an NFS client's handle needs once nobody remembers the
// file any more, in this daemon or in one before it.
#pragma once

#include <cstdint>

#include "latchfs/result.h"
#include "posix/file_handle.h"

namespace latchfs::posix {

// A handle that opens whatever lives under the inode number now, on the file system of `mount` (any
// ordinary descriptor). Who it is for must be compared with what is found: its own handle, or its
// generation. Needs the daemon's rights (xfs: CAP_SYS_ADMIN). Thread-safe; no table, no path walk.
//
//   ext2, ext3, ext4, f2fs  FILEID_INO32_GEN with generation 0 (ext4_nfs_get_inode())
//   xfs                     FILEID_INO32_GEN with the generation that XFS_IOC_BULKSTAT tells
//   btrfs                   FILEID_BTRFS_WITHOUT_PARENT, generation 0, of mount's subvolume
//                           (btrfs_get_dentry())
//
// ESTALE: no such inode; EOPNOTSUPP: another file system.
[[nodiscard]] Result<FileHandle> handle_by_ino(int mount, std::uint64_t ino) noexcept;

}  // namespace latchfs::posix
