// The file systems met below SOURCE, numbered in the order they were met. SOURCE's own is 0.
#pragma once

#include <sys/stat.h>

#include <array>
#include <atomic>
#include <cstdint>

#include "base/mutex.h"
#include "base/unique_fd.h"
#include "latchfs/result.h"

namespace latchfs::posix {

struct Device {
  dev_t dev{};
  // An ordinary descriptor on it, for open_by_handle_at(); invalid where files are to be found by
  // descriptor and name. It keeps a nested file system mounted as long as the daemon lives.
  UniqueFd mount;
  [[nodiscard]] bool has_handles() const noexcept { return static_cast<bool>(mount); }
};

class Devices {
 public:
  static constexpr unsigned kMost = 511;

  // use_handles: false in a daemon that may not open by handle, and in tests.
  explicit Devices(bool use_handles) noexcept : use_handles_{use_handles} {}

  // The number of dev, met now at the file `fd` if it is new. ENFILE when all numbers are taken.
  [[nodiscard]] Result<unsigned> slot_of(dev_t dev, int fd);
  // The number of a known dev; kMost if it is not known.
  [[nodiscard]] unsigned find(dev_t dev) const noexcept;
  // Precondition: slot was returned by slot_of() or find().
  [[nodiscard]] const Device& at(unsigned slot) const noexcept { return all_[slot]; }
  [[nodiscard]] unsigned size() const noexcept { return count_.load(std::memory_order_acquire); }

 private:
  const bool use_handles_;
  Mutex grow_mu_;  // leaf; held across the opening of a mount's descriptor, once a device
  // Entries below count_ never change.
  std::array<Device, kMost> all_;
  std::atomic<unsigned> count_{0};
};

}  // namespace latchfs::posix
