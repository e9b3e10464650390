// Two mounts of one directory: what was written under a lock through one is read under the lock
// through the other, while bystanders look at the file all the time.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
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
  // Its times are those of the last clock tick (all file systems' were, until Linux 6.13).
  const OwnFileSystem source{"ramfs"};
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

// With cache=relaxed a mount that is alone lets its kernel believe what it knows for a second. Who
// mounts next is not ready before that is over, and then neither believes anything.
TEST(TwoMounts, WhatIsDoneThroughOneIsSeenThroughTheOtherAtOnce) {
  MountFixture::Options options;
  options.options = {"cache=relaxed"};
  MountFixture a{options};
  const std::string other = "/other", file = "/file", gone = "/gone", later = "/later";
  for (const std::string& name : {other, file, gone}) std::ofstream{a.source() + name} << "x";
  // Keeps what the kernel knows fresh until the other mount comes. While that comes it asks
  // nothing: an answer that was on its way all the time would be believed from when it arrives.
  const pid_t looker = ::fork();
  if (looker == 0) {
    struct stat st {};
    for (;;) {
      for (const std::string& name : {other, file, gone, later}) {
        ::stat((a.mount() + name).c_str(), &st);
      }
    }
  }
  for (int round = 0; round < 3; ++round) {
    ::kill(looker, SIGSTOP);
    ASSERT_EQ(::waitpid(looker, nullptr, WUNTRACED), looker);
    MountFixture b{a.another()};
    ::kill(looker, SIGCONT);
    struct stat st {};
    for (const std::string& name : {other, file, gone, later}) {
      ::stat((a.mount() + name).c_str(), &st);
    }
    const mode_t mode = 0600 + static_cast<mode_t>(round);
    ASSERT_EQ(::chmod((b.mount() + file).c_str(), mode), 0);
    EXPECT_EQ(::stat((a.mount() + file).c_str(), &st), 0);
    EXPECT_EQ(st.st_mode & 07777, mode);
    ASSERT_EQ(::truncate((b.mount() + file).c_str(), 100 + round), 0);
    EXPECT_EQ(::stat((a.mount() + file).c_str(), &st), 0);
    EXPECT_EQ(st.st_size, 100 + round);
    ASSERT_EQ(::unlink((b.mount() + gone).c_str()), 0);
    EXPECT_EQ(::stat((a.mount() + gone).c_str(), &st), -1);
    ASSERT_EQ(::rename((b.mount() + other).c_str(), (b.mount() + later).c_str()), 0);
    EXPECT_EQ(::stat((a.mount() + later).c_str(), &st), 0);
    EXPECT_EQ(::stat((a.mount() + other).c_str(), &st), -1);
    ASSERT_EQ(::rename((a.mount() + later).c_str(), (a.mount() + other).c_str()), 0);
    std::ofstream{a.mount() + gone} << "x";
    EXPECT_EQ(::stat((b.mount() + gone).c_str(), &st), 0);
    EXPECT_EQ(::stat((b.mount() + other).c_str(), &st), 0);
    EXPECT_EQ(::stat((b.mount() + later).c_str(), &st), -1);
    EXPECT_TRUE(b.unmount());
  }
  ::kill(looker, SIGKILL);
  ::waitpid(looker, nullptr, 0);
}

// Alone, the kernel does not ask the daemon again, and what was changed on SOURCE is seen later.
TEST(TwoMounts, AloneTheKernelBelievesWhatItKnows) {
  MountFixture::Options options;
  options.options = {"cache=relaxed"};
  MountFixture a{options};
  const std::string file = "/file";
  std::ofstream{a.source() + file} << "x";
  struct stat st {};
  // Until it is seen, with no limit but the test's own.
  for (const mode_t mode : {0600U, 0644U}) {
    ASSERT_EQ(::stat((a.mount() + file).c_str(), &st), 0);
    ASSERT_EQ(::chmod((a.source() + file).c_str(), mode), 0);
    while (::stat((a.mount() + file).c_str(), &st) == 0 && (st.st_mode & 07777) != mode) {
      ::usleep(10'000);
    }
    EXPECT_EQ(st.st_mode & 07777, mode);
  }
  // Set-ID bits go when somebody else writes, of which the kernel would not hear.
  ASSERT_EQ(::chmod((a.mount() + file).c_str(), 06777), 0);
  ASSERT_EQ(::stat((a.mount() + file).c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 07777, 06777U);
  const pid_t writer = ::fork();
  if (writer == 0) {
    if (::setgid(65534) != 0 || ::setuid(65534) != 0) ::_exit(1);
    const int fd = ::open((a.mount() + file).c_str(), O_WRONLY | O_CLOEXEC);
    ::_exit(fd >= 0 && ::write(fd, "y", 1) == 1 ? 0 : 2);
  }
  int status = 0;
  ::waitpid(writer, &status, 0);
  EXPECT_EQ(status, 0);
  ASSERT_EQ(::stat((a.mount() + file).c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 07777, 0777U);
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
