// Two mounts of one directory: what was written under a lock through one is read under the lock
// through the other, while bystanders look at the file all the time.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include "support/mount_fixture.h"

namespace latchfs::test {
namespace {

constexpr int kRounds = 250;
constexpr int kWriters = 4;

bool lock(int fd, short type) {
  struct flock fl {};
  fl.l_type = type;
  fl.l_whence = SEEK_SET;
  return ::fcntl(fd, F_SETLKW, &fl) == 0;
}

// Appends the next number to the file, again and again; every line must be the one before plus one.
int count_up(const std::string& path, bool by_append) {
  const int fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC | (by_append ? O_APPEND : 0));
  if (fd < 0) return 2;
  for (int round = 0; round < kRounds; ++round) {
    if (!lock(fd, F_WRLCK)) return 3;
    std::string text(1 << 16, '\0');
    const ssize_t got = ::pread(fd, text.data(), text.size(), 0);
    if (got < 0) return 4;
    text.resize(static_cast<std::size_t>(got));
    // Fixed width: the number of lines follows from the size.
    const auto lines = text.size() / 6;
    if (text.size() % 6 != 0) return 5;
    if (lines != 0 && std::strtoul(text.c_str() + (lines - 1) * 6, nullptr, 10) != lines) return 6;
    char line[32];
    std::snprintf(line, sizeof line, "%05zu\n", lines + 1);
    const ssize_t put =
        by_append ? ::write(fd, line, 6) : ::pwrite(fd, line, 6, static_cast<off_t>(lines * 6));
    if (put != 6) return 7;
    if (!lock(fd, F_UNLCK)) return 8;
  }
  return 0;
}

[[noreturn]] void look_for_ever(const std::string& path) {
  for (;;) {
    struct stat st {};
    const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    ::fstat(fd, &st);
    ::stat(path.c_str(), &st);
    ::close(fd);
  }
}

// A file system whose times are those of the last clock tick (all of them were, until Linux 6.13).
class CoarseTimes {
 public:
  CoarseTimes() : ok_{::mount("none", place_.path().c_str(), "ramfs", 0, nullptr) == 0} {}
  CoarseTimes(const CoarseTimes&) = delete;
  CoarseTimes& operator=(const CoarseTimes&) = delete;
  ~CoarseTimes() {
    if (ok_) ::umount2(place_.path().c_str(), MNT_DETACH);
  }
  [[nodiscard]] bool ok() const { return ok_; }
  [[nodiscard]] const std::string& path() const { return place_.path(); }

 private:
  TempDir place_;
  bool ok_;
};

// Read, add one, write as many bytes as before: neither size nor, within a tick, time tells.
int count_in_place(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (fd < 0) return 2;
  for (int round = 0; round < kRounds; ++round) {
    if (!lock(fd, F_WRLCK)) return 3;
    char text[9] = {};
    if (::pread(fd, text, 8, 0) != 8) return 4;
    char next[32];
    std::snprintf(next, sizeof next, "%08d", std::atoi(text) + 1);
    if (::pwrite(fd, next, 8, 0) != 8) return 7;
    if (!lock(fd, F_UNLCK)) return 8;
  }
  return 0;
}

TEST(TwoMounts, NoUpdateIsLostWhereTimesAreCoarse) {
  const CoarseTimes source;
  ASSERT_TRUE(source.ok()) << "needs root: a ramfs of its own";
  MountFixture::Options options;
  options.source = source.path();
  MountFixture a{options};
  MountFixture b{a.another()};
  const std::string name = "/counter";
  std::ofstream{source.path() + name} << "00000000";
  std::vector<pid_t> writers;
  for (const auto& mount : {a.mount(), b.mount()}) {
    const pid_t pid = ::fork();
    if (pid == 0) ::_exit(count_in_place(mount + name));
    writers.push_back(pid);
  }
  for (const pid_t pid : writers) {
    int status = 0;
    ::waitpid(pid, &status, 0);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << WEXITSTATUS(status);
  }
  std::string count;
  std::ifstream{source.path() + name} >> count;
  EXPECT_EQ(std::stoi(count), 2 * kRounds);
  // And stat(2) tells what is so.
  struct stat below {
  }, through{};
  ASSERT_EQ(::stat((source.path() + name).c_str(), &below), 0);
  for (const auto& mount : {a.mount(), b.mount()}) {
    ASSERT_EQ(::stat((mount + name).c_str(), &through), 0);
    EXPECT_EQ(through.st_mtim.tv_sec, below.st_mtim.tv_sec);
    EXPECT_EQ(through.st_mtim.tv_nsec, below.st_mtim.tv_nsec);
    const int fd = ::open((mount + name).c_str(), O_RDONLY | O_CLOEXEC);
    char byte{};
    EXPECT_EQ(::pread(fd, &byte, 1, 0), 1);
    ASSERT_EQ(::fstat(fd, &through), 0);
    EXPECT_EQ(through.st_mtim.tv_nsec, below.st_mtim.tv_nsec);
    ::close(fd);
  }
}

TEST(TwoMounts, WhatWasWrittenUnderALockIsReadUnderIt) {
  MountFixture a;
  MountFixture b{a.another()};
  const std::string name = "/counter";
  ::close(::open((a.mount() + name).c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0644));
  std::vector<pid_t> bystanders;
  for (const auto& mount : {a.mount(), b.mount()}) {
    const pid_t pid = ::fork();
    if (pid == 0) look_for_ever(mount + name);
    bystanders.push_back(pid);
  }
  std::vector<pid_t> writers;
  for (int i = 0; i < kWriters; ++i) {
    const pid_t pid = ::fork();
    if (pid == 0) ::_exit(count_up((i % 2 == 0 ? a : b).mount() + name, i < 2));
    writers.push_back(pid);
  }
  for (const pid_t pid : writers) {
    int status = 0;
    ::waitpid(pid, &status, 0);
    EXPECT_TRUE(WIFEXITED(status));
    EXPECT_EQ(WEXITSTATUS(status), 0) << "6: a line was read that is not the last one written";
  }
  for (const pid_t pid : bystanders) {
    ::kill(pid, SIGKILL);
    ::waitpid(pid, nullptr, 0);
  }
  struct stat st {};
  ASSERT_EQ(::stat((a.source() + name).c_str(), &st), 0);
  EXPECT_EQ(st.st_size, kWriters * kRounds * 6);
}

}  // namespace
}  // namespace latchfs::test
