// Filelocks on a mount, as a user meets them: the seed's requests, who may what, what is beside the
// file, mappings and writes in flight, restarts, moves, and what becomes of them when somebody
// meddles.
#include <fcntl.h>
#include <grp.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/xattr.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <set>
#include <thread>

#include "support/filelock_client.h"
#include "support/mount_fixture.h"

namespace latchfs::test {
namespace {

namespace stdfs = std::filesystem;

constexpr uid_t kLocker = 61001;
constexpr uid_t kOther = 61002;

std::string content(const std::string& path) {
  std::ifstream in{path, std::ios::binary};
  return {std::istreambuf_iterator<char>{in}, {}};
}
bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}
std::string control(const MountFixture& mount, const std::string& name) {
  return content(mount.mount() + "/.locks/" + name);
}
std::set<std::string> names_in(const std::string& directory) {
  std::set<std::string> names;
  for (const auto& entry : stdfs::directory_iterator{directory}) {
    names.insert(entry.path().filename());
  }
  return names;
}
using Names = std::set<std::string>;
int write_to(const std::string& path, const std::string& text) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_CLOEXEC);
  if (fd < 0) return errno;
  const int err = ::write(fd, text.data(), text.size()) < 0 ? errno : 0;
  ::close(fd);
  return err;
}

class Filelock : public ::testing::Test {
 protected:
  Filelock() {
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

// ---- requests and replies ----

TEST_F(Filelock, TheSeedsSampleRequestGetsItsSampleReply) {
  ASSERT_TRUE(stdfs::create_directories(source("path/to")));
  make("path/to/file1", "1");
  const Answer answer = lock(R"({
    "paths" : [
        {
            "path" : "/path/to/file1",
            "tags" : {"tag" : "tag_string"}
        },
        {
            "path" : "/path/to/file2",
            "tags" : {"tag" : "tag_string"}
        }
    ]
})");
  EXPECT_EQ(answer.err, ENOENT);
  const std::string wanted = R"({"paths": [
{"path": "/path/to/file1", "tags": {"tag": "tag_string"}},
{"path": "/path/to/file2", "error": {"code": "404", "reason": "Not Found", "user_message": "No such file or directory"}}
]}
)";
  EXPECT_EQ(answer.reply, wanted);
  EXPECT_EQ(names_in(source("path/to")), (Names{"file1", ".file1.asp-bak", ".file1.asp-lck"}));

  const Answer undone = unlock(R"({
    "paths" : [
        {
            "path" : "/path/to/file1",
            "revert" : true
        },
        {
            "path" : "/path/to/file2",
            "revert" : false
        }
    ]
})");
  EXPECT_EQ(undone.err, ENOENT);
  EXPECT_EQ(undone.reply, R"({"paths": [
{"path": "/path/to/file1"},
{"path": "/path/to/file2", "error": {"code": "404", "reason": "Not Found", "user_message": "No such file or directory"}}
]}
)");
  EXPECT_EQ(names_in(source("path/to")), Names{"file1"});
}

TEST_F(Filelock, ShortFormAndMountPointInFront) {
  EXPECT_EQ(lock("/a\n/b\n").err, 0);
  EXPECT_EQ(write_as(kOther, "a"), EACCES);
  EXPECT_EQ(write_as(kOther, "b"), EACCES);
  EXPECT_EQ(unlock(path("a") + "\n").err, 0);
  EXPECT_EQ(write_as(kOther, "a"), 0);
}

TEST_F(Filelock, WhatCannotBeLockedSaysWhy) {
  ASSERT_EQ(::mkdir(source("d").c_str(), 0777), 0);
  ASSERT_EQ(::symlink("a", source("s").c_str()), 0);
  ASSERT_EQ(::mkfifo(source("p").c_str(), 0666), 0);
  make("ro", "read only", kOther);
  ASSERT_EQ(::chmod(source("ro").c_str(), 0644), 0);
  const std::string longest(250, 'n');
  make(longest, "long");
  const auto code_of = [&](const std::string& name) {
    const Answer answer = lock("/" + name + "\n");
    EXPECT_NE(answer.err, 0) << name;
    const auto at = answer.reply.find("\"code\": \"");
    return at == std::string::npos ? answer.reply : answer.reply.substr(at + 9, 3);
  };
  EXPECT_EQ(code_of("d"), "400");
  EXPECT_EQ(code_of("s"), "400");
  EXPECT_EQ(code_of("p"), "400");
  EXPECT_EQ(code_of("a/x"), "400");
  EXPECT_EQ(code_of("missing"), "404");
  EXPECT_EQ(code_of("missing/x"), "404");
  EXPECT_EQ(code_of(".locks/list"), "404");
  EXPECT_EQ(code_of("ro"), "403");
  EXPECT_EQ(code_of(longest), "400");
  EXPECT_TRUE(has(lock("/" + longest + "\n").reply, "25")) << "it says how long is too long";
  ASSERT_EQ(lock("/a\n").err, 0);
  EXPECT_EQ(code_of(".a.asp-bak"), "400");
  EXPECT_EQ(names_in(source("")),
            (Names{"a", "b", "d", "s", "p", "ro", longest, ".a.asp-bak", ".a.asp-lck"}));
}

TEST_F(Filelock, AnotherUsersIsA409ThatNamesHim) {
  ASSERT_EQ(lock(R"({"paths": [{"path": "/a", "tags": {"ticket": "42"}}]})").err, 0);
  for (const uid_t uid : {kOther, uid_t{0}}) {
    const Answer answer = lock("/a\n", uid);
    EXPECT_EQ(answer.err, EBUSY);
    EXPECT_TRUE(has(answer.reply, R"("code": "409")")) << answer.reply;
    EXPECT_TRUE(has(answer.reply, "61001")) << answer.reply;
  }
  EXPECT_TRUE(has(content(source(".a.asp-lck")), "42"));
}

TEST_F(Filelock, AgainByTheSameUserReplacesTheTagsAndKeepsTheBackup) {
  ASSERT_EQ(lock(R"({"paths": [{"path": "/a", "tags": {"ticket": "42"}}]})").err, 0);
  EXPECT_EQ(write_as(kLocker, "a"), 0);
  ASSERT_EQ(lock(R"({"paths": [{"path": "/a", "tags": {"ticket": "43"}}]})").err, 0);
  EXPECT_EQ(content(source(".a.asp-bak")), "alpha");
  EXPECT_EQ(content(source("a")), "xlpha");
  const std::string list = control(*mount_, "filelock");
  EXPECT_TRUE(has(list, R"("tags": {"ticket": "43"})")) << list;
  ASSERT_EQ(lock("/a\n").err, 0);
  EXPECT_TRUE(has(control(*mount_, "filelock"), R"({"ticket": "43"})")) << "none given: they stay";
}

TEST_F(Filelock, OnlyHeAndAdminsUnlock) {
  ASSERT_EQ(lock("/a\n/b\n").err, 0);
  const Answer refused = unlock("/a\n", kOther);
  EXPECT_EQ(refused.err, EACCES);
  EXPECT_TRUE(has(refused.reply, R"("code": "403")")) << refused.reply;
  EXPECT_EQ(unlock("/a\n").err, 0);
  EXPECT_EQ(unlock("/b\n", 0).err, 0);
  EXPECT_EQ(unlock("/b\n", 0).err, ENOENT) << "it is not locked any more";
  EXPECT_EQ(names_in(source("")), (Names{"a", "b"}));
}

TEST_F(Filelock, MembersOfTheAdminGroupAreAdmins) {
  restart({"admin_group=" + std::to_string(61077)});
  ASSERT_EQ(lock("/a\n").err, 0);
  const auto as_member = [&](const std::function<int()>& fn) {
    return as(0, [&] {
      const gid_t group = 61077;
      if (::setgroups(1, &group) != 0 || ::setgid(kOther) != 0 || ::setuid(kOther) != 0) return 250;
      return fn();
    });
  };
  EXPECT_EQ(as_member([&] { return write_to(path("a"), "x"); }), 0);
  EXPECT_EQ(write_as(kOther, "a"), EACCES);
  EXPECT_EQ(as_member([&] { return ask(mount_->mount(), "unfilelock", "/a\n").err; }), 0);
}

// ---- what comes back ----

TEST_F(Filelock, RevertBringsBackContentModeTimesAndAttributes) {
  ASSERT_EQ(::setxattr(source("a").c_str(), "user.kept", "1", 1, 0), 0);
  struct stat before {};
  ASSERT_EQ(::stat(source("a").c_str(), &before), 0);
  ASSERT_EQ(lock("/a\n").err, 0);
  const int reader = ::open(path("a").c_str(), O_RDONLY | O_CLOEXEC);
  EXPECT_EQ(as(kLocker,
               [&] {
                 const std::string text(100'000, 'z');
                 if (write_to(path("a"), text) != 0) return 1;
                 if (::chmod(path("a").c_str(), 0600) != 0) return 2;
                 if (::removexattr(path("a").c_str(), "user.kept") != 0) return 3;
                 if (::setxattr(path("a").c_str(), "user.new", "1", 1, 0) != 0) return 4;
                 return 0;
               }),
            0);
  std::array<char, 16> text{};
  EXPECT_EQ(::pread(reader, text.data(), 5, 0), 5);
  EXPECT_EQ(std::string(text.data()), "zzzzz");
  ASSERT_EQ(unlock(R"({"paths": [{"path": "/a", "revert": true}]})").err, 0);
  text = {};
  EXPECT_EQ(::pread(reader, text.data(), text.size(), 0), 5);
  EXPECT_EQ(std::string(text.data()), "alpha");
  struct stat st {};
  ASSERT_EQ(::fstat(reader, &st), 0);
  EXPECT_EQ(st.st_size, 5);
  ::close(reader);
  struct stat after {};
  ASSERT_EQ(::stat(path("a").c_str(), &after), 0);
  EXPECT_EQ(after.st_mode, before.st_mode);
  EXPECT_EQ(after.st_size, 5);
  EXPECT_EQ(after.st_mtim.tv_sec, before.st_mtim.tv_sec);
  EXPECT_EQ(after.st_mtim.tv_nsec, before.st_mtim.tv_nsec);
  ASSERT_EQ(::stat(source("a").c_str(), &after), 0);
  EXPECT_EQ(after.st_ino, before.st_ino);
  EXPECT_EQ(::getxattr(source("a").c_str(), "user.kept", nullptr, 0), 1);
  EXPECT_EQ(::getxattr(source("a").c_str(), "user.new", nullptr, 0), -1);
  EXPECT_EQ(names_in(source("")), (Names{"a", "b"}));
}

TEST_F(Filelock, UnlockWithoutRevertKeepsWhatWasWritten) {
  ASSERT_EQ(lock("/a\n").err, 0);
  EXPECT_EQ(write_as(kLocker, "a"), 0);
  ASSERT_EQ(unlock("/a\n").err, 0);
  EXPECT_EQ(content(source("a")), "xlpha");
  EXPECT_EQ(names_in(source("")), (Names{"a", "b"}));
}

// ---- side files ----

TEST_F(Filelock, SideFilesAreAsTheFileAndOnlyAdminsTouchThem) {
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

TEST_F(Filelock, NobodyTakesTheirNamesFirst) {
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

TEST_F(Filelock, TheMarkIsNobodysToSeeOrChange) {
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

// ---- what is under way ----

TEST_F(Filelock, AnotherUsersWritableMappingMakesItFailAndNamesHim) {
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
  EXPECT_EQ(lock("/a\n").err, 0);
}

TEST_F(Filelock, AMappingThatCouldBeMadeWritableCountsToo) {
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

TEST_F(Filelock, MappingsThatCannotModifyItAreNoHindrance) {
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

TEST_F(Filelock, AnotherUsersDescriptorThatCouldBeMappedMakesItFailAndNamesHim) {
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
  EXPECT_EQ(lock("/a\n").err, 0) << "it is closed";
}

TEST_F(Filelock, WhereTheDaemonSeesAllSuchADescriptorIsRefusedInstead) {
  restart({"io=direct"});
  void* at = MAP_FAILED;
  int fd = -1;
  Actor opener{kOther,
               [&] {
                 fd = ::open(path("a").c_str(), O_RDWR | O_CLOEXEC);
                 return fd < 0 ? errno : 0;
               },
               [&] {
                 if (::pwrite(fd, "x", 1, 0) >= 0) return 1;
                 if (errno != EACCES) return 2;
                 at = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
                 if (at == MAP_FAILED) return 0;
                 *static_cast<volatile char*>(at) = 'm';
                 return ::msync(at, 4096, MS_SYNC) == 0 ? 3 : 0;
               }};
  ASSERT_EQ(opener.first(), 0);
  ASSERT_EQ(lock("/a\n").err, 0);
  EXPECT_EQ(opener.next(), 0);
  EXPECT_EQ(content(source("a")), "alpha");
  EXPECT_EQ(content(path("a")), "alpha");
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
  const auto until = [](const std::function<bool()>& fn) {
    for (int i = 0; i < 6000 && !fn(); ++i) ::usleep(10'000);
    return fn();
  };
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

// ---- it lasts ----

TEST_F(Filelock, SurvivesRestartsAndATableThatIsLost) {
  ASSERT_EQ(lock("/a\n").err, 0);
  restart();
  EXPECT_EQ(write_as(kOther, "a"), EACCES);
  EXPECT_EQ(write_as(kLocker, "a"), 0);
  mount_->kill_daemon();
  mount_->detach();
  MountFixture::Options other;
  other.source = mount_->source();  // and a table of its own
  const MountFixture anew{other};
  EXPECT_EQ(as(kOther, [&] { return write_to(anew.mount() + "/a", "x"); }), EACCES);
  EXPECT_TRUE(has(control(anew, "filelock"), R"("path": "/a")"));
}

TEST_F(Filelock, MovesWithTheTree) {
  ASSERT_TRUE(stdfs::create_directories(source("d/e")));
  make("d/e/f", "deep");
  ASSERT_EQ(lock("/d/e/f\n").err, 0);
  stdfs::rename(source("d"), source("moved"));
  EXPECT_EQ(write_as(kOther, "moved/e/f"), EACCES);
  EXPECT_TRUE(has(control(*mount_, "filelock"), R"("path": "/moved/e/f")"));
  EXPECT_EQ(unlock("/moved/e/f\n").err, 0);
  EXPECT_EQ(names_in(source("moved/e")), Names{"f"});
}

TEST_F(Filelock, HoldsOnSecondMountsAndWhatIsMountedInside) {
  const MountFixture second{mount_->another()};
  ASSERT_TRUE(stdfs::create_directories(source("d")));
  make("d/f", "deep");
  MountFixture::Options inside = mount_->another();
  inside.source = source("d");
  const MountFixture third{inside};
  ASSERT_EQ(lock("/d/f\n").err, 0);
  EXPECT_EQ(as(kOther, [&] { return write_to(second.mount() + "/d/f", "x"); }), EACCES);
  EXPECT_EQ(as(kOther, [&] { return write_to(third.mount() + "/f", "x"); }), EACCES);
  EXPECT_EQ(ask_as(kLocker, third.mount(), "unfilelock", "/f\n").err, 0);
  EXPECT_EQ(as(kOther, [&] { return write_to(second.mount() + "/d/f", "x"); }), 0);
}

// ---- somebody meddles ----

TEST_F(Filelock, WhatAnAdminDoesToTheFileHasADefinedOutcome) {
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

TEST_F(Filelock, DamagedMetadataStillLocksAndCanBeCleanedUp) {
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

TEST_F(Filelock, ADamagedMarkLocksForAllButAdmins) {
  ASSERT_EQ(::setxattr(source("a").c_str(), "security.latchfs.filelock", "nonsense", 8, 0), 0);
  EXPECT_EQ(write_as(kLocker, "a"), EACCES);
  EXPECT_EQ(unlock("/a\n").err, EACCES);
  EXPECT_EQ(write_as(0, "a"), 0);
  EXPECT_EQ(unlock("/a\n", 0).err, 0);
  EXPECT_EQ(write_as(kLocker, "a"), 0);
}

// ---- no room ----

TEST(FilelockSpace, AFullFileSystemIsA507AndNothingIsLeft) {
  const OwnFileSystem disk{"tmpfs", "size=4m"};
  ASSERT_TRUE(disk.ok());
  MountFixture::Options options;
  options.source = disk.path();
  const MountFixture mount{options};
  ::chmod(disk.path().c_str(), 0777);
  std::ofstream{disk.path() + "/f"} << std::string(3 << 20, 'f');
  ::chmod((disk.path() + "/f").c_str(), 0666);
  const Answer answer = ask_as(kLocker, mount.mount(), "filelock", "/f\n");
  EXPECT_EQ(answer.err, ENOSPC);
  EXPECT_TRUE(has(answer.reply, R"("code": "507", "reason": "Insufficient Storage")"))
      << answer.reply;
  EXPECT_EQ(names_in(disk.path()), Names{"f"});
  EXPECT_EQ(as(kOther, [&] { return write_to(mount.mount() + "/f", "x"); }), 0);
}

// ---- many ----

TEST_F(Filelock, ManyAreListedByPages) {
  constexpr int kFiles = 500;
  std::string request = R"({"paths": [)";
  for (int i = 0; i < kFiles; ++i) {
    make("n" + std::to_string(i), "x");
    request += std::string{i == 0 ? "" : ","} + R"({"path": "/n)" + std::to_string(i) + "\"}";
  }
  ASSERT_EQ(lock(request + "]}").err, 0);
  std::set<std::string> seen;
  std::string after;
  int pages = 0;
  for (;; ++pages) {
    const std::string page = control(*mount_, "filelock?limit=64" + after);
    std::size_t at = 0;
    while ((at = page.find("{\"path\": \"/", at)) != std::string::npos) {
      at += 10;
      EXPECT_TRUE(seen.insert(page.substr(at, page.find('"', at) - at)).second);
    }
    const auto next = page.find("\"next\": \"") + 9;
    const std::string text = page.substr(next, page.find('"', next) - next);
    if (text.empty()) break;
    after = "&after=" + text;
  }
  EXPECT_EQ(seen.size(), static_cast<std::size_t>(kFiles));
  EXPECT_GE(pages, kFiles / 64);
}

}  // namespace
}  // namespace latchfs::test
