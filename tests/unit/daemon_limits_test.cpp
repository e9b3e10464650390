#include <gtest/gtest.h>
#include <linux/capability.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "daemon/process_limits.h"

namespace latchfs::daemon {
namespace {

namespace fs = std::filesystem;

// Limits and capabilities are lost for good: each check runs in a child and gives its exit status.
template <class Fn>
int in_child(Fn&& fn) {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(fn());
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

bool holds_sys_resource() {
  std::ifstream in{"/proc/self/status"};
  for (std::string line; std::getline(in, line);) {
    if (line.rfind("CapEff:", 0) != 0) continue;
    return (std::strtoull(line.c_str() + 7, nullptr, 16) >> CAP_SYS_RESOURCE) & 1;
  }
  return false;
}

TEST(Limits, OpenFilesReachTheHardLimitAtLeast) {
  EXPECT_EQ(0, in_child([] {
              rlimit before{};
              ::getrlimit(RLIMIT_NOFILE, &before);
              rlimit low{16, before.rlim_max};
              ::setrlimit(RLIMIT_NOFILE, &low);
              const std::uint64_t got = raise_open_files();
              rlimit after{};
              ::getrlimit(RLIMIT_NOFILE, &after);
              if (after.rlim_cur != got) return 1;
              return got >= before.rlim_max ? 0 : 2;
            }));
}

TEST(Limits, FileSizeHasNoLimitForRootAndKillsNobody) {
  EXPECT_EQ(0, in_child([] {
              const rlimit low{4096, 8192};
              if (::setrlimit(RLIMIT_FSIZE, &low) != 0) return 1;
              if (!drop_sys_resource()) return 2;
              if (raise_file_size() != 8192) return 3;
              rlimit after{};
              ::getrlimit(RLIMIT_FSIZE, &after);
              if (after.rlim_cur != 8192) return 4;
              const int fd = ::memfd_create("limits", MFD_CLOEXEC);
              return ::pwrite(fd, "x", 1, 8192) < 0 && errno == EFBIG ? 0 : 5;
            }));
  EXPECT_EQ(0, in_child([] {
              const rlimit low{4096, 8192};
              if (::setrlimit(RLIMIT_FSIZE, &low) != 0) return 1;
              const bool may = holds_sys_resource();
              return raise_file_size() == (may ? RLIM_INFINITY : 8192) ? 0 : 2;
            }));
}

TEST(Limits, SysResourceIsGivenUp) {
  EXPECT_EQ(0, in_child([] {
              if (!drop_sys_resource()) return 1;
              if (holds_sys_resource()) return 2;
              return drop_sys_resource() ? 0 : 3;  // not held: nothing to do
            }));
}

TEST(Limits, WarnsOfRequestTimeouts) {
  std::string name = (fs::temp_directory_path() / "latchfs-limits-XXXXXX").string();
  ASSERT_NE(::mkdtemp(name.data()), nullptr);
  EXPECT_EQ(request_timeout_warning(name), std::nullopt);  // a kernel without the setting
  std::ofstream{name + "/max_request_timeout"} << "0\n";
  EXPECT_EQ(request_timeout_warning(name), std::nullopt);
  std::ofstream{name + "/default_request_timeout"} << "30\n";
  const auto warning = request_timeout_warning(name);
  ASSERT_TRUE(warning.has_value());
  EXPECT_NE(warning->find("fs.fuse.default_request_timeout is 30 s"), std::string::npos);
  fs::remove_all(name);
}

}  // namespace
}  // namespace latchfs::daemon
