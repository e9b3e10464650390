// What an ordinary user may through a mount, and what he may not: as natively, whatever the backing
// file system is and whoever the daemon is.
#include <dirent.h>
#include <fcntl.h>
#include <grp.h>
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/unique_fd.h"
#include "support/fs_image.h"
#include "support/fs_mount.h"
#include "support/fs_stage.h"
#include "support/fs_world.h"
#include "support/mount_fixture.h"

namespace latchfs::fsdiff {
namespace {

using test::MountFixture;
using test::TempDir;

constexpr uid_t kUser = 61001;
constexpr gid_t kGroup = 61001;
constexpr gid_t kExtra = 61003;
constexpr uid_t kStranger = 61050;

class FsRights : public testing::Test {
 protected:
  void SetUp() override {
    if (geteuid() != 0) FAIL() << "fs_rights needs root: it acts as others";
    if (access("/dev/fuse", R_OK | W_OK) != 0) FAIL() << "fs_rights needs /dev/fuse";
    use_private_mounts();
  }
};

// What fn says in a child that is this user.
std::string told_by(uid_t uid, gid_t gid, const std::vector<gid_t>& groups,
                    const std::function<std::string()>& fn) {
  int ends[2];
  if (pipe(ends) != 0) return "no pipe";
  const pid_t child = fork();
  if (child == 0) {
    close(ends[0]);
    if (setgroups(groups.size(), groups.data()) != 0 || setresgid(gid, gid, gid) != 0 ||
        setresuid(uid, uid, uid) != 0) {
      _exit(1);
    }
    const std::string text = fn();
    _exit(write(ends[1], text.data(), text.size()) == static_cast<ssize_t>(text.size()) ? 0 : 1);
  }
  close(ends[1]);
  std::string text;
  char buffer[4096];
  for (ssize_t got; (got = read(ends[0], buffer, sizeof buffer)) > 0;) {
    text.append(buffer, static_cast<std::size_t>(got));
  }
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? text : "the child failed";
}

// The content of a file, or why not.
std::string content(const std::string& path) {
  const UniqueFd fd{open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  if (!fd) return std::strerror(errno);
  std::string out;
  char buffer[65536];
  ssize_t got = 0;
  while ((got = read(fd.get(), buffer, sizeof buffer)) > 0) {
    out.append(buffer, static_cast<std::size_t>(got));
  }
  return got < 0 ? std::strerror(errno) : out;
}

std::string link_text(const std::string& path) {
  char text[4096];
  const ssize_t got = readlink(path.c_str(), text, sizeof text);
  return got < 0 ? std::strerror(errno) : std::string{text, static_cast<std::size_t>(got)};
}

// The names in a directory but for "." and "..", or why not.
std::string names_in(const std::string& path) {
  const std::unique_ptr<DIR, int (*)(DIR*)> dir{opendir(path.c_str()), closedir};
  if (!dir) return std::strerror(errno);
  std::vector<std::string> names;
  while (const dirent* d = readdir(dir.get())) names.emplace_back(d->d_name);
  std::sort(names.begin(), names.end());
  std::string all;
  for (const std::string& name : names) {
    if (name != "." && name != "..") all += name + "\n";
  }
  return all;
}

void make(const std::string& path, const std::string& text, mode_t mode, gid_t gid = 0) {
  const UniqueFd fd{open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600)};
  ASSERT_TRUE(fd);
  ASSERT_EQ(write(fd.get(), text.data(), text.size()), static_cast<ssize_t>(text.size()));
  ASSERT_EQ(fchown(fd.get(), 0, gid), 0);
  ASSERT_EQ(fchmod(fd.get(), mode), 0);
}

// A file system of the machine at a directory, while the object lives.
class Mounted {
 public:
  Mounted(const char* type, const char* source, std::string at, unsigned long flags = 0)
      : at_{std::move(at)} {
    if (mount(source, at_.c_str(), type, flags, nullptr) != 0) at_.clear();
  }
  ~Mounted() {
    if (!at_.empty()) umount2(at_.c_str(), MNT_DETACH);
  }
  Mounted(const Mounted&) = delete;
  Mounted& operator=(const Mounted&) = delete;
  explicit operator bool() const { return !at_.empty(); }

 private:
  std::string at_;
};

TEST_F(FsRights, OrdinaryUsersOnAFileSystemWithoutAcls) {
  const TempDir place;
  const Mounted ramfs{"ramfs", "none", place.path()};
  ASSERT_TRUE(ramfs);
  ASSERT_EQ(chmod(place.path().c_str(), 0755), 0);
  ASSERT_EQ(mkdir((place.path() + "/d").c_str(), 0755), 0);
  make(place.path() + "/d/f", "content", 0644);
  make(place.path() + "/d/secret", "content", 0600);

  MountFixture::Options options;
  options.source = place.path();
  const MountFixture fixture{options};
  const std::string file = fixture.mount() + "/d/f";
  const auto as_user = [](const std::function<std::string()>& fn) {
    return told_by(kUser, kGroup, {}, fn);
  };
  EXPECT_EQ(as_user([&] { return content(file); }), "content");
  EXPECT_EQ(as_user([&] { return names_in(fixture.mount()); }), "d\n");
  EXPECT_EQ(as_user([&] { return names_in(fixture.mount() + "/d"); }), "f\nsecret\n");
  EXPECT_EQ(as_user([&] { return content(fixture.mount() + "/d/secret"); }), std::strerror(EACCES));

  for (const char* name : {"system.posix_acl_access", "system.posix_acl_default"}) {
    EXPECT_EQ(errno_of(getxattr(file.c_str(), name, nullptr, 0)), ENODATA) << name;
  }
  EXPECT_EQ(errno_of(getxattr(file.c_str(), "user.x", nullptr, 0)), EOPNOTSUPP);
  // user::rw- group::r-- other::r--: what can be set is not kept back from who sets it.
  const unsigned char acl[] = {2,    0,    0,    0,    1,    0,    6,  0,    0xff, 0xff, 0xff,
                               0xff, 2,    0,    7,    0,    1,    0,  0,    0,    4,    0,
                               4,    0,    0xff, 0xff, 0xff, 0xff, 16, 0,    7,    0,    0xff,
                               0xff, 0xff, 0xff, 32,   0,    4,    0,  0xff, 0xff, 0xff, 0xff};
  EXPECT_EQ(errno_of(setxattr(file.c_str(), "system.posix_acl_access", acl, sizeof acl, 0)),
            EOPNOTSUPP);
}

// Who may write to a file takes its capabilities and set-ID bits away by that, though he may do
// neither by name.
TEST_F(FsRights, WhoWritesOrCutsTakesPrivilegesAway) {
  // VFS_CAP_REVISION_2, effective, CAP_NET_RAW.
  const unsigned char caps[20] = {1, 0, 0, 2, 0, 0x20};
  for (const char* way : {"io=auto", "io=direct", "io=cached"}) {
    MountFixture::Options options;
    options.options = {way};
    const MountFixture mount{options};
    const std::string path = mount.mount() + "/f";
    const std::string below = mount.source() + "/f";
    const auto privileged = [&] {
      make(below, "content", 06777);
      ASSERT_EQ(setxattr(below.c_str(), "security.capability", caps, sizeof caps, 0), 0);
    };
    const auto what_is_left = [&] {
      struct stat st {};
      return (stat(below.c_str(), &st) == 0 && (st.st_mode & (S_ISUID | S_ISGID)) != 0
                  ? std::string{"set-ID "}
                  : std::string{}) +
             (getxattr(below.c_str(), "security.capability", nullptr, 0) >= 0 ? "caps" : "");
    };
    const auto as_user = [](const std::function<int()>& fn) {
      return told_by(kUser, kGroup, {}, [&] { return std::string{std::strerror(errno_of(fn()))}; });
    };
    privileged();
    EXPECT_EQ(what_is_left(), "set-ID caps") << way;
    EXPECT_EQ(as_user([&] { return removexattr(path.c_str(), "security.capability"); }),
              std::strerror(EPERM));
    EXPECT_EQ(as_user([&] { return chmod(path.c_str(), 0777); }), std::strerror(EPERM));
    EXPECT_EQ(what_is_left(), "set-ID caps") << way;
    EXPECT_EQ(as_user([&] { return truncate(path.c_str(), 3); }), std::strerror(0)) << way;
    EXPECT_EQ(what_is_left(), "") << way << ", cut";
    privileged();
    EXPECT_EQ(as_user([&] {
                const UniqueFd fd{open(path.c_str(), O_WRONLY | O_CLOEXEC)};
                return write(fd.get(), "x", 1) == 1 ? 0 : -1;
              }),
              std::strerror(0))
        << way;
    EXPECT_EQ(what_is_left(), "") << way << ", written";
    privileged();
    EXPECT_EQ(as_user([&] {
                const UniqueFd fd{open(path.c_str(), O_WRONLY | O_CLOEXEC)};
                return fallocate(fd.get(), 0, 0, 100);
              }),
              std::strerror(0))
        << way;
    EXPECT_EQ(what_is_left(), "") << way << ", allocated";
    // Who may not write may not do it by this either.
    privileged();
    ASSERT_EQ(chmod(path.c_str(), 06755), 0);
    EXPECT_EQ(as_user([&] { return chown(path.c_str(), uid_t(-1), gid_t(-1)); }),
              std::strerror(EPERM))
        << way;
    EXPECT_EQ(what_is_left(), "set-ID caps") << way;
  }
}

TEST_F(FsRights, ProcBelowSourceTellsNobodyMoreThanProcDoes) {
  MountFixture::Options options;
  options.options = {"enforce=mandatory"};  // files of size 0 are read to their end
  const MountFixture fixture{options};
  ASSERT_EQ(mkdir((fixture.source() + "/proc").c_str(), 0755), 0);
  const Mounted proc{nullptr, "/proc", fixture.source() + "/proc", MS_BIND};
  ASSERT_TRUE(proc);
  // This very process, which is root's.
  const std::string self = "/proc/" + std::to_string(getpid());
  const auto look = [&](const std::string& top) {
    std::string all;
    for (const char* name : {"/maps", "/environ", "/auxv", "/wchan"}) {
      all += name + (": " + content(top + self + name)) + "\n";
    }
    for (const char* name : {"/exe", "/cwd", "/root", "/ns/user"}) {
      all += name + (": " + link_text(top + self + name)) + "\n";
    }
    // Where its stack and its code are, is only for some, and decided when it is read.
    const std::string stat = content(top + self + "/stat");
    std::size_t at = stat.rfind(')');
    for (int field = 2; field < 26 && at != std::string::npos; ++field) at = stat.find(' ', at + 1);
    if (at != std::string::npos)
      all += "startcode: " + stat.substr(at, stat.find(' ', at + 1) - at);
    return all;
  };
  // A worker that has acted for root must not be root for the next.
  EXPECT_NE(content(fixture.mount() + self + "/maps").find("fs_rights"), std::string::npos);
  const std::string native = told_by(kUser, kGroup, {}, [&] { return look(""); });
  EXPECT_NE(native.find(std::strerror(EACCES)), std::string::npos);
  for (int i = 0; i < 20; ++i) {
    ASSERT_EQ(told_by(kUser, kGroup, {}, [&] { return look(fixture.mount()); }), native);
    EXPECT_NE(link_text(fixture.mount() + self + "/exe").find("fs_rights"), std::string::npos);
  }
}

// An exclusive lock on all of a file, by this process.
UniqueFd locked(const std::string& path) {
  UniqueFd fd{open(path.c_str(), O_RDWR | O_CLOEXEC)};
  struct flock all {};
  all.l_type = F_WRLCK;
  if (!fd || fcntl(fd.get(), F_SETLK, &all) != 0) return UniqueFd{};
  return fd;
}

TEST_F(FsRights, WhatAGroupIsDeniedIsNotListedForIt) {
  const MountFixture fixture;
  const std::string& top = fixture.mount();
  make(top + "/file", "x", 0604, kExtra);
  ASSERT_EQ(mkdir((top + "/dir").c_str(), 0700), 0);
  make(top + "/dir/below", "x", 0644);
  ASSERT_EQ(chown((top + "/dir").c_str(), 0, kExtra), 0);
  ASSERT_EQ(chmod((top + "/dir").c_str(), 0705), 0);
  const UniqueFd file = locked(top + "/file");
  const UniqueFd below = locked(top + "/dir/below");
  ASSERT_TRUE(file && below);

  const auto shown_to = [&](const std::vector<gid_t>& groups) {
    return told_by(kUser, kGroup, groups, [&] {
      std::string seen;
      const std::string list = content(top + "/.locks/list");
      for (const char* path : {"/file", "/dir/below"}) {
        if (list.find('"' + std::string{path} + '"') != std::string::npos) seen += path;
      }
      return seen + " " + names_in(top + "/.locks/files/dir") +
             content(top + "/.locks/list?ref=%2Fdir%2Fnone");
    });
  };
  EXPECT_EQ(shown_to({}), "/file/dir/below below\n" + std::string{std::strerror(ENOENT)});
  EXPECT_EQ(shown_to({kExtra}),
            " " + std::string{std::strerror(EACCES)} + std::string{std::strerror(EACCES)});
}

TEST_F(FsRights, AnOrdinaryUsersMountShowsOthersOnlyTheirOwn) {
  const TempDir place;
  const std::string source = place.path() + "/src";
  const std::string top = place.path() + "/mnt";
  const Identity& owner = identity(1);
  for (const std::string& dir : {source, top, source + "/priv"}) {
    ASSERT_EQ(mkdir(dir.c_str(), 0755), 0);
    ASSERT_EQ(chown(dir.c_str(), owner.uid, owner.gid), 0);
  }
  make(source + "/priv/secret", "x", 0600);
  make(source + "/shared", "x", 0666);
  ASSERT_EQ(chmod((source + "/priv").c_str(), 0700), 0);
  ASSERT_EQ(chown((source + "/priv/secret").c_str(), owner.uid, owner.gid), 0);
  const auto end = users_mounter(1)(source, top);

  const std::string secret = told_by(owner.uid, owner.gid, {}, [&] {
    const UniqueFd his = locked(top + "/priv/secret");
    // A reader in between: his own user, and somebody else.
    const auto list = [&] { return content(top + "/.locks/list"); };
    const std::string seen = list();
    return std::string{his ? "locked " : "not locked "} +
           (seen.find("/priv/secret") != std::string::npos ? "seen" : seen);
  });
  EXPECT_EQ(secret, "locked seen");

  std::string others;
  {
    const UniqueFd held = [&] {
      const ActingAs him{owner};
      return locked(top + "/priv/secret");
    }();
    ASSERT_TRUE(held);
    others = told_by(kStranger, kStranger, {}, [&] {
      const UniqueFd mine = locked(top + "/shared");
      const std::string list = content(top + "/.locks/list");
      std::string said = mine && list.find("\"uid\": 61050") != std::string::npos ? "mine " : list;
      if (list.find("secret") != std::string::npos || list.find("61001") != std::string::npos) {
        said += list;
      }
      for (const char* path : {"priv%2Fsecret", "priv%2Fnone", "none", "shared"}) {
        said += content(top + "/.locks/list?ref=%2F" + path) + ".";
      }
      return said;
    });
  }
  end();
  const std::string refused = std::string{std::strerror(EACCES)} + ".";
  EXPECT_EQ(others, "mine " + refused + refused + refused + refused);
}

// user::rwx, one more user with rights of his own, group::---, mask::rwx, other::---.
std::string acl_for(uid_t uid, unsigned char rights) {
  std::string acl{"\2\0\0\0", 4};
  const auto entry = [&acl](unsigned char tag, unsigned char perm, std::uint32_t id) {
    for (const unsigned byte : {unsigned{tag}, 0U, unsigned{perm}, 0U})
      acl += static_cast<char>(byte);
    for (int shift = 0; shift < 32; shift += 8) acl += static_cast<char>(id >> shift & 0xff);
  };
  constexpr std::uint32_t kNone = 0xffffffff;
  entry(1, 7, kNone);
  entry(2, rights, uid);
  entry(4, 0, kNone);
  entry(16, 7, kNone);
  entry(32, 0, kNone);
  return acl;
}

TEST_F(FsRights, WhomAnAclLetsInFindsTheLocksOfTheDirectoryToo) {
  const LoopImage image{8, ""};
  MountFixture::Options options;
  options.source = image.path();
  const MountFixture fixture{options};
  const std::string& top = fixture.mount();
  ASSERT_EQ(mkdir((top + "/dir").c_str(), 0700), 0);
  make(top + "/dir/file", "x", 0644);
  const std::string acl = acl_for(kUser, 5);
  ASSERT_EQ(setxattr((top + "/dir").c_str(), "system.posix_acl_access", acl.data(), acl.size(), 0),
            0);
  const UniqueFd held = locked(top + "/dir/file");
  ASSERT_TRUE(held);

  const auto look = [&] {
    const std::string grants = content(top + "/.locks/files/dir/file");
    return content(top + "/dir/file") + " " + names_in(top + "/.locks/files/dir") +
           (grants.find("\"/dir/file\"") != std::string::npos ? "grant" : grants);
  };
  const std::string refused = std::strerror(EACCES);
  EXPECT_EQ(told_by(kUser, kGroup, {}, look), "x file\ngrant");
  EXPECT_EQ(told_by(kStranger, kStranger, {}, look), refused + " " + refused + refused);
  // The tree's own nodes have none.
  EXPECT_EQ(errno_of(getxattr((top + "/.locks").c_str(), "system.posix_acl_access", nullptr, 0)),
            ENODATA);
}

// Pages of the mount are everybody's; what is in the tree is made for who reads it.
TEST_F(FsRights, NothingOfTheControlTreeIsInThePageCache) {
  struct utsname kernel {};
  int major = 0, minor = 0;
  ASSERT_EQ(uname(&kernel), 0);
  ASSERT_EQ(std::sscanf(kernel.release, "%d.%d", &major, &minor), 2);
  if (std::pair{major, minor} < std::pair{6, 5}) GTEST_SKIP() << "who splices reads, here";
  const MountFixture fixture;
  const std::string control = fixture.mount() + "/.locks/";
  const UniqueFd out{open((fixture.source() + "/out").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600)};
  ASSERT_TRUE(out);
  int ends[2]{};
  ASSERT_EQ(pipe2(ends, O_CLOEXEC), 0);
  const UniqueFd from_pipe{ends[0]}, to_pipe{ends[1]};
  for (const char* name : {"list", "reply", "README", "status", "filelock", "list?uid=0"}) {
    const UniqueFd in{open((control + name).c_str(), O_RDONLY | O_CLOEXEC)};
    ASSERT_TRUE(in) << name;
    off_t at = 0;
    EXPECT_EQ(errno_of(sendfile(out.get(), in.get(), &at, 4096)), EINVAL) << name;
    EXPECT_EQ(errno_of(splice(in.get(), &at, to_pipe.get(), nullptr, 4096, 0)), EINVAL) << name;
    char byte = 0;
    EXPECT_EQ(pread(in.get(), &byte, 1, 0), 1) << name;
  }
}

// Resident memory of a process in KiB.
long memory_of(pid_t pid) {
  const std::string status = content("/proc/" + std::to_string(pid) + "/status");
  const auto at = status.find("VmRSS:");
  return at == std::string::npos ? -1 : std::atol(status.c_str() + at + 6);
}

TEST_F(FsRights, OpenDirectoriesBelowFilesCostTheDaemonNoCopies) {
  const MountFixture fixture;
  const std::string control = fixture.mount() + "/.locks/files";
  ASSERT_EQ(mkdir((fixture.source() + "/.locks").c_str(), 0755), 0);
  ASSERT_EQ(mkdir((fixture.source() + "/dir").c_str(), 0755), 0);
  for (int i = 0; i < 5000; ++i) {
    const std::string name = fixture.source() + "/dir/" + std::string(100, 'x') + std::to_string(i);
    ASSERT_EQ(mknod(name.c_str(), S_IFIFO | 0644, 0), 0);
  }
  ASSERT_EQ(symlink("dir", (fixture.source() + "/link").c_str()), 0);
  EXPECT_EQ(names_in(control), "dir\nlink\n");  // without what .locks hides
  EXPECT_EQ(names_in(control + "/dir"), names_in(fixture.source() + "/dir"));
  EXPECT_EQ(names_in(control + "/link"), std::strerror(ENOTDIR));

  const long before = memory_of(fixture.daemon());
  ASSERT_GT(before, 0);
  const long after = std::stol(told_by(kUser, kGroup, {}, [&] {
    std::vector<UniqueFd> open_dirs;
    for (int i = 0; i < 800; ++i) {
      open_dirs.emplace_back(open((control + "/dir").c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
      if (!open_dirs.back()) return std::string{"-1"};
    }
    return std::to_string(memory_of(fixture.daemon()));
  }));
  // Copies of the names would be over 400 MiB. The daemon takes 0.1; under ASan up to 70, for what
  // was freed and for the second stacks of workers.
  ASSERT_GT(after, 0);
  EXPECT_LT(after - before, 160 << 10);

  // A directory that is rewound shows what came since; one that is closed to the user is.
  const std::unique_ptr<DIR, int (*)(DIR*)> root{opendir(control.c_str()), closedir};
  ASSERT_TRUE(root);
  int types[2] = {};
  for (const dirent* d = nullptr; (d = readdir(root.get())) != nullptr;) {
    ASSERT_TRUE(d->d_type == DT_DIR || d->d_type == DT_REG) << d->d_name;
    ++types[d->d_type == DT_DIR ? 0 : 1];
  }
  EXPECT_EQ(types[0], 3);
  EXPECT_EQ(types[1], 1);
  ASSERT_EQ(mkdir((fixture.source() + "/later").c_str(), 0700), 0);
  rewinddir(root.get());
  bool later = false;
  while (const dirent* d = readdir(root.get())) later = later || d->d_name == std::string{"later"};
  EXPECT_TRUE(later);
  EXPECT_EQ(told_by(kUser, kGroup, {}, [&] { return names_in(control + "/later"); }),
            std::strerror(EACCES));
}

// Who reads a directory and then its files, to know them again: find(1), rsync.
TEST_F(FsRights, EntriesBelowFilesHaveTheNumbersOfTheirFiles) {
  const MountFixture fixture;
  const std::string control = fixture.mount() + "/.locks/files";
  ASSERT_EQ(mkdir((fixture.source() + "/dir").c_str(), 0755), 0);
  make(fixture.source() + "/file", "text", 0644);
  const std::unique_ptr<DIR, int (*)(DIR*)> root{opendir(control.c_str()), closedir};
  ASSERT_TRUE(root);
  int seen = 0;
  while (const dirent* d = readdir(root.get())) {
    const std::string name = d->d_name;
    if (name == "..") continue;
    struct stat st {};
    ASSERT_EQ(lstat((control + "/" + name).c_str(), &st), 0) << name;
    EXPECT_EQ(d->d_ino, st.st_ino) << name;
    ++seen;
  }
  EXPECT_EQ(seen, 3);
}

}  // namespace
}  // namespace latchfs::fsdiff
