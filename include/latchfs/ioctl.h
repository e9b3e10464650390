// What a program beside the daemon may ask of a file on the mount, for which no system call exists.
#pragma once

#include <sys/ioctl.h>

#include <cstdint>

namespace latchfs {

// Whose locks the file's are: the key of the table, and which table.
struct FileKey {
  std::uint64_t dev{}, ino{};  // FileId
  std::uint64_t mount{};       // OwnerId::mount of the mount that answers
  char table[72]{};            // its name, NUL-padded
};
static_assert(sizeof(FileKey) == 96);

// ioctl(2) on an open regular file or directory of the mount. EPERM but for uid 0 and the daemon's
// own user; ENOTTY on anything else than a latchfs, and on its control tree.
inline constexpr unsigned kIocFileKey = _IOR('L', 0x4b, FileKey);

}  // namespace latchfs
