// What the lock edge keeps for one open file description.
#pragma once

#include <sys/types.h>

#include <array>
#include <cstdint>
#include <vector>

#include "base/mutex.h"
#include "latchfs/types.h"

namespace latchfs::fuse {

// An owner that took a byte-range lock through this description. While the description lives its
// own owner value (the kernel's hash of the open file) can be nobody else's, and a process's value
// (the hash of its files table) is never the description's: so what was once found out about a
// value stays right until RELEASE.
struct LockCarrier {
  std::uint64_t owner{};
  LockKind kind{};
  pid_t pid{};  // process
  pid_t tid{};  // the thread that called last
  // How often this owner closed a descriptor here: what is granted to a request from before that
  // came too late to be kept.
  std::uint32_t flushes{};
  std::array<char, 16> comm{};
};

struct LockData {
  Mutex mu;
  std::vector<LockCarrier> carriers GUARDED_BY(mu);
  // The description's own owner value, 0 while unknown: that of its OFD and flock locks.
  std::uint64_t description GUARDED_BY(mu){0};
  bool took_flock GUARDED_BY(mu){false};
};

}  // namespace latchfs::fuse
