// One step down a tree that other file systems are mounted in.
//
// Mounts are entered, with one exception: a latchfs mount, this daemon's own above all. Its
// mountpoint may lie inside SOURCE; to enter it would be to ask ourselves, and a tree that contains
// itself has no end and, each level taking a thread, hangs. There the directory under the mount is
// what is seen.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <string_view>

#include "base/unique_fd.h"
#include "latchfs/result.h"
#include "posix/devices.h"

namespace latchfs::posix {

class MountPoints {
 public:
  explicit MountPoints(Devices& devices) noexcept : devices_{devices} {}

  // Before the first request: the daemon's own mount, and the directory it covers.
  void set_own(dev_t dev, UniqueFd covered) noexcept;

  // An O_PATH descriptor of a name in a directory, symlinks not followed. The step itself is the
  // thread's as it is (posix/credentials.h); entering a mount is done as the daemon. ELOOP for a
  // latchfs mount whose covered directory cannot be had.
  [[nodiscard]] Result<UniqueFd> open_child(int dir, const char* name) const;

 private:
  [[nodiscard]] Result<UniqueFd> enter(int dir, const char* name) const;
  [[nodiscard]] Result<UniqueFd> open_covered(int dir, const char* name) const;

  Devices& devices_;
  std::optional<dev_t> own_;
  UniqueFd covered_;
};

inline constexpr std::string_view kLatchfsType = "fuse.latchfs";
// What type of file system a device is mounted as in the process's mount namespace, without asking
// the file system; "" if it is not.
[[nodiscard]] std::string mounted_type(dev_t dev, pid_t pid);

// The device of a mounted file system, without asking the file system.
[[nodiscard]] Result<dev_t> device_of(int fd);

}  // namespace latchfs::posix
