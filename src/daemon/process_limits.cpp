#include "daemon/process_limits.h"

#include <fmt/core.h>
#include <linux/capability.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <fstream>

namespace latchfs::daemon {
namespace {

std::uint64_t read_number(const std::string& path) {
  std::ifstream in{path};
  std::uint64_t value = 0;
  return in >> value ? value : 0;
}

}  // namespace

std::uint64_t raise_open_files() noexcept {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return 0;
  try {
    const rlim_t most = read_number("/proc/sys/fs/nr_open");
    if (most > limit.rlim_max) {
      const rlimit wanted{most, most};
      if (::setrlimit(RLIMIT_NOFILE, &wanted) == 0) return most;
    }
  } catch (...) {
    // No memory to read the kernel's bound: the hard limit will do.
  }
  const rlimit wanted{limit.rlim_max, limit.rlim_max};
  return ::setrlimit(RLIMIT_NOFILE, &wanted) == 0 ? limit.rlim_max : limit.rlim_cur;
}

std::uint64_t raise_file_size() noexcept {
  // A shell's "ulimit -f" is inherited: a user's large write would kill the daemon of all.
  ::signal(SIGXFSZ, SIG_IGN);
  const rlimit none{RLIM_INFINITY, RLIM_INFINITY};
  if (::setrlimit(RLIMIT_FSIZE, &none) == 0) return RLIM_INFINITY;
  rlimit limit{};
  if (::getrlimit(RLIMIT_FSIZE, &limit) != 0) return 0;
  const rlimit wanted{limit.rlim_max, limit.rlim_max};
  return ::setrlimit(RLIMIT_FSIZE, &wanted) == 0 ? limit.rlim_max : limit.rlim_cur;
}

Result<void> drop_sys_resource() noexcept {
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  std::array<__user_cap_data_struct, _LINUX_CAPABILITY_U32S_3> sets{};
  if (::syscall(SYS_capget, &header, sets.data()) != 0) return last_errno();
  auto& set = sets[CAP_TO_INDEX(CAP_SYS_RESOURCE)];
  const std::uint32_t bit = CAP_TO_MASK(CAP_SYS_RESOURCE);
  if (((set.effective | set.permitted) & bit) == 0) return {};
  // Out of the bounding set too, so that nothing the daemon runs (fusermount3) gets it back.
  // Without CAP_SETPCAP that is refused; the process itself has lost it all the same.
  ::prctl(PR_CAPBSET_DROP, CAP_SYS_RESOURCE, 0, 0, 0);
  set.effective &= ~bit;
  set.permitted &= ~bit;
  set.inheritable &= ~bit;
  if (::syscall(SYS_capset, &header, sets.data()) != 0) return last_errno();
  return {};
}

std::optional<std::string> request_timeout_warning(const std::string& directory) {
  for (const char* name : {"max_request_timeout", "default_request_timeout"}) {
    const std::uint64_t seconds = read_number(directory + "/" + name);
    if (seconds == 0) continue;
    return fmt::format(
        "fs.fuse.{} is {} s: the kernel will abort the mount when a program waits that long for "
        "a lock (sysctl fs.fuse.{}=0)",
        name, seconds, name);
  }
  return std::nullopt;
}

}  // namespace latchfs::daemon
