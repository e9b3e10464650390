// Filelocks on a mount, as a user meets them: the seed's requests, who may what, what comes back,
// restarts, moves, no room, many.
#include <fcntl.h>
#include <grp.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
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

class Filelock : public FilelockWorld {};

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
  // What the end of input makes complete fails as well.
  EXPECT_EQ(ask_as(kLocker, mount.mount(), "filelock", "/f").err, ENOSPC);
  // And nothing is done twice: each path is in the reply once.
  std::ofstream{disk.path() + "/small"} << "x";
  ::chmod((disk.path() + "/small").c_str(), 0666);
  const Answer both = ask_as(kLocker, mount.mount(), "filelock", "/small\n/f\n");
  EXPECT_EQ(both.err, ENOSPC);
  std::size_t paths = 0;
  for (auto at = both.reply.find("\"path\": "); at != std::string::npos;
       at = both.reply.find("\"path\": ", at + 1)) {
    ++paths;
  }
  EXPECT_EQ(paths, 2U) << both.reply;
}

// ---- many ----

TEST_F(Filelock, ManyAreListedByPages) {
  constexpr int kFiles = 120;
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
    const std::string page = control(*mount_, "filelock?limit=16" + after);
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
  EXPECT_GE(pages, kFiles / 16);
}

}  // namespace
}  // namespace latchfs::test
