// What others have put in the way, what is damaged, what is too full, and who is there first.
#include <sys/statvfs.h>
#include <sys/wait.h>

#include <csignal>
#include <thread>

#include "base/fault_point.h"
#include "filelock_fixture.h"
#include "posix/credentials.h"

namespace latchfs::filelock {
namespace {

const std::set<std::string> kAlone{"f"};

class FilelockRefusal : public FilelockTest {
 protected:
  void SetUp() override {
    FilelockTest::SetUp();
    write_file("f", "old");
  }
  void forge(const std::string& name, const std::string& text) {
    set_attribute(name, "security.latchfs.filelock", text);
  }
};

TEST_F(FilelockRefusal, WhatHasTheNameOfASideFileIsNeverTouched) {
  write_file("precious", "gold", 0640);
  const std::string precious = seen("precious");
  for (const char* side : {".f.asp-bak", ".f.asp-lck"}) {
    const std::vector<std::pair<const char*, std::function<int()>>> makers{
        {"symlink", [&] { return ::symlink("precious", path(side).c_str()); }},
        {"dangling", [&] { return ::symlink("nowhere", path(side).c_str()); }},
        {"fifo", [&] { return ::mkfifo(path(side).c_str(), 0666); }},
        {"directory", [&] { return ::mkdir(path(side).c_str(), 0755); }},
        {"link", [&] { return ::link(path("precious").c_str(), path(side).c_str()); }},
        {"ordinary",
         [&] {
           write_file(side, "mine");
           return 0;
         }},
        {"marked for another",
         [&] {
           write_file(side, "mine");
           forge(side, "1 side 00000000000000000000000000000001 0 0 1 f");
           return 0;
         }},
        {"marked as a lock", [&] {
           write_file(side, "mine");
           forge(side, "1 lock 00000000000000000000000000000001 0 0 1 f");
           return 0;
         }}};
    for (const auto& [what, make] : makers) {
      SCOPED_TRACE(fmt::format("{} as {}", what, side));
      ASSERT_EQ(make(), 0);
      const std::string there = seen(side);
      const Failure refusal = apply("f");
      EXPECT_EQ(refusal.code, errno_code(EBUSY)) << refusal.words;
      EXPECT_NE(refusal.words.find(side), std::string::npos) << refusal.words;
      EXPECT_EQ(seen(side), there);
      EXPECT_EQ(names(), (std::set<std::string>{side, "f", "precious"}));
      EXPECT_FALSE(mark("f"));
      EXPECT_EQ(seen("precious"), precious);
      std::filesystem::remove(path(side));
    }
  }
}

TEST_F(FilelockRefusal, ALeftOverOfTheSameFileIsReplaced) {
  struct stat st {};
  ASSERT_EQ(::stat(path("f").c_str(), &st), 0);
  for (const char* side : {".f.asp-bak", ".f.asp-lck"}) {
    write_file(side, "left");
    forge(side, fmt::format("1 side 00000000000000000000000000000001 0 0 {} f", st.st_ino));
  }
  EXPECT_EQ(status("f").condition, Condition::kOrphan);
  EXPECT_REFUSED(remove("f"), ENOENT);
  EXPECT_DONE(apply("f"));
  EXPECT_EQ(status("f").condition, Condition::kLocked);
  EXPECT_EQ(content(".f.asp-bak"), "old");
}

TEST_F(FilelockRefusal, AnotherFileUnderTheNameHasNoClaimToItsSideFiles) {
  EXPECT_DONE(apply("f"));
  ASSERT_EQ(::rename(path("f").c_str(), path("moved").c_str()), 0);
  write_file("f", "another");
  EXPECT_EQ(status("f").condition, Condition::kOrphan);
  EXPECT_REFUSED(apply("f"), EBUSY);
  EXPECT_EQ(content(".f.asp-bak"), "old");
  write_at("moved", 0, "new");
  EXPECT_DONE(revert("moved"));
  EXPECT_EQ(content("moved"), "old");
  EXPECT_EQ(names(), (std::set<std::string>{"f", "moved"}));
}

TEST_F(FilelockRefusal, AFileThatMayNotBeChangedStaysUnlocked) {
  ASSERT_TRUE(run("chattr +i " + path("f")));
  const Failure refusal = apply("f");
  EXPECT_TRUE(run("chattr -i " + path("f")));
  EXPECT_EQ(refusal.code, errno_code(EPERM)) << refusal.words;
  EXPECT_EQ(names(), kAlone);
  EXPECT_DONE(apply("f"));
  write_at("f", 0, "new");
  ASSERT_TRUE(run("chattr +i " + path("f")));
  const Failure no_revert = revert("f");
  EXPECT_TRUE(run("chattr -i " + path("f")));
  EXPECT_EQ(no_revert.code, errno_code(EPERM)) << no_revert.words;
  EXPECT_EQ(status("f").condition, Condition::kLocked);
  EXPECT_DONE(revert("f"));
  EXPECT_EQ(content("f"), "old");
}

TEST_F(FilelockRefusal, SideFilesWithoutTheirFileAreOrphans) {
  EXPECT_DONE(apply("f"));
  ASSERT_EQ(::unlink(path("f").c_str()), 0);
  const auto orphan = status_of({dir(), "f", -1});
  ASSERT_TRUE(orphan);
  EXPECT_EQ(orphan->condition, Condition::kOrphan);
}

TEST_F(FilelockRefusal, RemovingLeavesWhatIsNotItsOwn) {
  EXPECT_DONE(apply("f"));
  for (const char* side : {".f.asp-bak", ".f.asp-lck"}) {
    ASSERT_EQ(::unlink(path(side).c_str()), 0);
    write_file(side, "mine");
  }
  EXPECT_EQ(status("f").condition, Condition::kIncomplete);
  EXPECT_EQ(status("f").backup, SideState::kForeign);
  EXPECT_REFUSED(retag("f", info()), EBUSY);
  EXPECT_REFUSED(revert("f"), EBUSY);
  EXPECT_DONE(remove("f"));
  EXPECT_FALSE(mark("f"));
  EXPECT_EQ(content(".f.asp-bak"), "mine");
  EXPECT_EQ(content(".f.asp-lck"), "mine");
}

TEST_F(FilelockRefusal, RevertingNeedsTheBackup) {
  EXPECT_DONE(apply("f"));
  write_at("f", 0, "new");
  ASSERT_EQ(::unlink(path(".f.asp-bak").c_str()), 0);
  const Status now = status("f");
  EXPECT_EQ(now.condition, Condition::kIncomplete);
  EXPECT_EQ(now.backup, SideState::kMissing);
  EXPECT_NE(now.words.find("backup is missing"), std::string::npos);
  EXPECT_REFUSED(revert("f"), ENOENT);
  EXPECT_EQ(content("f"), "new");
  EXPECT_TRUE(mark("f"));
  EXPECT_DONE(remove("f"));
  EXPECT_EQ(names(), kAlone);
}

TEST_F(FilelockRefusal, DamagedMetadataStopsNothing) {
  const std::vector<std::function<void()>> damages{
      [&] { ASSERT_EQ(::unlink(path(".f.asp-lck").c_str()), 0); },
      [&] { ASSERT_EQ(::truncate(path(".f.asp-lck").c_str(), 20), 0); },
      [&] { write_at(".f.asp-lck", 0, "xxxxxxx"); },
      [&] { ASSERT_EQ(::truncate(path(".f.asp-lck").c_str(), 2 << 20), 0); },
      // Somebody's who could write to SOURCE.
      [&] { ASSERT_EQ(::chown(path(".f.asp-lck").c_str(), 1000, 1000), 0); }};
  for (std::size_t i = 0; i < damages.size(); ++i) {
    for (const char how : {'d', 'v', 't'}) {
      SCOPED_TRACE(fmt::format("damage {}, then {}", i, how));
      EXPECT_DONE(apply("f"));
      write_at("f", 0, "new");
      damages[i]();
      const Status now = status("f");
      EXPECT_EQ(now.condition, Condition::kIncomplete);
      EXPECT_FALSE(now.info);
      EXPECT_FALSE(now.words.empty());
      if (how == 't') {
        EXPECT_DONE(retag("f", info()));
        EXPECT_EQ(status("f").condition, Condition::kLocked) << status("f").words;
      }
      EXPECT_DONE(how == 'd' ? remove("f") : revert("f"));
      EXPECT_EQ(content("f"), how == 'd' ? "new" : "old");
      EXPECT_EQ(names(), kAlone);
      EXPECT_FALSE(mark("f"));
      write_file("f", "old");
    }
  }
}

TEST_F(FilelockRefusal, ADamagedMarkIsALockThatCanOnlyBeRemoved) {
  EXPECT_DONE(apply("f"));
  for (const std::string& text : {std::string{"rubbish"}, std::string(4000, 'x'), std::string{}}) {
    forge("f", text);
    const auto damaged = mark("f");
    ASSERT_TRUE(damaged);
    EXPECT_EQ(damaged->kind, MarkKind::kDamaged);
    EXPECT_EQ(status("f").condition, Condition::kDamagedMark);
    EXPECT_REFUSED(apply("f"), EBUSY);
    EXPECT_REFUSED(retag("f", info()), EBUSY);
    EXPECT_REFUSED(revert("f"), EBUSY);
  }
  EXPECT_DONE(remove("f"));
  EXPECT_EQ(names(), kAlone);
  EXPECT_FALSE(mark("f"));
}

TEST_F(FilelockRefusal, ByAnotherNameOfTheInode) {
  EXPECT_DONE(apply("f"));
  ASSERT_EQ(::link(path("f").c_str(), path("g").c_str()), 0);
  EXPECT_EQ(status("g").condition, Condition::kOtherName);
  EXPECT_REFUSED(apply("g"), EBUSY);
  EXPECT_REFUSED(remove("g"), EBUSY);
  const Failure refusal = revert("g");
  EXPECT_EQ(refusal.code, errno_code(EBUSY));
  EXPECT_NE(refusal.words.find("another name: 'f'"), std::string::npos) << refusal.words;
  // Once the other name is gone it was renamed: its side files are still called as they were.
  ASSERT_EQ(::unlink(path("f").c_str()), 0);
  EXPECT_EQ(status("g").condition, Condition::kLocked) << status("g").words;
  write_at("g", 0, "new");
  EXPECT_DONE(revert("g"));
  EXPECT_EQ(content("g"), "old");
  EXPECT_EQ(names(), std::set<std::string>{"g"});
}

TEST_F(FilelockRefusal, OnlyRegularFilesThatAreNoSideFiles) {
  ASSERT_EQ(::mkdir(path("d").c_str(), 0755), 0);
  ASSERT_EQ(::symlink("f", path("l").c_str()), 0);
  ASSERT_EQ(::mkfifo(path("p").c_str(), 0666), 0);
  for (const char* name : {"d", "l", "p"}) EXPECT_REFUSED(apply(name), EINVAL);
  EXPECT_DONE(apply("f"));
  for (const char* name : {".f.asp-bak", ".f.asp-lck"}) {
    EXPECT_EQ(status(name).condition, Condition::kSideFile);
    EXPECT_REFUSED(apply(name), EINVAL);
    EXPECT_REFUSED(remove(name), EINVAL);
  }
}

TEST_F(FilelockRefusal, ANameThatIsAnothersByNow) {
  write_file("g", "other");
  const UniqueFd file = path_fd("f");
  ASSERT_EQ(::rename(path("g").c_str(), path("f").c_str()), 0);
  const auto session = desk().begin({dir(), "f", file.get()}, in_ms(100));
  EXPECT_EQ(session.error(), errno_code(ESTALE));
  EXPECT_TRUE(journals().empty());
}

TEST_F(FilelockRefusal, MarksAreSeenThroughAnyDescriptorAndByAnyThread) {
  EXPECT_DONE(apply("f"));
  const UniqueFd reading{::open(path("f").c_str(), O_RDONLY | O_CLOEXEC)};
  const auto plain = read_mark(reading.get());
  ASSERT_TRUE(plain && *plain);
  // Also by one that acts for a user.
  std::thread{[&] {
    const Caller user{1000, 1000, 0, 022};
    EXPECT_TRUE(posix::become_caller(user));
    const auto seen = read_mark(reading.get());
    EXPECT_TRUE(seen && *seen);
  }}.join();
  EXPECT_FALSE(*read_mark(dir()));
}

TEST_F(FilelockRefusal, AStateDirectoryOfSomebodyElse) {
  EXPECT_TRUE(Desk::open(state_path()));
  ASSERT_EQ(::chmod(state_path().c_str(), 0770), 0);
  EXPECT_EQ(Desk::open(state_path()).error(), errno_code(EPERM));
  ASSERT_EQ(::chmod(state_path().c_str(), 0700), 0);
  ASSERT_EQ(::chown(state_path().c_str(), 1000, 1000), 0);
  EXPECT_EQ(Desk::open(state_path()).error(), errno_code(EPERM));
  std::filesystem::remove(state_path());
  ASSERT_EQ(::symlink(path("").c_str(), state_path().c_str()), 0);
  EXPECT_FALSE(Desk::open(state_path()));
}

TEST_F(FilelockRefusal, RubbishInTheStateDirectoryIsNoHarm) {
  ASSERT_EQ(::mkdir(state_path().c_str(), 0700), 0);
  struct stat st {};
  ASSERT_EQ(::stat(path("f").c_str(), &st), 0);
  const std::string name = state_path() + "/" + journal_name(posix::file_id(st));
  ASSERT_TRUE(run("echo rubbish >" + name));
  EXPECT_DONE(apply("f"));
  ASSERT_TRUE(run("echo rubbish >" + name + "; echo x >" + state_path() + "/README"));
  (void)desk().recover(dir());
  EXPECT_EQ(journals(), std::set<std::string>{"README"});
  EXPECT_EQ(status("f").condition, Condition::kLocked);
}

TEST_F(FilelockRefusal, TwoAtOnceWaitForEachOther) {
  const UniqueFd file = path_fd("f");
  auto first = desk().begin({dir(), "f", file.get()}, in_ms(100));
  ASSERT_TRUE(first);
  const Desk other = desk();
  const std::int64_t begun = monotonic_ns();
  const auto second = other.begin({dir(), "f", file.get()}, in_ms(100));
  EXPECT_EQ(second.error(), errno_code(EBUSY));
  EXPECT_GE(monotonic_ns() - begun, 100'000'000);
  EXPECT_EQ(other.recover(dir()).held, 1u);
  std::thread late{[&, session = std::move(*first)]() mutable {
    std::this_thread::sleep_for(std::chrono::milliseconds{50});
    const auto applied = session.apply(info(), me());
    EXPECT_TRUE(applied);
    [[maybe_unused]] const Session ends = std::move(session);
  }};
  auto third = other.begin({dir(), "f", file.get()}, in_ms(60'000));
  ASSERT_TRUE(third) << third.failure().words;
  EXPECT_EQ(third->status()->condition, Condition::kLocked);
  late.join();
}

// Daemons that apply, remove and die at random while others recover: the file is always the one or
// the other, and nobody's Session meets another's half-done work.
TEST_F(FilelockRefusal, ManyProcessesContend) {
  constexpr int kProcesses = 4;
  constexpr int kRounds = 40;
  std::vector<pid_t> children;
  for (int child = 0; child < kProcesses; ++child) {
    const pid_t pid = ::fork();
    if (pid == 0) {
      int wrong = 0;
      for (int round = 0; round < kRounds; ++round) {
        const UniqueFd file = path_fd("f");
        const Desk mine = desk();
        if (round % 5 == child % 5) (void)mine.recover(dir());
        auto session = mine.begin({dir(), "f", file.get()}, in_ms(120'000));
        if (!session) ::_exit(100);
        const auto now = session->status();
        if (!now) ::_exit(101);
        if (now->condition == Condition::kLocked) {
          if (!session->remove()) ++wrong;
        } else if (now->condition != Condition::kUnlocked || !session->apply(info(), me())) {
          ++wrong;
        }
      }
      ::_exit(wrong);
    }
    children.push_back(pid);
  }
  for (const pid_t pid : children) {
    int status = 0;
    ::waitpid(pid, &status, 0);
    EXPECT_TRUE(WIFEXITED(status));
    EXPECT_EQ(WEXITSTATUS(status), 0);
  }
  EXPECT_TRUE(journals().empty());
  EXPECT_EQ(names(), kAlone);  // an even number of turns
}

// A disk with 8 MiB.
class FilelockFull : public FilelockTest {
 protected:
  std::string where() const override { return "tmpfs"; }
  std::string size() const override { return "8m"; }
  [[nodiscard]] std::uint64_t free_bytes() const {
    struct statvfs st {};
    EXPECT_EQ(::statvfs(path("").c_str(), &st), 0);
    return st.f_bfree * st.f_bsize;
  }
};

TEST_F(FilelockFull, NoRoomForTheBackupChangesNothing) {
  write_file("f", std::string(5 << 20, 'x'));
  const std::string before = seen("f");
  const std::uint64_t room = free_bytes();
  EXPECT_REFUSED(apply("f"), ENOSPC);
  EXPECT_EQ(seen("f"), before);
  EXPECT_EQ(names(), kAlone);
  EXPECT_FALSE(mark("f"));
  EXPECT_TRUE(journals().empty());
  EXPECT_EQ(free_bytes(), room);
}

TEST_F(FilelockFull, NoRoomForTheMetadataChangesNothing) {
  write_file("f", "x");
  write_file("filler", std::string((8 << 20) - (16 << 10), 'x'));
  const LockInfo much = info("{\"a\":\"" + std::string(100'000, 'x') + "\"}");
  EXPECT_REFUSED(apply("f", much), ENOSPC);
  EXPECT_EQ(names(), (std::set<std::string>{"f", "filler"}));
  EXPECT_FALSE(mark("f"));
  EXPECT_DONE(apply("f"));
  EXPECT_REFUSED(retag("f", much), ENOSPC);
  EXPECT_EQ(status("f").condition, Condition::kLocked);
  EXPECT_EQ(status("f").info->tags, R"({"ticket":"42"})");
}

TEST_F(FilelockFull, NoRoomForTheOldContentChangesNothing) {
  write_file("f", std::string(3 << 20, 'x'));
  const std::string before = seen("f");
  EXPECT_DONE(apply("f"));
  ASSERT_EQ(::truncate(path("f").c_str(), 5), 0);
  write_file("filler", std::string(4 << 20, 'x'));
  const std::string now = seen("f");
  EXPECT_REFUSED(revert("f"), ENOSPC);
  EXPECT_EQ(seen("f"), now);
  EXPECT_EQ(status("f").condition, Condition::kLocked);
  ASSERT_EQ(::unlink(path("filler").c_str()), 0);
  EXPECT_DONE(revert("f"));
  EXPECT_EQ(seen("f"), before);
  EXPECT_EQ(names(), kAlone);
}

class FilelockReserve : public FilelockTest {
 protected:
  std::string where() const override { return "ext4"; }
};

TEST_F(FilelockReserve, RootsReserveIsNotForAnothersBackup) {
  write_file("f", std::string(5 << 20, 'x'));
  ASSERT_EQ(::chown(path("f").c_str(), 1000, 1000), 0);
  const Caller user{1000, 1000, 0, 022};
  EXPECT_REFUSED(apply("f", info(), user), ENOSPC);
  EXPECT_FALSE(mark("f"));
  EXPECT_EQ(names(), (std::set<std::string>{"f", "lost+found"}));
  EXPECT_DONE(apply("f", info(), me()));
}

// A daemon that is not root keeps its marks in user.*, and may not open by handle. Who is root is
// asked once in a process, so the test runs itself again, as a user, in LATCHFS_TEST_DIR.
class FilelockUser : public FilelockTest {
 protected:
  static constexpr const char* kDir = "LATCHFS_TEST_DIR";
  void SetUp() override {
    if (std::getenv(kDir) == nullptr) FilelockTest::SetUp();
  }
  static void as_user(const std::string& at);
};

TEST_F(FilelockUser, AppliesRevertsAndRecovers) {
  if (const char* at = std::getenv(kDir)) return as_user(at);
  ASSERT_TRUE(run("chmod 0755 " + path("..")));
  ASSERT_EQ(::chown(path("").c_str(), 1000, 1000), 0);
  write_file("f", "old", 0640);
  ASSERT_EQ(::chown(path("f").c_str(), 1000, 1000), 0);
  std::filesystem::copy_file("/proc/self/exe", path("../program"));
  ASSERT_TRUE(run("chmod 0755 " + path("../program")));
  const std::string command = fmt::format(
      "setpriv --reuid 1000 --regid 1000 --clear-groups env -u GTEST_OUTPUT {}={} {} "
      "--gtest_filter='FilelockUser.*' >&2",
      kDir, path(""), path("../program"));
  EXPECT_EQ(std::system(command.c_str()), 0);
}

void FilelockUser::as_user(const std::string& at) {
  const auto desk = Desk::open(at + "state");
  ASSERT_TRUE(desk) << desk.failure().words;
  const UniqueFd dir{::open(at.c_str(), O_PATH | O_DIRECTORY)};
  const UniqueFd file{::open((at + "f").c_str(), O_PATH)};
  const Place place{dir.get(), "f", file.get()};
  const Caller self{1000, 1000, ::getpid(), 022};
  const auto begun = [&] { return desk->begin(place, monotonic_ns()); };
  const auto mark = begun()->apply({"u", 1000, "/f", "{}"}, self);
  ASSERT_TRUE(mark) << mark.failure().words;
  EXPECT_GT(::getxattr((at + "f").c_str(), "user.latchfs.filelock", nullptr, 0), 0);
  EXPECT_EQ(begun()->status()->condition, Condition::kLocked);
  ASSERT_EQ(::truncate((at + "f").c_str(), 1), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    arm_faults("filelock.revert.content=kill@1");
    (void)begun()->revert_and_remove(self);
    ::_exit(0);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_TRUE(WIFSIGNALED(status));
  EXPECT_EQ(desk->recover(dir.get()).left, 1u);
  const auto session = begun();
  ASSERT_TRUE(session) << session.failure().words;
  EXPECT_EQ(session->status()->condition, Condition::kUnlocked);
  EXPECT_EQ(std::filesystem::file_size(at + "f"), 3u);
}

}  // namespace
}  // namespace latchfs::filelock
