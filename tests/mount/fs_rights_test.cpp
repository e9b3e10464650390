// What an ordinary user may through a mount, and what he may not: as natively, whatever the backing
// file system is and whoever the daemon is.
#include <dirent.h>
#include <fcntl.h>
#include <grp.h>
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/unique_fd.h"
#include "support/fs_image.h"
#include "support/fs_stage.h"
#include "support/mount_fixture.h"

namespace latchfs::fsdiff {
namespace {

using test::MountFixture;
using test::TempDir;

constexpr uid_t kUser = 61001;
constexpr gid_t kGroup = 61001;

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
  const unsigned char acl[] = {2, 0, 0,    0,    1,    0,    6, 0, 0xff, 0xff, 0xff, 0xff, 2, 0, 7,
                               0, 1, 0,    0,    0,    4,    0, 4, 0,    0xff, 0xff, 0xff, 0xff,
                               16, 0, 7, 0, 0xff, 0xff, 0xff, 0xff, 32, 0, 4, 0, 0xff, 0xff, 0xff,
                               0xff};
  EXPECT_EQ(errno_of(setxattr(file.c_str(), "system.posix_acl_access", acl, sizeof acl, 0)),
            EOPNOTSUPP);
}

}  // namespace
}  // namespace latchfs::fsdiff
