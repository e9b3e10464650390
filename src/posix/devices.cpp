#include "posix/devices.h"

#include <fcntl.h>
#include <sys/vfs.h>

#include "posix/file_handle.h"
#include "posix/sys.h"

namespace latchfs::posix {
namespace {

constexpr unsigned kIdleCalls = 2;

// A descriptor that handles on fd's file system can be opened with, if that works there.
Result<UniqueFd> mount_descriptor(int fd) {
  const auto st = stat_of(fd);
  if (!st) return st.error();
  // Opening a device or a FIFO has effects; a socket cannot be opened.
  if (!S_ISDIR(st->st_mode) && !S_ISREG(st->st_mode)) return errno_code(EOPNOTSUPP);
  auto mount = opened(
      ::openat(self_fds(), FdName{fd}.c_str(), O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC));
  if (!mount) return mount.error();
  const auto handle = FileHandle::of(fd);
  if (!handle) return handle.error();
  if (const auto again = handle->open(mount->get()); !again) return again.error();
  return mount;
}

}  // namespace

unsigned Devices::find(dev_t dev) const noexcept {
  if (dev == 0) return kMost;
  const unsigned count = size();
  for (unsigned slot = 0; slot < count; ++slot) {
    if (all_[slot].dev.load() == dev) return slot;
  }
  return kMost;
}

// Opens outside the mutex: of two that do so at once, one's is closed again.
Result<void> Devices::open_mount(Device& device, int fd) {
  auto mount = mount_descriptor(fd);
  // (EAGAIN: somebody has a lease on that file. Others will do.)
  const bool later = is_for_now(mount.error()) && mount.error() != errno_code(EAGAIN);
  if (!mount) return later ? mount.error() : Result<void>{};
  const bool births = is_local(mount->get());
  struct statfs fs {};
  const std::uint32_t identity =
      ::fstatfs(mount->get(), &fs) == 0 ? hash32(&fs.f_fsid, sizeof fs.f_fsid) : 0;
  auto fresh = std::make_shared<const UniqueFd>(std::move(*mount));
  const MutexLock hold{device.mu};
  if (device.mount) return {};
  device.mount = std::move(fresh);
  device.idle = 0;
  device.births.store(births);
  device.identity.store(identity);
  device.open.store(true);
  device.handles.store(true);
  return {};
}

Result<Devices::Way> Devices::remembered(unsigned slot, std::int64_t now) {
  constexpr std::int64_t kAskAgainNs = 1'000'000'000;
  if (slot >= kMost) return errno_code(ESTALE);
  const MutexLock hold{grow_mu_};
  if (now < not_before_[slot]) return errno_code(ESTALE);
  auto way = numbers_.way_of(slot);
  if (!way && !is_for_now(way.error())) not_before_[slot] = now + kAskAgainNs;
  return way;
}

void Devices::not_there(unsigned slot, std::int64_t now) {
  // Short: it may be mounted just now.
  constexpr std::int64_t kTryAgainNs = 100'000'000;
  const MutexLock hold{grow_mu_};
  not_before_[slot] = now + kTryAgainNs;
}

Result<unsigned> Devices::slot_of(dev_t dev, int fd, const Way& by) {
  unsigned slot = find(dev);
  if (slot == kMost) {
    const MutexLock hold{grow_mu_};
    slot = find(dev);
    if (slot == kMost) {
      const bool first = size() == 0;
      const auto number =
          first ? Result<unsigned>{0}
                : numbers_.number_of(by, [this](unsigned n) { return all_[n].dev.load() == 0; });
      if (!number) return number.error();
      slot = *number;
      entered(slot, by.parent, by.name);
      // (Met without handles, it would have none for good.)
      if (const auto tried = use_handles_ ? open_mount(all_[slot], fd) : Result<void>{}; !tried) {
        return tried.error();
      }
      all_[slot].dev.store(dev);
      if (slot >= size()) count_.store(slot + 1, std::memory_order_release);
    }
  }
  Device& device = all_[slot];
  device.used.store(true, std::memory_order_relaxed);
  if (is_held(slot)) return slot;
  if (const auto handle = FileHandle::of(fd); !handle) {
    if (is_for_now(handle.error())) return handle.error();
    // Unmounted meanwhile, and the number is another file system's, without handles.
    device.births.store(false);
    device.handles.store(false);
  }
  const auto tried = has_handles(slot) ? open_mount(device, fd) : Result<void>{};
  return tried ? Result<unsigned>{slot} : tried.error();
}

Devices::MountPtr Devices::mount(unsigned slot) {
  Device& device = all_[slot];
  device.used.store(true, std::memory_order_relaxed);
  const MutexLock hold{device.mu};
  return device.mount;
}

void Devices::entered(unsigned slot, std::uint64_t parent, std::string_view name) {
  Device& device = all_[slot];
  const MutexLock hold{device.mu};
  if (device.way.parent == parent && device.way.name == name) return;
  device.way = {parent, std::string{name}};
}

Devices::Way Devices::way(unsigned slot) {
  const MutexLock hold{all_[slot].mu};
  return all_[slot].way;
}

bool Devices::close_unused() {
  bool some_open = false;
  const unsigned count = size();
  for (unsigned slot = 1; slot < count; ++slot) {
    Device& device = all_[slot];
    if (!device.open.load()) continue;
    MountPtr unused;  // closed with no mutex held
    const MutexLock hold{device.mu};
    device.idle = device.used.exchange(false) ? 0 : device.idle + 1;
    if (device.idle < kIdleCalls) {
      some_open = true;
    } else {
      unused = std::move(device.mount);
      device.mount = nullptr;
      device.open.store(false);
    }
  }
  return some_open;
}

}  // namespace latchfs::posix
