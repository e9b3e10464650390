#include "posix/devices.h"

#include <fcntl.h>

#include "posix/file_handle.h"
#include "posix/sys.h"

namespace latchfs::posix {
namespace {

// A descriptor that handles on fd's file system can be opened with, if that works there.
UniqueFd mount_descriptor(int fd) {
  const auto st = stat_of(fd);
  // Opening a device or a FIFO has effects; a socket cannot be opened.
  if (!st || (!S_ISDIR(st->st_mode) && !S_ISREG(st->st_mode))) return UniqueFd{};
  UniqueFd mount{
      ::openat(self_fds(), FdName{fd}.c_str(), O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC)};
  if (!mount) return UniqueFd{};
  const auto handle = FileHandle::of(fd);
  if (!handle || !handle->open(mount.get())) return UniqueFd{};
  return mount;
}

}  // namespace

unsigned Devices::find(dev_t dev) const noexcept {
  const unsigned count = size();
  for (unsigned slot = 0; slot < count; ++slot) {
    if (all_[slot].dev == dev) return slot;
  }
  return kMost;
}

Result<unsigned> Devices::slot_of(dev_t dev, int fd) {
  if (const unsigned known = find(dev); known != kMost) return known;
  const MutexLock hold{grow_mu_};
  if (const unsigned known = find(dev); known != kMost) return known;
  const unsigned slot = size();
  if (slot == kMost) return errno_code(ENFILE);
  all_[slot].dev = dev;
  if (use_handles_) all_[slot].mount = mount_descriptor(fd);
  count_.store(slot + 1, std::memory_order_release);
  return slot;
}

}  // namespace latchfs::posix
