// A file's name that outlives every rename: name_to_handle_at(2).
//
// A value of fixed size, because there is one for each inode the kernel knows. 35 bytes hold the
// handles of ext4, xfs, tmpfs (8 to 12), btrfs (20) and zfs; file systems with longer ones (NFS,
// FUSE) are served through descriptors.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/unique_fd.h"
#include "latchfs/result.h"

namespace latchfs::posix {

class FileHandle {
 public:
  static constexpr std::size_t kMostBytes = 35;

  // Of no file.
  FileHandle() = default;

  // EOPNOTSUPP where the file system gives none, EOVERFLOW where they are too long.
  static Result<FileHandle> of(int fd) noexcept;

  // From its parts. EOVERFLOW.
  static Result<FileHandle> make(std::int32_t type, const void* bytes, std::size_t size) noexcept;

  // An O_PATH descriptor; mount is any ordinary descriptor on the file system. tries: at most,
  // while the kernel says ENOMEM. ESTALE if the file is gone; EPERM without CAP_DAC_READ_SEARCH.
  static constexpr int kTries = 1000;
  [[nodiscard]] Result<UniqueFd> open(int mount, int tries = kTries) const noexcept;

  [[nodiscard]] bool empty() const noexcept { return size_ == 0; }

  [[nodiscard]] std::int32_t type() const noexcept { return type_; }
  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  [[nodiscard]] const unsigned char* bytes() const noexcept { return bytes_.data(); }

  // For fuse_entry_param::generation, by which files that had the same inode number one after the
  // other are told apart: the file system's own where the handle says it (ext4, xfs, btrfs), so
  // that what it gives out only once is never said of two files; else hash(). Never 0.
  [[nodiscard]] std::uint32_t generation() const noexcept;
  // Of the whole handle: the same for two files with one chance in 2^32. Never 0.
  [[nodiscard]] std::uint32_t hash() const noexcept;

  // For keeping it in a file: lower-case hex, the type first. Empty for no file.
  [[nodiscard]] std::string text() const;
  // Nothing unless it is what text() makes of a handle.
  [[nodiscard]] static std::optional<FileHandle> parse(std::string_view text) noexcept;

  bool operator==(const FileHandle&) const = default;

 private:
  std::int32_t type_{};
  std::uint8_t size_{};
  std::array<unsigned char, kMostBytes> bytes_{};
};
static_assert(sizeof(FileHandle) == 40, "one per inode: keep it small");

// FNV-1a: the same in every process and version.
[[nodiscard]] std::uint64_t hash64(const void* bytes, std::size_t size) noexcept;
// The same for file systems without handles: mixes any bytes. Never 0.
[[nodiscard]] std::uint32_t hash32(const void* bytes, std::size_t size) noexcept;

}  // namespace latchfs::posix
