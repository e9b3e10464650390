#include <sys/syscall.h>

#include <thread>

#include "posix/attributes.h"
#include "posix/credentials.h"
#include "posix/file_io.h"
#include "posix/names.h"
#include "posix/sys.h"
#include "posix_caller_child.h"
#include "posix_scratch.h"

namespace latchfs::posix {
namespace {

constexpr uid_t kUser = 61001;
constexpr gid_t kGroup = 61002;
constexpr gid_t kExtra = 61003;

class ActingAsCaller : public Scratch {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root";
    Scratch::SetUp();
  }
  void TearDown() override {
    become_daemon();
    ::syscall(SYS_setfsgid, 0);
    Scratch::TearDown();
  }
  static uid_t fsuid() { return static_cast<uid_t>(::syscall(SYS_setfsuid, -1)); }
  static Caller plain(mode_t umask = 022) { return {kUser, kGroup, 0, umask}; }
  void chown_to(const std::string& name, uid_t uid, gid_t gid) {
    ASSERT_EQ(::lchown(at(name).c_str(), uid, gid), 0);
  }
};

TEST_F(ActingAsCaller, OwnsWhatHeMakes) {
  make_dir("d", 0777);
  const UniqueFd d = path_fd("d");
  ASSERT_TRUE(make_directory(d.get(), "sub", 0777, plain(027)));
  ASSERT_TRUE(make_symlink(d.get(), "link", "target", plain()));
  ASSERT_TRUE(make_node(d.get(), "fifo", S_IFIFO | 0666, 0, plain(022)));
  auto made = create_file(d.get(), "file", O_RDWR | O_CREAT, 0666, plain(077));
  ASSERT_TRUE(made && made->fresh);
  for (const char* name : {"d/sub", "d/link", "d/fifo", "d/file"}) {
    EXPECT_EQ(stat_at(name).st_uid, kUser) << name;
    EXPECT_EQ(stat_at(name).st_gid, kGroup) << name;
  }
  EXPECT_EQ(stat_at("d/sub").st_mode & 07777, 0750u);
  EXPECT_EQ(stat_at("d/fifo").st_mode & 07777, 0644u);
  EXPECT_EQ(stat_at("d/file").st_mode & 07777, 0600u);
}

TEST_F(ActingAsCaller, IsRefusedWhatHeMayNot) {
  make_dir("d", 0755);
  make_file("d/f", "x", 0600);
  const UniqueFd d = path_fd("d");
  EXPECT_EQ(make_directory(d.get(), "sub", 0777, plain()).error(), errno_code(EACCES));
  EXPECT_EQ(remove_file(d.get(), "f", plain()).error(), errno_code(EACCES));
  EXPECT_EQ(create_file(d.get(), "f", O_RDWR, 0644, plain()).error(), errno_code(EACCES));
  const UniqueFd f = path_fd("d/f");
  EXPECT_EQ(open_file(f.get(), O_RDONLY, plain()).error(), errno_code(EACCES));
  AttrChange change;
  change.mode = 0777;
  FileRef file;
  file.path_fd = f.get();
  EXPECT_EQ(change_attributes(file, change, plain()).error(), errno_code(EPERM));
  EXPECT_EQ(stat_at("d/f").st_mode & 07777, 0600u);
}

TEST_F(ActingAsCaller, HasHisSupplementaryGroups) {
  make_dir("d", 0770);
  chown_to("d", 0, kExtra);
  const UniqueFd d = path_fd("d");
  const CallerChild with{kUser, kGroup, {kExtra}};
  const CallerChild without{kUser, kGroup, {}};
  ASSERT_TRUE(with.alive() && without.alive());
  EXPECT_EQ(make_directory(d.get(), "a", 0777, without.as_caller()).error(), errno_code(EACCES));
  EXPECT_TRUE(make_directory(d.get(), "a", 0777, with.as_caller()));
  // They do not stay for the next.
  EXPECT_EQ(make_directory(d.get(), "b", 0777, without.as_caller()).error(), errno_code(EACCES));
  EXPECT_EQ(::syscall(SYS_getgroups, 0, nullptr), 0);
}

TEST_F(ActingAsCaller, KeepsSetGroupIdOnlyInHisGroups) {
  make_file("f", "x", 0644);
  chown_to("f", kUser, kExtra);
  const CallerChild with{kUser, kGroup, {kExtra}};
  const CallerChild without{kUser, kGroup, {}};
  AttrChange change;
  change.mode = 02755;
  const UniqueFd f = path_fd("f");
  FileRef file;
  file.path_fd = f.get();
  ASSERT_TRUE(change_attributes(file, change, without.as_caller()));
  EXPECT_EQ(stat_at("f").st_mode & 07777, 0755u);
  ASSERT_TRUE(change_attributes(file, change, with.as_caller()));
  EXPECT_EQ(stat_at("f").st_mode & 07777, 02755u);
}

TEST_F(ActingAsCaller, HasHisCapabilitiesAndNoMore) {
  make_dir("d", 0700);
  const UniqueFd d = path_fd("d");
  const CallerChild able{kUser, kGroup, {}, 1U << CAP_DAC_OVERRIDE};
  const CallerChild plain_user{kUser, kGroup, {}};
  ASSERT_TRUE(able.alive() && plain_user.alive());
  EXPECT_TRUE(make_directory(d.get(), "a", 0777, able.as_caller()));
  EXPECT_EQ(make_directory(d.get(), "b", 0777, plain_user.as_caller()).error(), errno_code(EACCES));
}

std::uint64_t effective_caps() {
  __user_cap_header_struct head{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct data[2]{};
  if (::syscall(SYS_capget, &head, data) != 0) return 0;
  return data[0].effective | (static_cast<std::uint64_t>(data[1].effective) << 32);
}

TEST_F(ActingAsCaller, LeavesTheDaemonsOtherCapabilitiesBehind) {
  const auto in_force_for = [](const Caller& caller, Groups groups) {
    std::uint64_t caps = 0;
    EXPECT_TRUE(as_caller(caller, groups, [&]() -> long {
      caps = effective_caps();
      return 0;
    }));
    return caps;
  };
  become_daemon();
  const std::uint64_t all = effective_caps();
  ASSERT_NE(all & (1ULL << CAP_SYS_ADMIN), 0u);
  constexpr std::uint64_t kChange = (1ULL << CAP_SETUID) | (1ULL << CAP_SETGID);
  const CallerChild able{kUser, kGroup, {}, (1U << CAP_FOWNER) | (1U << CAP_SYS_PTRACE)};
  const CallerChild weak_root{0, 0, {kExtra}, 1U << CAP_CHOWN};
  ASSERT_TRUE(able.alive() && weak_root.alive());

  EXPECT_EQ(in_force_for(plain(), Groups::kOnDemand), kChange);
  EXPECT_EQ(effective_caps(), kChange);  // as what it stays until it is told otherwise
  EXPECT_EQ(in_force_for(plain(), Groups::kNow), kChange);
  EXPECT_EQ(in_force_for(able.as_caller(), Groups::kOnDemand), kChange);
  EXPECT_EQ(in_force_for(able.as_caller(), Groups::kNow),
            kChange | (1ULL << CAP_FOWNER) | (1ULL << CAP_SYS_PTRACE));
  EXPECT_EQ(effective_caps(), kChange);
  EXPECT_EQ(in_force_for({0, 0, ::getpid(), 0}, Groups::kOnDemand), all);
  EXPECT_EQ(in_force_for(weak_root.as_caller(), Groups::kNow), kChange | (1ULL << CAP_CHOWN));
  EXPECT_EQ(effective_caps(), all);

  // Threads made by one that acts for somebody start with as little, and find back.
  ASSERT_TRUE(become_caller(plain()));
  std::uint64_t before = 0;
  std::uint64_t after = 0;
  std::thread{[&] {
    before = effective_caps();
    become_daemon();
    after = effective_caps();
  }}.join();
  EXPECT_EQ(before, kChange);
  EXPECT_EQ(after, all);
  become_daemon();
  EXPECT_EQ(effective_caps(), all);
}

TEST_F(ActingAsCaller, AWriteClearsSetIdBitsUnlessHeMayKeepThem) {
  const CallerChild user{kUser, kGroup, {}};
  const CallerChild able{kUser, kGroup, {}, 1U << CAP_FSETID};
  const CallerChild weak_root{0, 0, {}};
  const Caller root{0, 0, ::getpid(), 022};
  const auto mode_after_write = [&](const Caller& caller) {
    make_file("f", "x", 06777);
    const UniqueFd fd{::open(at("f").c_str(), O_RDWR | O_CLOEXEC)};
    EXPECT_TRUE(write_at(fd.get(), "y", 1, 0, 0, caller));
    become_daemon();
    return stat_at("f").st_mode & 07777;
  };
  EXPECT_EQ(mode_after_write(user.as_caller()), 0777u);
  EXPECT_EQ(mode_after_write(able.as_caller()), 06777u);
  EXPECT_EQ(mode_after_write(weak_root.as_caller()), 0777u);
  EXPECT_EQ(mode_after_write(root), 06777u);
}

TEST_F(ActingAsCaller, RunsWhatHeMayNotRead) {
  make_file("prog", "x", 0711);
  make_file("secret", "x", 0700);
  const UniqueFd prog = path_fd("prog");
  const UniqueFd secret = path_fd("secret");
  EXPECT_TRUE(open_file(prog.get(), O_RDONLY, plain()));
  EXPECT_EQ(open_file(prog.get(), O_RDWR, plain()).error(), errno_code(EACCES));
  EXPECT_EQ(open_file(secret.get(), O_RDONLY, plain()).error(), errno_code(EACCES));
}

TEST_F(ActingAsCaller, RefusesIdsWithoutAName) {
  const UniqueFd d = dir();
  const Caller nobody{static_cast<uid_t>(-1), 0, 0, 0};
  EXPECT_EQ(make_directory(d.get(), "x", 0777, nobody).error(), errno_code(EOVERFLOW));
}

TEST_F(ActingAsCaller, AThreadMadeMeanwhileFindsBackToTheDaemon) {
  make_dir("d", 0777);
  const UniqueFd d = path_fd("d");
  ASSERT_TRUE(make_directory(d.get(), "a", 0777, plain()));
  ASSERT_EQ(fsuid(), kUser);
  uid_t before = 0;
  uid_t after = 1;
  std::thread{[&] {
    before = fsuid();
    become_daemon();
    after = fsuid();
  }}.join();
  EXPECT_EQ(before, kUser);  // threads start as their maker
  EXPECT_EQ(after, 0u);
}

TEST_F(ActingAsCaller, UmasksOfThreadsAreTheirOwn) {
  make_dir("d", 0777);
  const UniqueFd d = path_fd("d");
  ASSERT_TRUE(set_umask(0));
  std::thread{[&] { EXPECT_TRUE(make_directory(d.get(), "a", 0777, plain(077))); }}.join();
  ASSERT_TRUE(make_directory(d.get(), "b", 0777, plain(0)));
  EXPECT_EQ(stat_at("d/a").st_mode & 07777, 0700u);
  EXPECT_EQ(stat_at("d/b").st_mode & 07777, 0777u);
}

}  // namespace
}  // namespace latchfs::posix
