#include <gtest/gtest.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <string>

#include "posix/caller_status.h"
#include "posix_scratch.h"

namespace latchfs::posix {
namespace {

constexpr const char* kStatus =
    "Name:\tevil\\nUid:\t0\t0\t0\t0\n"
    "Umask:\t0022\n"
    "State:\tR (running)\n"
    "Tgid:\t77\n"
    "Uid:\t1000\t1001\t1002\t1003\n"
    "Gid:\t2000\t2001\t2002\t2003\n"
    "FDSize:\t64\n"
    "Groups:\t4 24 4294967294 \n"
    "CapInh:\t0000000000000000\n"
    "CapEff:\t000001ffffffffff\n";

TEST(CallerStatus, ReadsWhatProcWrites) {
  const auto status = parse_status(kStatus);
  ASSERT_TRUE(status);
  EXPECT_EQ(status->fsuid, 1003u);
  EXPECT_EQ(status->fsgid, 2003u);
  EXPECT_EQ(status->groups, (std::vector<gid_t>{4, 24, 4294967294}));
  EXPECT_EQ(status->effective_caps, 0x1ffffffffffull);
}

TEST(CallerStatus, HasNoGroupsWhereTheLineIsEmpty) {
  const auto status = parse_status("Uid:\t1\t1\t1\t1\nGid:\t1\t1\t1\t1\nGroups:\t \nCapEff:\t0\n");
  ASSERT_TRUE(status);
  EXPECT_TRUE(status->groups.empty());
}

TEST(CallerStatus, RefusesWhatIsNotAllThere) {
  const std::string whole{kStatus};
  for (const char* line : {"Uid:\t1000", "Gid:\t2000", "Groups:", "CapEff:"}) {
    std::string text = whole;
    text.replace(text.rfind(line), 3, "Xxx");
    EXPECT_FALSE(parse_status(text)) << line;
  }
  EXPECT_FALSE(parse_status(""));
  EXPECT_FALSE(parse_status("Uid:\t1\t1\t1\nGid:\t1\t1\t1\t1\nGroups:\t\nCapEff:\t0\n"));
  EXPECT_FALSE(parse_status("Uid:\t1\t1\t1\t1\nGid:\t1\t1\t1\t1\nGroups:\t4 x\nCapEff:\t0\n"));
  // As truncated anywhere: refused or, behind the last line needed, the same. No crash.
  for (std::size_t size = 0; size < whole.size(); ++size) {
    static_cast<void>(parse_status({whole.data(), size}));
  }
}

TEST(CallerStatus, IsOfALiveThreadOfThoseIds) {
  Caller self{::geteuid(), ::getegid(), static_cast<pid_t>(::syscall(SYS_gettid)), 0};
  const auto status = status_of(self);
  ASSERT_TRUE(status);
  EXPECT_EQ(status->fsuid, self.uid);
  self.uid += 1;  // the thread's number has gone to somebody else
  EXPECT_EQ(status_of(self).error(), errno_code(ESRCH));
  EXPECT_EQ(status_of(Caller{0, 0, 0, 0}).error(), errno_code(ESRCH));

  const pid_t child = ::fork();
  if (child == 0) ::_exit(0);
  ::waitpid(child, nullptr, 0);
  EXPECT_EQ(status_of(Caller{::geteuid(), ::getegid(), child, 0}).error(), errno_code(ESRCH));
}

class ProgramOf : public Scratch {};

TEST_F(ProgramOf, NamesTheFileThatRuns) {
  EXPECT_EQ(program_of(::getpid()), "unit-posix");
  EXPECT_EQ(program_of(static_cast<pid_t>(::syscall(SYS_gettid))), "unit-posix");
  EXPECT_EQ(program_of(0), "");
  // Also when an upgrade has replaced it meanwhile.
  const std::string program = at("a server");
  std::filesystem::copy_file("/bin/sleep", program);
  const pid_t child = ::fork();
  if (child == 0) {
    ::execl(program.c_str(), "other", "60", nullptr);
    ::_exit(1);
  }
  while (program_of(child) == "unit-posix") ::usleep(1000);
  EXPECT_EQ(program_of(child), "a server");
  std::filesystem::remove(program);
  EXPECT_EQ(program_of(child), "a server");
  EXPECT_EQ(real_uid_of(child), ::getuid());
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  EXPECT_EQ(program_of(child), "");
  EXPECT_EQ(real_uid_of(child), std::nullopt);
}

}  // namespace
}  // namespace latchfs::posix
