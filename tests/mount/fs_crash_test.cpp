// kill -9 of the daemon while programs write: what was acknowledged by fsync is there, and what was
// not is old or new, block by block, never anything else.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/unique_fd.h"
#include "support/fs_stage.h"
#include "support/lock_proc.h"
#include "support/mount_fixture.h"

namespace latchfs::fsdiff {
namespace {

using test::MountFixture;

constexpr std::size_t kBlock = 4096;
constexpr std::size_t kBlocks = 64;  // of a file, and written at once by every other writer
constexpr int kWriters = 6;

// What the writers have reached, seen by the test.
struct Progress {
  std::atomic<std::uint32_t> begun{};   // the last generation whose write was begun
  std::atomic<std::uint32_t> synced{};  // the last that fsync acknowledged
  std::atomic<std::uint32_t> made{};    // files made, written, fsynced and renamed into place
  std::atomic<int> err{};               // what ended it
};

// Every word of a block says which generation it is of.
void stamp(char* block, std::uint32_t generation) {
  for (std::size_t i = 0; i < kBlock; i += sizeof generation) {
    std::memcpy(block + i, &generation, sizeof generation);
  }
}

// The generation of a whole block, or none.
bool generation_of(const char* block, std::uint32_t& generation) {
  std::memcpy(&generation, block, sizeof generation);
  for (std::size_t i = 0; i < kBlock; i += sizeof generation) {
    if (std::memcmp(block + i, &generation, sizeof generation) != 0) return false;
  }
  return true;
}

[[noreturn]] void write_until_it_fails(const std::string& top, int writer, Progress& progress) {
  const std::string name = top + "/" + std::to_string(writer);
  const UniqueFd fd{open(name.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644)};
  if (!fd) {
    progress.err = errno;
    _exit(0);
  }
  std::vector<char> all(kBlock * kBlocks);
  for (std::uint32_t generation = 1;; ++generation) {
    for (std::size_t i = 0; i < kBlocks; ++i) stamp(all.data() + i * kBlock, generation);
    progress.begun = generation;
    bool fine = true;
    if (writer % 2 == 0) {
      fine = pwrite(fd.get(), all.data(), all.size(), 0) == static_cast<ssize_t>(all.size());
    } else {
      for (std::size_t i = 0; i < kBlocks && fine; ++i) {
        fine = pwrite(fd.get(), all.data() + i * kBlock, kBlock, static_cast<off_t>(i * kBlock)) ==
               static_cast<ssize_t>(kBlock);
      }
    }
    if (fine && fsync(fd.get()) == 0) {
      progress.synced = generation;
    } else {
      progress.err = errno;
      _exit(0);
    }
    // The usual way of replacing a file as a whole.
    const std::string fresh = name + ".new";
    const UniqueFd next{open(fresh.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600)};
    if (!next || write(next.get(), all.data(), kBlock) != static_cast<ssize_t>(kBlock) ||
        fsync(next.get()) != 0 || rename(fresh.c_str(), (name + ".whole").c_str()) != 0) {
      progress.err = errno;
      _exit(0);
    }
    progress.made = generation;
  }
}

std::string content(const std::string& path) {
  const UniqueFd fd{open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  std::string out(kBlock * kBlocks + 1, '\0');
  const ssize_t got = pread(fd.get(), out.data(), out.size(), 0);
  out.resize(got < 0 ? 0 : static_cast<std::size_t>(got));
  return out;
}

void check(const std::string& top, int writer, const Progress& progress) {
  const std::string name = top + "/" + std::to_string(writer);
  const std::string bytes = content(name);
  ASSERT_LE(bytes.size(), kBlock * kBlocks);
  const std::uint32_t synced = progress.synced;
  const std::uint32_t begun = progress.begun;
  if (synced > 0) {
    ASSERT_EQ(bytes.size(), kBlock * kBlocks);
  }
  ASSERT_EQ(bytes.size() % kBlock, 0u) << "half a block";
  std::uint32_t last = begun;
  for (std::size_t i = 0; i < bytes.size() / kBlock; ++i) {
    std::uint32_t generation = 0;
    ASSERT_TRUE(generation_of(bytes.data() + i * kBlock, generation)) << "torn block " << i;
    EXPECT_GE(generation, synced) << "an fsynced block is lost: " << i;
    EXPECT_LE(generation, last) << "written out of order: " << i;
    last = generation;
  }
  if (progress.made == 0) return;
  const std::string whole = content(name + ".whole");
  ASSERT_EQ(whole.size(), kBlock);
  std::uint32_t generation = 0;
  EXPECT_TRUE(generation_of(whole.data(), generation));
  EXPECT_GE(generation, progress.made);
}

TEST(FsCrash, KillDuringWrites) {
  if (access("/dev/fuse", R_OK | W_OK) != 0) FAIL() << "fs_crash needs /dev/fuse";
  if (geteuid() == 0) use_private_mounts();
  using Shared = std::array<Progress, kWriters>;
  void* shared =
      mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(shared, MAP_FAILED);
  for (int kill_after = 1; kill_after <= 12; ++kill_after) {
    SCOPED_TRACE("killed when the first writer was in generation " + std::to_string(kill_after));
    auto* progress = new (shared) Shared;
    MountFixture fixture;
    std::vector<pid_t> writers;
    for (int i = 0; i < kWriters; ++i) {
      writers.push_back(fork());
      if (writers.back() == 0) {
        write_until_it_fails(fixture.mount(), i, progress->at(static_cast<std::size_t>(i)));
      }
    }
    while (progress->front().begun < static_cast<std::uint32_t>(kill_after) &&
           progress->front().err == 0) {
      sched_yield();
    }
    fixture.kill_daemon();
    for (pid_t writer : writers) waitpid(writer, nullptr, 0);
    fixture.detach();
    for (int i = 0; i < kWriters; ++i) {
      SCOPED_TRACE("writer " + std::to_string(i));
      const Progress& p = progress->at(static_cast<std::size_t>(i));
      // ECANCELED, EINTR: on its way to a ring, which nobody serves any more.
      constexpr std::array<int, 5> kOrphaned{ENOTCONN, ECONNABORTED, EIO, ECANCELED, EINTR};
      EXPECT_NE(std::find(kOrphaned.begin(), kOrphaned.end(), p.err), kOrphaned.end()) << p.err;
      check(fixture.source(), i, p);
    }
  }
  munmap(shared, sizeof(Shared));
}

// Each in a process of its own that waits for a lock when the daemon is told to end.
TEST(FsCrash, WhoWaitsForALockHearsThatTheDaemonEnds) {
  MountFixture mount;
  const std::string name = mount.mount() + "/file";
  const UniqueFd held{open(name.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644)};
  ASSERT_TRUE(held);
  struct flock all {};
  all.l_type = F_WRLCK;
  ASSERT_EQ(fcntl(held.get(), F_OFD_SETLK, &all), 0);
  ASSERT_EQ(flock(held.get(), LOCK_EX), 0);
  std::vector<pid_t> waiters;
  for (int kind = 0; kind < 3; ++kind) {
    const pid_t pid = fork();
    if (pid == 0) {
      const int fd = open(name.c_str(), O_RDWR | O_CLOEXEC);
      struct flock want {};
      want.l_type = F_WRLCK;
      const int r = kind == 0   ? fcntl(fd, F_SETLKW, &want)
                    : kind == 1 ? fcntl(fd, F_OFD_SETLKW, &want)
                                : flock(fd, LOCK_EX);
      _exit(r == 0 ? 0 : errno > 255 ? 255 : errno);
    }
    waiters.push_back(pid);
  }
  ASSERT_TRUE(locktest::poll_until([&] {
    std::ifstream in{mount.mount() + "/.locks/waiters"};
    const std::string text{std::istreambuf_iterator<char>{in}, {}};
    return nlohmann::json::parse(text).at("waiters").size() == waiters.size();
  }));
  ASSERT_EQ(kill(mount.daemon(), SIGTERM), 0);
  for (const pid_t pid : waiters) {
    int status = 0;
    waitpid(pid, &status, 0);
    EXPECT_TRUE(WIFEXITED(status));
    EXPECT_EQ(WEXITSTATUS(status), ECONNABORTED);
  }
}

}  // namespace
}  // namespace latchfs::fsdiff
