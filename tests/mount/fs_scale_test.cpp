// Trees larger than any table of descriptors: the daemon walks them with few.
#include <dirent.h>
#include <fcntl.h>
#include <ftw.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include "base/unique_fd.h"
#include "support/fs_stage.h"
#include "support/mount_fixture.h"

namespace latchfs::fsdiff {
namespace {

using test::MountFixture;

constexpr rlim_t kDescriptors = 256;

// LATCHFS_TREE: files in the tree; the million takes a few minutes.
int wanted_files() {
  const char* text = std::getenv("LATCHFS_TREE");
  return text != nullptr ? std::atoi(text) : 200'000;
}

void plant(const std::string& top, int files) {
  constexpr int kEach = 500;
  for (int i = 0; i * kEach < files; ++i) {
    const std::string upper = top + "/" + std::to_string(i / 50);
    if (i % 50 == 0) {
      ASSERT_EQ(mkdir(upper.c_str(), 0755), 0);
    }
    const std::string dir = upper + "/" + std::to_string(i);
    ASSERT_EQ(mkdir(dir.c_str(), 0755), 0);
    const UniqueFd fd{open(dir.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
    for (int j = 0; j < kEach; ++j) {
      ASSERT_EQ(mknodat(fd.get(), ("file-" + std::to_string(j)).c_str(), S_IFREG | 0644, 0), 0);
    }
  }
}

int g_files = 0;  // NOLINT: nftw(3) has no other way

int count(const char*, const struct stat*, int type, struct FTW*) {
  if (type == FTW_NS || type == FTW_DNR) return 1;
  if (type == FTW_F) ++g_files;
  return 0;
}

int files_below(const std::string& top) {
  g_files = 0;
  return nftw(top.c_str(), count, 30, FTW_PHYS) == 0 ? g_files : -1;
}

std::size_t descriptors_of(pid_t pid) {
  std::size_t out = 0;
  if (DIR* dir = opendir(("/proc/" + std::to_string(pid) + "/fd").c_str())) {
    while (readdir(dir) != nullptr) ++out;
    closedir(dir);
  }
  return out;
}

std::size_t resident_kib(pid_t pid) {
  std::ifstream status{"/proc/" + std::to_string(pid) + "/status"};
  for (std::string line; std::getline(status, line);) {
    if (line.rfind("VmRSS:", 0) == 0) return std::strtoull(line.c_str() + 6, nullptr, 10);
  }
  return 0;
}

TEST(FsScale, LargeTreeFewDescriptors) {
  if (access("/dev/fuse", R_OK | W_OK) != 0) FAIL() << "fs_scale needs /dev/fuse";
  if (geteuid() == 0) use_private_mounts();
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  const rlimit few{kDescriptors, kDescriptors};
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &few), 0);  // the daemon inherits it and cannot raise it
  const std::string source = make_scratch_directory("latchfs-tree");
  {
    MountFixture::Options options;
    options.source = source;
    const MountFixture fixture{options};
    (void)setrlimit(RLIMIT_NOFILE, &before);
    const rlimit check = [&] {
      rlimit now{};
      prlimit(fixture.daemon(), RLIMIT_NOFILE, nullptr, &now);
      return now;
    }();
    ASSERT_EQ(check.rlim_cur, kDescriptors);

    const int files = wanted_files();
    ASSERT_NO_FATAL_FAILURE(plant(source, files));
    const std::size_t small = resident_kib(fixture.daemon());
    std::vector<std::size_t> after;
    for (int i = 0; i < 3; ++i) {
      EXPECT_EQ(files_below(fixture.mount()), files);
      EXPECT_LT(descriptors_of(fixture.daemon()), kDescriptors);
      after.push_back(resident_kib(fixture.daemon()));
      std::ofstream{"/proc/sys/vm/drop_caches"} << "2\n";  // forgets; without it only grows
    }
    RecordProperty("rss_before_kib", std::to_string(small));
    RecordProperty("rss_after_kib", std::to_string(after.back()));
    // The kernel remembers what it has seen, and the daemon what the kernel remembers.
    const auto each = (after.front() - small) * 1024 / static_cast<std::size_t>(files);
    EXPECT_LT(each, 600u) << "bytes a file";
    EXPECT_LT(after.back(), after.front() + after.front() / 4 + 20'000) << "a leak";

    // Descriptors for those that use the tree: all that remain are theirs.
    std::vector<UniqueFd> open_files;
    int err = 0;
    for (int i = 0; i < 1000 && err == 0; ++i) {
      const std::string path = fixture.mount() + "/0/0/file-" + std::to_string(i % 500);
      open_files.emplace_back(open(path.c_str(), O_RDONLY | O_CLOEXEC));
      if (!open_files.back()) err = errno;
    }
    EXPECT_TRUE(err == EMFILE || err == ENFILE) << err;
    open_files.clear();
    EXPECT_EQ(files_below(fixture.mount() + "/0/1"), 500);
  }
  remove_tree(source);
}

}  // namespace
}  // namespace latchfs::fsdiff
