// What could get past a filelock: its side files and its mark meddled with, mappings and writes
// that are under way when it is made.
#include <fcntl.h>
#include <grp.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/xattr.h>

#include <array>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>

#include "support/filelock_world.h"

namespace latchfs::test {
namespace {

namespace stdfs = std::filesystem;

class FilelockGuard : public FilelockWorld {};

bool until(const std::function<bool()>& fn) {
  for (int i = 0; i < 6000; ++i) {
    if (fn()) return true;
    ::usleep(10'000);
  }
  return false;
}

// ---- side files ----

TEST_F(FilelockGuard, SideFilesAreAsTheFileAndOnlyAdminsTouchThem) {
  ASSERT_EQ(::chmod(source("a").c_str(), 0664), 0);
  ASSERT_EQ(lock("/a\n").err, 0);
  struct stat st {};
  ASSERT_EQ(::stat(path(".a.asp-bak").c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 07777, 0664u);
  EXPECT_EQ(st.st_uid, kLocker);
  EXPECT_EQ(content(path(".a.asp-bak")), "alpha");
  for (const uid_t uid : {kLocker, kOther}) {
    for (const char* name : {".a.asp-bak", ".a.asp-lck"}) {
      const std::string side = path(name);
      EXPECT_NE(as(uid, [&] { return write_to(side, "x"); }), 0) << name;
      EXPECT_NE(as(uid, [&] { return ::unlink(side.c_str()) != 0 ? errno : 0; }), 0) << name;
      EXPECT_NE(as(uid, [&] { return ::truncate(side.c_str(), 0) != 0 ? errno : 0; }), 0) << name;
      EXPECT_NE(as(uid, [&] { return ::chmod(side.c_str(), 0777) != 0 ? errno : 0; }), 0) << name;
      EXPECT_NE(
          as(uid, [&] { return ::rename(side.c_str(), path("stolen").c_str()) != 0 ? errno : 0; }),
          0)
          << name;
      EXPECT_NE(as(uid, [&] { return ::link(side.c_str(), path("l").c_str()) != 0 ? errno : 0; }),
                0)
          << name;
      EXPECT_NE(as(uid, [&] { return ::rename(path("b").c_str(), side.c_str()) != 0 ? errno : 0; }),
                0)
          << name;
    }
    EXPECT_EQ(as(uid, [&] { return write_to(path("b"), "x"); }), 0);
  }
  EXPECT_EQ(content(source(".a.asp-bak")), "alpha");
  EXPECT_EQ(as(0, [&] { return ::unlink(path(".a.asp-bak").c_str()) != 0 ? errno : 0; }), 0);
}

TEST_F(FilelockGuard, NobodyTakesTheirNamesFirst) {
  for (const char* name : {".b.asp-bak", ".b.asp-lck"}) {
    const std::string side = path(name);
    EXPECT_EQ(as(kOther,
                 [&] {
                   if (::open(side.c_str(), O_CREAT | O_WRONLY, 0666) >= 0) return 1;
                   if (::mkdir(side.c_str(), 0777) == 0) return 2;
                   if (::symlink("/etc/shadow", side.c_str()) == 0) return 3;
                   if (::mkfifo(side.c_str(), 0666) == 0) return 4;
                   if (::link(path("a").c_str(), side.c_str()) == 0) return 5;
                   if (::rename(path("a").c_str(), side.c_str()) == 0) return 6;
                   return 0;
                 }),
              0);
  }
  // Who writes to SOURCE itself can: then the lock fails and what is there stays as it is.
  make("precious", "gold", 0);
  ASSERT_EQ(::link(source("precious").c_str(), source(".b.asp-bak").c_str()), 0);
  const Answer answer = lock("/b\n");
  EXPECT_EQ(answer.err, EBUSY);
  EXPECT_TRUE(has(answer.reply, ".b.asp-bak")) << answer.reply;
  EXPECT_EQ(content(source("precious")), "gold");
  EXPECT_EQ(write_as(kOther, "b"), 0);
  ASSERT_EQ(::unlink(source(".b.asp-bak").c_str()), 0);
  ASSERT_EQ(::symlink("precious", source(".b.asp-lck").c_str()), 0);
  EXPECT_EQ(lock("/b\n").err, EBUSY);
  EXPECT_EQ(content(source("precious")), "gold");
  EXPECT_EQ(names_in(source("")).count(".b.asp-bak"), 0u) << "nothing of it is left";
}

TEST_F(FilelockGuard, TheMarkIsNobodysToSeeOrChange) {
  constexpr const char* kMark = "security.latchfs.filelock";
  ASSERT_EQ(lock("/a\n").err, 0);
  ASSERT_GT(::getxattr(source("a").c_str(), kMark, nullptr, 0), 0) << "what is hidden is there";
  EXPECT_EQ(::getxattr(path("a").c_str(), kMark, nullptr, 0), -1);
  EXPECT_EQ(::removexattr(path("a").c_str(), kMark), -1);
  EXPECT_EQ(::setxattr(path("b").c_str(), kMark, "1", 1, 0), -1);
  std::array<char, 4096> list{};
  const ssize_t size = ::listxattr(path("a").c_str(), list.data(), list.size());
  ASSERT_GE(size, 0);
  EXPECT_FALSE(has({list.data(), static_cast<std::size_t>(size)}, "latchfs"));
}

// ---- somebody meddles ----

TEST_F(FilelockGuard, WhatAnAdminDoesToTheFileHasADefinedOutcome) {
  // Deleted: the side files stay, are listed, and go by unfilelock.
  ASSERT_EQ(lock("/a\n").err, 0);
  ASSERT_EQ(::unlink(path("a").c_str()), 0);
  EXPECT_TRUE(has(control(*mount_, "filelock"), R"("state": "orphaned")"));
  EXPECT_EQ(unlock("/a\n", kOther).err, EACCES);
  EXPECT_EQ(unlock("/a\n").err, 0);
  EXPECT_EQ(names_in(source("")), Names{"b"});
  // Replaced: the new file is not locked, the old one's side files as above.
  ASSERT_EQ(lock("/b\n").err, 0);
  make("new", "new", 0);
  ASSERT_EQ(::rename(path("new").c_str(), path("b").c_str()), 0);
  EXPECT_EQ(write_as(kOther, "b"), 0);
  EXPECT_TRUE(has(control(*mount_, "filelock"), R"("state": "orphaned")"));
  EXPECT_EQ(lock("/b\n", kOther).err, EBUSY) << "another lock's side files are in the way";
  EXPECT_EQ(unlock("/b\n", 0).err, 0);
  EXPECT_EQ(names_in(source("")), Names{"b"});
  EXPECT_EQ(lock("/b\n", kOther).err, 0);
}

TEST_F(FilelockGuard, DamagedMetadataStillLocksAndCanBeCleanedUp) {
  for (const char* text : {"", "{\"version\": 1", "{\"version\": 99}", "not json at all"}) {
    ASSERT_EQ(lock("/a\n").err, 0);
    std::ofstream{path(".a.asp-lck"), std::ios::trunc} << text;
    EXPECT_EQ(write_as(kOther, "a"), EACCES) << text;
    EXPECT_TRUE(has(control(*mount_, "filelock"), R"("state": "damaged")")) << text;
    EXPECT_EQ(unlock(R"({"paths": [{"path": "/a", "revert": true}]})", 0).err, 0) << text;
    EXPECT_EQ(names_in(source("")), (Names{"a", "b"})) << text;
    EXPECT_EQ(content(source("a")), "alpha") << text;
  }
}

TEST_F(FilelockGuard, ADamagedMarkLocksForAllButAdmins) {
  ASSERT_EQ(::setxattr(source("a").c_str(), "security.latchfs.filelock", "nonsense", 8, 0), 0);
  EXPECT_EQ(write_as(kLocker, "a"), EACCES);
  EXPECT_EQ(unlock("/a\n").err, EACCES);
  EXPECT_EQ(write_as(0, "a"), 0);
  EXPECT_EQ(unlock("/a\n", 0).err, 0);
  EXPECT_EQ(write_as(kLocker, "a"), 0);
}

// ---- what is under way ----

TEST_F(FilelockGuard, AnotherUsersWritableMappingMakesItFailAndNamesHim) {
  void* at = MAP_FAILED;
  Actor mapper{kOther,
               [&] {
                 const int fd = ::open(path("a").c_str(), O_RDWR | O_CLOEXEC);
                 at = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
                 ::close(fd);
                 return at == MAP_FAILED ? errno : 0;
               },
               [&] { return ::munmap(at, 4096) != 0 ? errno : 0; }};
  ASSERT_EQ(mapper.first(), 0);
  const Answer answer = lock("/a\n");
  EXPECT_EQ(answer.err, EBUSY);
  EXPECT_TRUE(has(answer.reply, "process " + std::to_string(mapper.pid()))) << answer.reply;
  EXPECT_EQ(names_in(source("")), (Names{"a", "b"}));
  EXPECT_EQ(write_as(kOther, "a"), 0);
  ASSERT_EQ(mapper.next(), 0);
  // (When the daemon has heard of it.)
  EXPECT_TRUE(until([&] { return lock("/a\n").err == 0; }));
}

TEST_F(FilelockGuard, AMappingThatCouldBeMadeWritableCountsToo) {
  Actor mapper{kOther,
               [&] {
                 const int fd = ::open(path("a").c_str(), O_RDWR | O_CLOEXEC);
                 const void* at = ::mmap(nullptr, 4096, PROT_READ, MAP_SHARED, fd, 0);
                 ::close(fd);
                 return at == MAP_FAILED ? errno : 0;
               },
               [] { return 0; }};
  ASSERT_EQ(mapper.first(), 0);
  EXPECT_EQ(lock("/a\n").err, EBUSY);
}

TEST_F(FilelockGuard, MappingsThatCannotModifyItAreNoHindrance) {
  Actor mapper{kOther,
               [&] {
                 const int fd = ::open(path("a").c_str(), O_RDONLY | O_CLOEXEC);
                 const void* shared = ::mmap(nullptr, 4096, PROT_READ, MAP_SHARED, fd, 0);
                 const void* own =
                     ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
                 return shared == MAP_FAILED || own == MAP_FAILED ? errno : 0;
               },
               [] { return 0; }};
  ASSERT_EQ(mapper.first(), 0);
  EXPECT_EQ(lock("/a\n").err, 0);
}

TEST_F(FilelockGuard, AnotherUsersDescriptorThatCouldBeMappedMakesItFailAndNamesHim) {
  const MountFixture second{mount_->another()};
  for (const std::string& mount : {mount_->mount(), second.mount()}) {
    const Actor opener{
        kOther, [&] { return ::open((mount + "/a").c_str(), O_RDWR | O_CLOEXEC) < 0 ? errno : 0; },
        [] { return 0; }};
    ASSERT_EQ(opener.first(), 0);
    const Answer answer = lock("/a\n");
    EXPECT_EQ(answer.err, EBUSY);
    EXPECT_TRUE(has(answer.reply, "process " + std::to_string(opener.pid()))) << answer.reply;
    EXPECT_TRUE(has(answer.reply, "open for reading and writing")) << answer.reply;
    EXPECT_EQ(names_in(source("")), (Names{"a", "b"}));
  }
  EXPECT_TRUE(until([&] { return lock("/a\n").err == 0; })) << "it is closed";
}

TEST_F(FilelockGuard, WhereNothingCanBeMappedSuchADescriptorIsRefusedInstead) {
  restart({"enforce=mandatory"});
  int fd = -1;
  Actor opener{kOther,
               [&] {
                 fd = ::open(path("a").c_str(), O_RDWR | O_CLOEXEC);
                 return fd < 0 ? errno : 0;
               },
               [&] {
                 if (::pwrite(fd, "x", 1, 0) >= 0) return 1;
                 if (errno != EACCES) return 2;
                 const void* at = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
                 return at == MAP_FAILED ? 0 : 3;
               }};
  ASSERT_EQ(opener.first(), 0);
  ASSERT_EQ(lock("/a\n").err, 0);
  EXPECT_EQ(opener.next(), 0);
  EXPECT_EQ(content(source("a")), "alpha");
  EXPECT_EQ(content(path("a")), "alpha");
}

// Maps the file, gives the mapping to a child whose main thread ends, and lets go of it itself.
int map_and_hide(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
  void* const at = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  ::close(fd);
  if (at == MAP_FAILED) return errno;
  if (::fork() != 0) return ::munmap(at, 4096) != 0 ? errno : 0;
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  std::thread{[] { ::sleep(60); }}.detach();
  ::syscall(SYS_exit, 0);  // this thread alone
  return 1;
}

TEST_F(FilelockGuard, AMappingIsSeenThoughItsMainThreadHasEnded) {
  Actor mapper{kOther, [&] { return map_and_hide(path("a")); }, [] { return 0; }};
  ASSERT_EQ(mapper.first(), 0);
  ::usleep(100'000);
  EXPECT_EQ(lock("/a\n").err, EBUSY);
}

// A write held where it has looked whether it may, and a lock that waits for it.
TEST(FilelockInFlight, WritesFinishBeforeTheBackupAndAreListedMeanwhile) {
  MountFixture first;
  ::chmod(first.source().c_str(), 0777);
  const TempDir place;
  const std::string gate = place.path() + "/gate";
  ::setenv("LATCHFS_FAULT", ("fuse.change_admitted=hold:" + gate).c_str(), 1);
  MountFixture second{first.another()};
  ::unsetenv("LATCHFS_FAULT");
  const std::string name = first.source() + "/f";
  std::ofstream{name} << "old";
  ::chmod(name.c_str(), 0666);

  const int fd = ::open((second.mount() + "/f").c_str(), O_WRONLY | O_CLOEXEC);
  ASSERT_GE(fd, 0);
  ::chmod(place.path().c_str(), 0755);
  std::ofstream{gate};
  std::thread writer{[&] { EXPECT_EQ(::pwrite(fd, "new", 3, 0), 3); }};
  EXPECT_TRUE(until([&] { return has(control(first, "list"), "API_BYTE_RANGE_WRITE_OP"); }));
  const std::string listed = control(first, "list?mode=API_BYTE_RANGE_WRITE_OP");
  EXPECT_TRUE(has(listed, R"("offset": "0", "size": "3")")) << listed;
  EXPECT_TRUE(has(listed, R"("path": "/f")")) << listed;

  Answer answer;
  std::thread locker{[&] { answer = ask_as(kLocker, first.mount(), "filelock", "/f\n"); }};
  // It has begun: nobody else may write from here on, by any mount.
  EXPECT_TRUE(until(
      [&] { return as(kOther, [&] { return write_to(first.mount() + "/f", "x"); }) == EACCES; }));
  EXPECT_EQ(names_in(first.source()), Names{"f"}) << "no backup while a write is in flight";
  ::unlink(gate.c_str());
  writer.join();
  locker.join();
  EXPECT_EQ(answer.err, 0) << answer.reply;
  const std::string backup = content(first.source() + "/.f.asp-bak");
  EXPECT_EQ(backup, content(name));
  EXPECT_EQ(backup.substr(1), "ew");
  EXPECT_FALSE(has(control(first, "list"), "WRITE_OP"));
  ::close(fd);
}

}  // namespace
}  // namespace latchfs::test
