// Node ids: the numbers the kernel, and NFS clients through it, name files by.
//
// Root is 1. A file is (slot << 52) | st_ino, so that the number means the same in the next daemon;
// slot is its device's (devices.h). Where that does not fit (st_ino of 2^52 and above, st_ino 1 on
// slot 0, more than 511 devices) a number is dealt out of slot 511 and kept until released.
// Bits 61 to 63 are never set: the control tree has 62 and 63.
#pragma once

#include <cstdint>
#include <unordered_map>

#include "base/mutex.h"
#include "latchfs/types.h"

namespace latchfs::posix {

class NodeIds {
 public:
  static constexpr std::uint64_t kRoot = 1;
  // The kernel's own, before it asks (fs/fuse/inode.c fuse_get_root_inode()). With another one it
  // takes the root for a file that is gone, and the mount with it (EIO), from Linux 5.14 until
  // "fuse: fix root lookup with nonzero generation"; those after it say so in their log.
  static constexpr std::uint32_t kRootGeneration = 0;
  static constexpr unsigned kInoBits = 52;
  static constexpr unsigned kDealtSlot = 511;

  static constexpr std::uint64_t kInoMask = (std::uint64_t{1} << kInoBits) - 1;
  [[nodiscard]] static constexpr unsigned slot_of(std::uint64_t node) {
    return static_cast<unsigned>(node >> kInoBits);
  }
  [[nodiscard]] static constexpr std::uint64_t ino_of(std::uint64_t node) {
    return node & kInoMask;
  }
  [[nodiscard]] static constexpr bool fits(unsigned slot, std::uint64_t ino) {
    return slot < kDealtSlot && ino <= kInoMask && ino != 0 && !(slot == 0 && ino == kRoot);
  }
  [[nodiscard]] static constexpr bool dealt(std::uint64_t node) {
    return slot_of(node) == kDealtSlot;
  }
  // A number that no file of this mount can have.
  [[nodiscard]] static constexpr bool possible(std::uint64_t node) {
    return node != 0 && slot_of(node) <= kDealtSlot;
  }

  // The node of a file that is not the root. slot may be kDealtSlot for "no slot".
  [[nodiscard]] std::uint64_t node_of(unsigned slot, FileId id) {
    if (fits(slot, id.ino)) return (static_cast<std::uint64_t>(slot) << kInoBits) | id.ino;
    return deal(id);
  }

  // A dealt number is not used any more. It is not dealt again. Nothing if it is not the file's.
  void release(FileId id, std::uint64_t node);
  // A dealt number is used: if it was released meanwhile, it is the file's again. False: another
  // one is.
  [[nodiscard]] bool keep(FileId id, std::uint64_t node);

 private:
  struct Hash {
    std::size_t operator()(const FileId& id) const noexcept {
      return static_cast<std::size_t>(id.ino * 0x9e3779b97f4a7c15ULL + id.dev);
    }
  };
  std::uint64_t deal(FileId id);

  Mutex mu_;  // leaf
  std::unordered_map<FileId, std::uint64_t, Hash> dealt_ GUARDED_BY(mu_);
  std::uint64_t next_ GUARDED_BY(mu_){1};
};

}  // namespace latchfs::posix
