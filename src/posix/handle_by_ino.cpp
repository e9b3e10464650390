#include "posix/handle_by_ino.h"

#include <linux/magic.h>
#include <sys/ioctl.h>
#include <sys/vfs.h>
#include <xfs/xfs.h>

#include <array>
#include <cerrno>
#include <cstring>

#ifndef F2FS_SUPER_MAGIC
#define F2FS_SUPER_MAGIC 0xF2F52010
#endif
#ifndef XFS_SUPER_MAGIC
#define XFS_SUPER_MAGIC 0x58465342
#endif

namespace latchfs::posix {
namespace {

constexpr std::int32_t kIno32Gen = 1;     // FILEID_INO32_GEN, linux/exportfs.h
constexpr std::int32_t kXfs64Bit = 0x80;  // XFS_FILEID_TYPE_64FLAG, fs/xfs/xfs_export.h
constexpr std::int32_t kBtrfsWithoutParent = 0x4d;

// struct xfs_fid64, without what is said of a parent.
struct Xfs64 {
  std::uint64_t ino;
  std::uint32_t generation;
} __attribute__((packed));

// struct btrfs_fid, without what is said of a parent.
struct Btrfs {
  std::uint64_t object, root;
  std::uint32_t generation;
} __attribute__((packed));

Result<FileHandle> ino32(std::uint64_t ino, std::uint32_t generation) noexcept {
  if (ino > UINT32_MAX) return errno_code(ESTALE);
  const std::array<std::uint32_t, 2> words{static_cast<std::uint32_t>(ino), generation};
  return FileHandle::make(kIno32Gen, words.data(), sizeof words);
}

Result<FileHandle> on_xfs(int mount, std::uint64_t ino) noexcept {
  // The request ends in a flexible array.
  alignas(struct xfs_bulkstat_req)
      std::array<char, sizeof(struct xfs_bulkstat_req) + sizeof(struct xfs_bulkstat)>
          buffer{};
  auto* const request = reinterpret_cast<struct xfs_bulkstat_req*>(buffer.data());
  request->hdr.ino = ino;
  request->hdr.icount = 1;
  if (::ioctl(mount, XFS_IOC_BULKSTAT, request) != 0) {
    return errno == EINVAL ? errno_code(ESTALE) : last_errno();  // a number beyond the last
  }
  const struct xfs_bulkstat& found = request->bulkstat[0];
  // Of numbers not in use it tells the next one that is.
  if (request->hdr.ocount != 1 || found.bs_ino != ino) return errno_code(ESTALE);
  if (ino <= UINT32_MAX) return ino32(ino, found.bs_gen);
  const Xfs64 fid{ino, found.bs_gen};
  return FileHandle::make(kIno32Gen | kXfs64Bit, &fid, sizeof fid);
}

Result<FileHandle> on_btrfs(int mount, std::uint64_t ino) noexcept {
  const auto own = FileHandle::of(mount);
  if (!own) return own.error();
  Btrfs fid{};
  if (own->type() != kBtrfsWithoutParent || own->size() != sizeof fid) {
    return errno_code(EOPNOTSUPP);
  }
  std::memcpy(&fid, own->bytes(), sizeof fid);
  fid.object = ino;
  fid.generation = 0;
  return FileHandle::make(kBtrfsWithoutParent, &fid, sizeof fid);
}

}  // namespace

Result<FileHandle> handle_by_ino(int mount, std::uint64_t ino) noexcept {
  struct statfs fs {};
  if (::fstatfs(mount, &fs) != 0) return last_errno();
  switch (static_cast<std::uint32_t>(fs.f_type)) {
    case EXT4_SUPER_MAGIC:
    case F2FS_SUPER_MAGIC:
      return ino32(ino, 0);
    case XFS_SUPER_MAGIC:
      return on_xfs(mount, ino);
    case BTRFS_SUPER_MAGIC:
      return on_btrfs(mount, ino);
    default:
      return errno_code(EOPNOTSUPP);
  }
}

}  // namespace latchfs::posix
