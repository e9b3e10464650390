#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/xattr.h>

#include <thread>

#include "posix/acl_groups.h"
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

// The kernel vouches for the users of its own NFS server, of nobody who is called so.
TEST_F(ActingAsCaller, IsInNoGroupForHisName) {
  make_dir("d", 0770);
  chown_to("d", 0, kExtra);
  const UniqueFd d = path_fd("d");
  ASSERT_EQ(::prctl(PR_SET_NAME, "nfsd"), 0);
  Caller caller = plain();
  caller.pid = static_cast<pid_t>(::syscall(SYS_gettid));
  EXPECT_EQ(make_directory(d.get(), "a", 0777, caller).error(), errno_code(EACCES));
  EXPECT_EQ(make_directory(d.get(), "a", 02777, caller).error(), errno_code(EACCES));
}

// "version 2", then tag, permissions, id: little-endian.
std::string acl_value(const std::vector<std::pair<char, gid_t>>& entries) {
  std::string value{"\2\0\0\0", 4};
  for (const auto& [tag, id] : entries) {
    value += {tag, 0, 7, 0};
    for (unsigned shift = 0; shift < 32; shift += 8) value += static_cast<char>(id >> shift);
  }
  return value;
}

TEST(AclGroups, AreThoseTheAclNames) {
  constexpr char kUserObj = 1, kOneUser = 2, kGroupObj = 4, kOneGroup = 8, kMask = 16, kOther = 32;
  constexpr gid_t kNone = static_cast<gid_t>(-1);
  const std::string value = acl_value({{kUserObj, kNone},
                                       {kOneUser, 7},
                                       {kGroupObj, kNone},
                                       {kOneGroup, 3001},
                                       {kOneGroup, 0xfedcba98},
                                       {kMask, kNone},
                                       {kOther, kNone}});
  EXPECT_EQ(acl_groups_in(value), (std::vector<gid_t>{3001, 0xfedcba98}));
  for (std::size_t size = 0; size < value.size(); ++size) {
    const auto some = acl_groups_in(value.substr(0, size));
    EXPECT_TRUE(some.empty() || (size - 4) % 8 == 0) << size;
  }
  EXPECT_TRUE(acl_groups_in("\1" + value.substr(1)).empty()) << "another version";

  char path[] = "/tmp/latchfs-acl-XXXXXX";
  const UniqueFd file{::mkstemp(path)};
  ASSERT_TRUE(file);
  EXPECT_TRUE(acl_groups(file.get()).empty());
  const bool has = ::setxattr(path, "system.posix_acl_access", value.data(), value.size(), 0) == 0;
  const UniqueFd found{::open(path, O_PATH | O_CLOEXEC)};
  ::unlink(path);
  if (!has) GTEST_SKIP() << "no ACLs here";
  EXPECT_EQ(acl_groups(found.get()).size(), 2U);
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

// What nfsd asks for when a user cuts a file that others own.
TEST_F(ActingAsCaller, SaysNowOfWhatHeMayWrite) {
  make_file("open", "text", 0666);
  make_file("closed", "text", 0644);
  const UniqueFd open = path_fd("open");
  const UniqueFd closed = path_fd("closed");
  const struct timespec old[2] = {{1, 0}, {1, 0}};
  for (const char* name : {"open", "closed"}) {
    ASSERT_EQ(::utimensat(AT_FDCWD, at(name).c_str(), old, 0), 0);
  }
  AttrChange now;
  now.times = true;
  now.atime.tv_nsec = UTIME_OMIT;
  now.mtime.tv_nsec = UTIME_NOW;
  FileRef file;
  file.path_fd = closed.get();
  EXPECT_EQ(change_attributes(file, now, plain()).error(), errno_code(EPERM));
  EXPECT_EQ(stat_at("closed").st_mtim.tv_sec, 1);
  file.path_fd = open.get();
  AttrChange then = now;
  then.mtime = {5, 0};
  EXPECT_EQ(change_attributes(file, then, plain()).error(), errno_code(EPERM)) << "the owner's";
  EXPECT_TRUE(change_attributes(file, now, plain()));
  EXPECT_GT(stat_at("open").st_mtim.tv_sec, 5);
  EXPECT_EQ(stat_at("open").st_atim.tv_sec, 1);
  now.size = 2;
  EXPECT_TRUE(change_attributes(file, now, plain()));
  EXPECT_EQ(stat_at("open").st_size, 2);
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
