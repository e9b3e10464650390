// The file handle that the kernel's NFS server gives its clients for a file of a FUSE mount, taken
// apart (linux/fs/nfsd/nfsfh.h, struct knfsd_fh; fs/fuse/inode.c, fuse_encode_fh()).
//
//   byte 0  version, 1      byte 1  authentication, 0
//   byte 2  fsid type: 1 FSID_NUM (4 bytes), 6 FSID_UUID16 (16 bytes)
//   byte 3  fileid type: 0 the root of the export, 0x81 FILEID_INO64_GEN, 0x82 the same with the
//           parent behind it (subtree_check)
//   fsid, then the file: node id (high word, low word) and generation, words in the server's order
//
// The parent is left out: with it a file would have another name after each rename.
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "latchfs/result.h"

namespace latchfs::nlm {

// Which export. Of exports(5), fsid=: a number, or a UUID.
struct Fsid {
  std::array<unsigned char, 16> bytes{};  // of a number the first four
  bool uuid{};
  auto operator<=>(const Fsid&) const = default;

  // A decimal number up to 2^32-1, or a UUID (hex digits, with or without "-" or ":" anywhere).
  // Nothing if it is neither.
  [[nodiscard]] static std::optional<Fsid> parse(std::string_view text);
};
[[nodiscard]] std::string to_string(const Fsid& fsid);

struct NfsHandle {
  Fsid fsid;
  bool root{};  // of the export; then the rest is 0
  std::uint64_t node{};
  std::uint32_t generation{};
  auto operator<=>(const NfsHandle&) const = default;
};

// EINVAL for any bytes but such a handle.
[[nodiscard]] Result<NfsHandle> parse_handle(std::string_view bytes);
// The bytes of one, without a parent.
[[nodiscard]] std::string handle_bytes(const NfsHandle& handle);

}  // namespace latchfs::nlm
