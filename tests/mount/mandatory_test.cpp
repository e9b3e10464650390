// enforce=mandatory on a mount: byte-range locks hold against reads and writes of others, also of
// those who never ask; a broken lock fences its old owner.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstring>
#include <fstream>
#include <functional>
#include <sstream>
#include <string>
#include <thread>

#include "support/mount_fixture.h"

namespace latchfs::test {
namespace {

// fn's errno (0: fine), in a process of its own.
class Child {
 public:
  explicit Child(const std::function<int()>& fn) {
    pid_ = ::fork();
    if (pid_ == 0) ::_exit(fn());
  }
  ~Child() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;
  int result() {
    int status = 0;
    ::waitpid(pid_, &status, 0);
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }
  [[nodiscard]] pid_t pid() const { return pid_; }

 private:
  pid_t pid_;
};

int err_of(long result) { return result < 0 ? errno : 0; }

int lock(int fd, int command, short type, off_t start, off_t len) {
  struct flock fl {};
  fl.l_type = type;
  fl.l_whence = SEEK_SET;
  fl.l_start = start;
  fl.l_len = len;
  return err_of(::fcntl(fd, command, &fl));
}

class Mandatory : public ::testing::Test {
 protected:
  Mandatory() {
    MountFixture::Options options;
    options.options = {"enforce=mandatory"};
    mount_.emplace(options);
    file_ = mount_->mount() + "/data";
    const int fd = ::open(file_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    const std::string text(1000, 'a');
    EXPECT_EQ(::write(fd, text.data(), text.size()), 1000);
    ::close(fd);
  }
  int open(int flags = O_RDWR) const { return ::open(file_.c_str(), flags | O_CLOEXEC); }
  std::string control(const std::string& name) const {
    std::ifstream in{mount_->mount() + "/.locks/" + name};
    std::stringstream out;
    out << in.rdbuf();
    return out.str();
  }
  // The only lock there is, from another process.
  void break_the_lock() {
    const std::string list = control("list");
    const auto at = list.find("\"owner_id\": \"") + std::strlen("\"owner_id\": \"");
    const std::string owner = list.substr(at, 35);
    Child breaker{[&] {
      const int release =
          ::open((mount_->mount() + "/.locks/release").c_str(), O_WRONLY | O_CLOEXEC);
      const std::string text =
          R"({"ref": "/data", "offset": "0", "size": "0", "owner_id": ")" + owner + "\"}";
      return err_of(::write(release, text.data(), text.size()));
    }};
    ASSERT_EQ(breaker.result(), 0);
  }
  // Until somebody waits in the table; false after a minute.
  bool somebody_waits() const {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds{60};
    while (std::chrono::steady_clock::now() < deadline) {
      if (control("waiters").find("owner_id") != std::string::npos) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds{2});
    }
    return false;
  }
  std::string content() const {
    std::ifstream in{mount_->source() + "/data"};
    std::stringstream out;
    out << in.rdbuf();
    return out.str();
  }

  std::optional<MountFixture> mount_;
  std::string file_;
};

TEST_F(Mandatory, WhoDoesNotAskIsHeldBack) {
  const int fd = open();
  ASSERT_EQ(lock(fd, F_SETLK, F_WRLCK, 100, 100), 0);
  const auto other = [&](auto&& act) { return Child{act}.result(); };
  EXPECT_EQ(other([&] { return err_of(::pwrite(open(O_RDWR | O_NONBLOCK), "x", 1, 150)); }),
            EAGAIN);
  EXPECT_EQ(other([&] {
              char c = 0;
              return err_of(::pread(open(O_RDONLY | O_NONBLOCK), &c, 1, 150));
            }),
            EAGAIN);
  // Beside the lock nothing is in the way.
  EXPECT_EQ(other([&] { return err_of(::pwrite(open(O_RDWR | O_NONBLOCK), "x", 1, 99)); }), 0);
  EXPECT_EQ(other([&] { return err_of(::pwrite(open(O_RDWR | O_NONBLOCK), "x", 1, 200)); }), 0);
  EXPECT_EQ(other([&] { return err_of(::pwrite(open(O_RDWR | O_NONBLOCK), "xy", 2, 99)); }),
            EAGAIN);
  // Truncation never waits.
  EXPECT_EQ(other([&] { return err_of(::truncate(file_.c_str(), 10)); }), EAGAIN);
  EXPECT_EQ(other([&] { return err_of(::ftruncate(open(), 150)); }), EAGAIN);
  EXPECT_EQ(other([&] { return open(O_RDWR | O_TRUNC) < 0 ? errno : 0; }), EAGAIN);
  EXPECT_EQ(content().size(), 1000u);
  ::close(fd);
}

TEST_F(Mandatory, ReadersShareAndWritersDoNot) {
  const int fd = open();
  ASSERT_EQ(lock(fd, F_SETLK, F_RDLCK, 0, 0), 0);
  Child reader{[&] {
    char c = 0;
    return err_of(::pread(open(O_RDONLY | O_NONBLOCK), &c, 1, 5));
  }};
  EXPECT_EQ(reader.result(), 0);
  Child writer{[&] { return err_of(::pwrite(open(O_RDWR | O_NONBLOCK), "x", 1, 5)); }};
  EXPECT_EQ(writer.result(), EAGAIN);
  ::close(fd);
}

TEST_F(Mandatory, TheHolderDoesAsItLikes) {
  const int fd = open();
  ASSERT_EQ(lock(fd, F_SETLK, F_WRLCK, 0, 0), 0);
  EXPECT_EQ(::pwrite(fd, "mine", 4, 10), 4);
  std::array<char, 4> back{};
  EXPECT_EQ(::pread(fd, back.data(), 4, 10), 4);
  EXPECT_EQ(std::string(back.data(), 4), "mine");
  // Requests that carry no owner.
  EXPECT_EQ(err_of(::ftruncate(fd, 500)), 0);
  EXPECT_EQ(err_of(::truncate(file_.c_str(), 400)), 0);
  EXPECT_EQ(err_of(::fallocate(fd, 0, 0, 600)), 0);
  // Another descriptor of the same process is the same owner.
  const int again = open(O_RDWR | O_NONBLOCK);
  EXPECT_EQ(::pwrite(again, "also", 4, 20), 4);
  ::close(again);
  ::close(fd);
}

TEST_F(Mandatory, AnOfdLockBelongsToItsDescription) {
  const int fd = open();
  const int other = open(O_RDWR | O_NONBLOCK);
  ASSERT_EQ(lock(fd, F_OFD_SETLK, F_WRLCK, 0, 100), 0);
  EXPECT_EQ(::pwrite(fd, "x", 1, 50), 1);
  EXPECT_EQ(err_of(::pwrite(other, "y", 1, 50)), EAGAIN);
  EXPECT_EQ(::pwrite(other, "y", 1, 150), 1);
  Child heir{[&] { return err_of(::pwrite(fd, "z", 1, 51)); }};  // shares the description
  EXPECT_EQ(heir.result(), 0);
  ::close(fd);
  ::close(other);
}

// The kernel holds the inode's lock while a write is under way: one that waited would keep the
// holder of the lock from its own writes for ever.
TEST_F(Mandatory, AWriteIsRefusedAtOnceAndTheHolderGoesOn) {
  const int fd = open();
  ASSERT_EQ(lock(fd, F_SETLK, F_WRLCK, 0, 0), 0);
  Child writer{[&] { return err_of(::pwrite(open(), "w", 1, 100)); }};
  EXPECT_EQ(writer.result(), EAGAIN);
  Child appender{[&] { return err_of(::write(open(O_WRONLY | O_APPEND), "w", 1)); }};
  EXPECT_EQ(appender.result(), EAGAIN);
  EXPECT_EQ(::pwrite(fd, "more", 4, 5000), 4);
  EXPECT_EQ(content().find('w'), std::string::npos);
  ::close(fd);
}

TEST_F(Mandatory, ABlockedReadSeesWhatTheHolderWrote) {
  const int fd = open();
  ASSERT_EQ(lock(fd, F_SETLK, F_WRLCK, 0, 0), 0);
  Child reader{[&] {
    std::string seen(1000, '\0');
    if (::pread(open(O_RDONLY), seen.data(), seen.size(), 0) != 1000) return EIO;
    return seen == std::string(1000, 'n') ? 0 : EPROTO;
  }};
  ASSERT_TRUE(somebody_waits());
  const std::string text(1000, 'n');
  ASSERT_EQ(::pwrite(fd, text.data(), text.size(), 0), 1000);
  ASSERT_EQ(lock(fd, F_SETLK, F_UNLCK, 0, 0), 0);
  EXPECT_EQ(reader.result(), 0);
  ::close(fd);
}

// Of all sizes: small answers are copied, large ones spliced where that is possible.
TEST_F(Mandatory, ABlockedReadOfAnySizeIsAnswered) {
  constexpr std::size_t kMost = std::size_t{1} << 20;
  const int fd = open();
  const std::string text(kMost, 'n');
  ASSERT_EQ(::pwrite(fd, text.data(), text.size(), 0), static_cast<ssize_t>(kMost));
  for (std::size_t size = 4096; size <= kMost; size *= 2) {
    ASSERT_EQ(lock(fd, F_SETLK, F_WRLCK, 0, 0), 0);
    Child reader{[&] {
      std::string seen(size, '\0');
      const ssize_t got = ::pread(open(O_RDONLY), seen.data(), size, 0);
      return got == static_cast<ssize_t>(size) && seen == text.substr(0, size) ? 0 : EIO;
    }};
    ASSERT_TRUE(somebody_waits());
    ASSERT_EQ(lock(fd, F_SETLK, F_UNLCK, 0, 0), 0);
    EXPECT_EQ(reader.result(), 0) << size;
  }
  ::close(fd);
}

TEST_F(Mandatory, ABlockedReadCanBeInterruptedAndKilled) {
  const int fd = open();
  ASSERT_EQ(lock(fd, F_SETLK, F_WRLCK, 0, 0), 0);
  const auto blocked_read = [&] {
    struct sigaction action {};
    action.sa_handler = [](int) {};
    ::sigaction(SIGUSR1, &action, nullptr);
    char c = 0;
    return err_of(::pread(open(O_RDONLY), &c, 1, 0));
  };
  Child interrupted{blocked_read};
  ASSERT_TRUE(somebody_waits());
  ::kill(interrupted.pid(), SIGUSR1);
  EXPECT_EQ(interrupted.result(), EINTR);
  Child killed{blocked_read};
  ASSERT_TRUE(somebody_waits());
  ::kill(killed.pid(), SIGKILL);
  EXPECT_EQ(killed.result(), -1);
  EXPECT_EQ(control("waiters").find("owner_id"), std::string::npos);
  ::close(fd);
}

TEST_F(Mandatory, SharedMappingsAreRefusedAndPrivateOnesWork) {
  const int fd = open();
  EXPECT_EQ(::mmap(nullptr, 1000, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), MAP_FAILED);
  void* at = ::mmap(nullptr, 1000, PROT_READ, MAP_PRIVATE, fd, 0);
  ASSERT_NE(at, MAP_FAILED);
  EXPECT_EQ(static_cast<char*>(at)[0], 'a');
  ::munmap(at, 1000);
  ::close(fd);
}

TEST_F(Mandatory, ABrokenLockFencesItsOwnerUntilItLocksAnew) {
  const int fd = open();
  ASSERT_EQ(lock(fd, F_SETLK, F_WRLCK, 0, 100), 0);
  break_the_lock();
  EXPECT_EQ(err_of(::pwrite(fd, "stale", 5, 10)), EIO);
  EXPECT_EQ(err_of(::pwrite(fd, "stale", 5, 500)), EIO) << "anywhere in the file";
  EXPECT_EQ(content().find("stale"), std::string::npos);
  ASSERT_EQ(lock(fd, F_SETLK, F_WRLCK, 0, 100), 0);
  EXPECT_EQ(::pwrite(fd, "fresh", 5, 10), 5);
  ::close(fd);
  // Closed: whoever opens it anew is nobody's old owner.
  const int next = open();
  EXPECT_EQ(::pwrite(next, "again", 5, 10), 5);
  ::close(next);
}

TEST_F(Mandatory, AFenceHoldsForAllThatChangesTheFile) {
  for (const int command : {F_SETLK, F_OFD_SETLK}) {
    const int fd = open();
    ASSERT_EQ(lock(fd, command, F_WRLCK, 0, 100), 0);
    break_the_lock();
    EXPECT_EQ(err_of(::pwrite(fd, "stale", 5, 10)), EIO);
    EXPECT_EQ(err_of(::ftruncate(fd, 10)), EIO);
    EXPECT_EQ(err_of(::fallocate(fd, 0, 0, 50'000)), EIO);
    EXPECT_EQ(err_of(::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 500)), EIO);
    EXPECT_EQ(content(), std::string(1000, 'a'));
    ::close(fd);
  }
}

TEST_F(Mandatory, AFenceGoesWithItsDescriptionAndNotBefore) {
  const int fd = open();
  ASSERT_EQ(lock(fd, F_SETLK, F_WRLCK, 0, 100), 0);
  break_the_lock();
  // POSIX locks go when the process closes any descriptor of the file. Not so the fence.
  ::close(open(O_RDONLY));
  EXPECT_EQ(err_of(::pwrite(fd, "stale", 5, 10)), EIO);
  const int copy = ::dup(fd);
  ::close(copy);
  EXPECT_EQ(err_of(::pwrite(fd, "stale", 5, 10)), EIO);
  const int other = open();
  EXPECT_EQ(::pwrite(other, "x", 1, 999), 1) << "it never carried the lock";
  ::close(fd);
  const int next = open();
  EXPECT_EQ(::pwrite(next, "x", 1, 998), 1) << "at once, whenever the closed one is let go";
  ::close(next);
  ::close(other);
  EXPECT_EQ(content(), std::string(998, 'a') + "xx");
}

TEST_F(Mandatory, AppendingMeetsTheLocksWhereTheEndIs) {
  const int before = open(O_WRONLY | O_APPEND);
  MountFixture second{mount_->another()};
  const int through_other = ::open((second.mount() + "/data").c_str(), O_RDWR | O_CLOEXEC);
  ASSERT_GE(through_other, 0);
  ASSERT_EQ(::pwrite(through_other, "b", 1, 1999), 1);
  // The kernel's own idea of the end, in the first mount, is the old one.
  ASSERT_EQ(lock(through_other, F_OFD_SETLK, F_WRLCK, 2000, 0), 0);
  EXPECT_EQ(err_of(::write(before, "late", 4)), EAGAIN);
  EXPECT_EQ(content().size(), 2000U);
  ASSERT_EQ(lock(through_other, F_OFD_SETLK, F_UNLCK, 0, 0), 0);
  EXPECT_EQ(::write(before, "late", 4), 4);
  EXPECT_EQ(content().substr(2000), "late");
  ::close(through_other);
  ::close(before);
}

TEST_F(Mandatory, ManyWritersAndLockersNeverMix) {
  // Lockers fill a block and check it; writers without locks fill the same block in one write.
  // No locker may ever see another's byte inside its lock.
  std::array<pid_t, 6> pids{};
  for (std::size_t i = 0; i < pids.size(); ++i) {
    pids[i] = ::fork();
    if (pids[i] != 0) continue;
    const int fd = open();
    const bool locker = i < 3;
    std::string block(200, static_cast<char>('A' + i));
    for (int round = 0; round < 150; ++round) {
      if (locker && lock(fd, F_SETLKW, F_WRLCK, 0, 200) != 0) ::_exit(2);
      const bool written = ::pwrite(fd, block.data(), block.size(), 0) == 200;
      if (!written && (locker || errno != EAGAIN)) ::_exit(3);
      if (locker) {
        std::string seen(200, '\0');
        if (::pread(fd, seen.data(), seen.size(), 0) != 200 || seen != block) ::_exit(4);
        if (lock(fd, F_SETLK, F_UNLCK, 0, 200) != 0) ::_exit(5);
      }
    }
    ::_exit(0);
  }
  for (const pid_t pid : pids) {
    int status = 0;
    ::waitpid(pid, &status, 0);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  }
  EXPECT_EQ(control("list").find("owner_id"), std::string::npos);
}

}  // namespace
}  // namespace latchfs::test
