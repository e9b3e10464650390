// The file systems met below SOURCE, numbered: SOURCE's own is 0, the others as they were before
// (device_numbers.h), else in the order they were met.
//
// Files of a device are found by handle through an ordinary descriptor on it. Such a descriptor
// keeps a file system mounted, so a nested one's is closed when it was not used for a while, and
// opened again at the next file of it that is met, or by the way to it: the directory and name
// where it was entered.
#pragma once

#include <sys/stat.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "base/mutex.h"
#include "base/unique_fd.h"
#include "latchfs/result.h"
#include "posix/device_numbers.h"

namespace latchfs::posix {

class Devices {
 public:
  static constexpr unsigned kMost = 511;

  // A descriptor for open_by_handle_at(), held by whoever uses it.
  using MountPtr = std::shared_ptr<const UniqueFd>;
  // The node of a directory on another device, and a name in it. Node 0: not known.
  using Way = DeviceNumbers::Way;

  // use_handles: false in a daemon that may not open by handle, and in tests.
  Devices(bool use_handles, DeviceNumbers numbers)
      : use_handles_{use_handles}, numbers_{std::move(numbers)} {}

  // The number of dev, met now at the file `fd` by this way. EOVERFLOW when all numbers are taken;
  // what is_for_now(): not met yet.
  [[nodiscard]] Result<unsigned> slot_of(dev_t dev, int fd, const Way& by = {});
  // The number of a known dev; kMost if it is not known.
  [[nodiscard]] unsigned find(dev_t dev) const noexcept;
  // More than the highest number.
  [[nodiscard]] unsigned size() const noexcept { return count_.load(std::memory_order_acquire); }
  // 0: not met yet.
  [[nodiscard]] dev_t dev(unsigned slot) const noexcept {
    return slot < size() ? all_[slot].dev.load() : 0;
  }
  // Where a file system was entered that had the number in a daemon before. ESTALE: there was none,
  // or so it was said less than a second ago; or it is not_there(). now: CLOCK_MONOTONIC.
  [[nodiscard]] Result<Way> remembered(unsigned slot, std::int64_t now);
  // What was remembered of it leads nowhere: for a tenth of a second nobody need try.
  void not_there(unsigned slot, std::int64_t now);

  // For all of these slot was returned by slot_of() or find().
  // Whether files are found by handle, else by descriptor and name.
  [[nodiscard]] bool has_handles(unsigned slot) const noexcept { return all_[slot].handles.load(); }
  // Whether times of birth tell an inode number's users apart: they are given by this kernel when
  // the inode is made, and by nobody else. Only where there are handles.
  [[nodiscard]] bool tells_births(unsigned slot) const noexcept {
    return slot < kMost && all_[slot].births.load();
  }
  // Of the file system: statfs(2)'s f_fsid, which does not change with its device number (but on
  // xfs). 0 without handles.
  [[nodiscard]] std::uint32_t identity(unsigned slot) const noexcept {
    return all_[slot].identity.load();
  }
  // Whether the device cannot have gone, and its number to another file system, since it was met:
  // a descriptor is open, or there are no handles and its nodes hold theirs.
  [[nodiscard]] bool is_held(unsigned slot) const noexcept {
    return !has_handles(slot) || all_[slot].open.load();
  }
  // Null: closed, or there are no handles.
  [[nodiscard]] MountPtr mount(unsigned slot);
  void entered(unsigned slot, std::uint64_t parent, std::string_view name);
  [[nodiscard]] Way way(unsigned slot);

  // Closes the descriptors, but for slot 0's, that were not used since the last call but one. True
  // if one of them is open still.
  bool close_unused();

 private:
  struct Device {
    std::atomic<dev_t> dev{0};
    std::atomic<bool> handles{false};
    std::atomic<bool> births{false};
    std::atomic<std::uint32_t> identity{0};
    std::atomic<bool> open{false};  // there is a mount
    std::atomic<bool> used{false};  // since the last close_unused()
    Mutex mu;                       // leaf
    MountPtr mount GUARDED_BY(mu);
    Way way GUARDED_BY(mu);
    unsigned idle GUARDED_BY(mu){};  // calls of close_unused() without use
  };
  // If that works there. Only errors that are for now.
  Result<void> open_mount(Device& device, int fd);

  const bool use_handles_;
  // A device's mutex may be taken below it. Held over system calls: a file system is met once.
  Mutex grow_mu_;
  DeviceNumbers numbers_ GUARDED_BY(grow_mu_);
  // When a number may be asked for again (CLOCK_MONOTONIC ns): whoever makes handles up, or has
  // those of what is not mounted, would have the file read each time.
  std::array<std::int64_t, kMost> not_before_ GUARDED_BY(grow_mu_){};
  // Once it is not 0, dev never changes.
  std::array<Device, kMost> all_;
  std::atomic<unsigned> count_{0};
};

}  // namespace latchfs::posix
