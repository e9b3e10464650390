// A directory of its own for a test, removed at the end, and short names for making things in it.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <string>

#include "base/unique_fd.h"

namespace latchfs::posix {

class Scratch : public testing::Test {
 protected:
  void SetUp() override {
    const char* base = std::getenv("TMPDIR");
    path_ = std::string{base != nullptr ? base : "/tmp"} + "/latchfs-posix-XXXXXX";
    ASSERT_NE(::mkdtemp(path_.data()), nullptr);
    ASSERT_EQ(::chmod(path_.c_str(), 0755), 0);
  }
  void TearDown() override { std::filesystem::remove_all(path_); }

  [[nodiscard]] std::string at(const std::string& name) const { return path_ + "/" + name; }
  [[nodiscard]] UniqueFd dir() const {
    return UniqueFd{::open(path_.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC)};
  }
  // O_PATH, symlinks not followed.
  [[nodiscard]] UniqueFd path_fd(const std::string& name) const {
    return UniqueFd{::open(at(name).c_str(), O_PATH | O_NOFOLLOW | O_CLOEXEC)};
  }
  void make_file(const std::string& name, const std::string& content = "", mode_t mode = 0644) {
    const UniqueFd fd{::open(at(name).c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600)};
    ASSERT_TRUE(fd) << name;
    ASSERT_EQ(::write(fd.get(), content.data(), content.size()),
              static_cast<ssize_t>(content.size()));
    ASSERT_EQ(::fchmod(fd.get(), mode), 0);
  }
  void make_dir(const std::string& name, mode_t mode = 0755) {
    ASSERT_EQ(::mkdir(at(name).c_str(), 0755), 0) << name;
    ASSERT_EQ(::chmod(at(name).c_str(), mode), 0);
  }
  [[nodiscard]] struct stat stat_at(const std::string& name) const {
    struct stat st {};
    EXPECT_EQ(::lstat(at(name).c_str(), &st), 0) << name;
    return st;
  }
  [[nodiscard]] static int open_fds() {
    int count = 0;
    for ([[maybe_unused]] const auto& fd : std::filesystem::directory_iterator{"/proc/self/fd"}) {
      ++count;
    }
    return count;
  }

 private:
  std::string path_;
};

}  // namespace latchfs::posix
