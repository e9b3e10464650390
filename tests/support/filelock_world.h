// A mount with two files, and what the tests of filelocks do with it.
#pragma once

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "support/filelock_client.h"
#include "support/mount_fixture.h"

namespace latchfs::test {

inline constexpr uid_t kLocker = 61001;
inline constexpr uid_t kOther = 61002;

inline std::string content(const std::string& path) {
  std::ifstream in{path, std::ios::binary};
  return {std::istreambuf_iterator<char>{in}, {}};
}
inline bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}
inline std::string control(const MountFixture& mount, const std::string& name) {
  return content(mount.mount() + "/.locks/" + name);
}
inline std::set<std::string> names_in(const std::string& directory) {
  std::set<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator{directory}) {
    names.insert(entry.path().filename());
  }
  return names;
}
using Names = std::set<std::string>;
inline int write_to(const std::string& path, const std::string& text) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_CLOEXEC);
  if (fd < 0) return errno;
  const int err = ::write(fd, text.data(), text.size()) < 0 ? errno : 0;
  ::close(fd);
  return err;
}

class FilelockWorld : public ::testing::Test {
 protected:
  FilelockWorld() {
    MountFixture::Options options;
    options.source = place_.path();
    mount_.emplace(options);
    ::chmod(mount_->source().c_str(), 0777);
    make("a", "alpha");
    make("b", "beta");
  }
  std::string source(const std::string& name) const { return mount_->source() + "/" + name; }
  std::string path(const std::string& name) const { return mount_->mount() + "/" + name; }
  void make(const std::string& name, const std::string& text, uid_t owner = kLocker) const {
    std::ofstream{source(name)} << text;
    ASSERT_EQ(::chown(source(name).c_str(), owner, owner), 0);
    ASSERT_EQ(::chmod(source(name).c_str(), 0666), 0);
  }
  Answer lock(const std::string& request, uid_t uid = kLocker) const {
    return ask_as(uid, mount_->mount(), "filelock", request);
  }
  Answer unlock(const std::string& request, uid_t uid = kLocker) const {
    return ask_as(uid, mount_->mount(), "unfilelock", request);
  }
  // The errno that a user's write of one byte gets.
  int write_as(uid_t uid, const std::string& name) const {
    return as(uid, [&] { return write_to(path(name), "x"); });
  }
  // Everything of the mount ends and begins anew, the table too.
  void restart(const std::vector<std::string>& options = {}) {
    MountFixture::Options again = mount_->another();
    again.options = options;
    again.owns_table = true;
    // What a process had open a moment ago may still be on its way to the daemon.
    bool unmounted = false;
    for (int i = 0; i < 100 && !unmounted; ++i) {
      if (i != 0) ::usleep(50'000);
      unmounted = mount_->unmount();
    }
    ASSERT_TRUE(unmounted);
    mount_.emplace(again);
  }

  const TempDir place_;
  std::optional<MountFixture> mount_;
};

}  // namespace latchfs::test
