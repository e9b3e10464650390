// A small file system of a test's own, in a file, mounted through a loop device.
#pragma once

#include <sys/types.h>

#include <functional>
#include <string>

namespace latchfs::fsdiff {

class LoopImage {
 public:
  // mkfs_options: for mkfs.TYPE. Throws std::runtime_error with one clear line where the machine
  // has no loop devices or no mkfs for it.
  LoopImage(int megabytes, const std::string& mkfs_options, const std::string& type = "ext4");
  ~LoopImage();
  LoopImage(const LoopImage&) = delete;
  LoopImage& operator=(const LoopImage&) = delete;

  [[nodiscard]] const std::string& path() const { return mountpoint_; }
  void remount(const std::string& options);  // "ro"
  // Out of the name space; what is open of it goes on working.
  void detach();
  // A clean unmount (it must not be in use) and a new mount: nothing is left in any cache.
  void mount_again();
  // As if the disk had been pulled: everything that is not cached fails from now on.
  void shut_down();

 private:
  void attach();
  std::string type_, base_, file_, mountpoint_;
};

// Runs fn in a child with these ids (no supplementary groups); gives what it returns (0 to 255).
[[nodiscard]] int as_user(uid_t uid, gid_t gid, const std::function<int()>& fn);

// 0, or the errno of a call that gave -1.
[[nodiscard]] int errno_of(long result);

}  // namespace latchfs::fsdiff
