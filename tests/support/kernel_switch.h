// A kernel setting ("/proc/sys/...", "/sys/module/...") that a test needs to be something, put back
// when it goes out of scope. For the whole machine: others see it meanwhile.
#pragma once

#include <string>

namespace latchfs::test {

class KernelSwitch {
 public:
  KernelSwitch(std::string path, const std::string& value);
  ~KernelSwitch();
  KernelSwitch(const KernelSwitch&) = delete;
  KernelSwitch& operator=(const KernelSwitch&) = delete;

  // Whether it is what was wanted: not where the kernel lacks it, or it cannot be written here.
  [[nodiscard]] bool ok() const { return ok_; }

 private:
  std::string path_;
  std::string before_;
  bool ok_{};
};

// FUSE over io_uring.
inline constexpr const char* kEnableUring = "/sys/module/fuse/parameters/enable_uring";
// Who may have rings at all: "0" everybody, "2" nobody.
inline constexpr const char* kUringDisabled = "/proc/sys/kernel/io_uring_disabled";

}  // namespace latchfs::test
