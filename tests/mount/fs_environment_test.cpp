// The mount over a backing file system in trouble: full, read-only, gone. CONTRACT section 6.
#include <dirent.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/unique_fd.h"
#include "support/fs_image.h"
#include "support/fs_op.h"
#include "support/fs_stage.h"
#include "support/lock_proc.h"
#include "support/mount_fixture.h"

namespace latchfs::fsdiff {
namespace {

using test::MountFixture;
using test::OwnFileSystem;

class FsEnvironment : public testing::Test {
 protected:
  void SetUp() override {
    if (geteuid() != 0) FAIL() << "fs_environment needs root: it mounts file systems";
    if (access("/dev/fuse", R_OK | W_OK) != 0) FAIL() << "fs_environment needs /dev/fuse";
    use_private_mounts();
  }
  static MountFixture::Options over(const LoopImage& image) {
    MountFixture::Options options;
    options.source = image.path();
    return options;
  }
};

UniqueFd make(const std::string& path, int flags = 0) {
  return UniqueFd{open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | flags, 0666)};
}

std::string content(const std::string& path) {
  const UniqueFd fd{open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  std::string out;
  char buffer[65536];
  for (ssize_t got; (got = read(fd.get(), buffer, sizeof buffer)) > 0;) {
    out.append(buffer, static_cast<std::size_t>(got));
  }
  return out;
}

// Writes until it fails; gives the errno. written: how much there is then.
int fill(const std::string& path, std::size_t& written) {
  const UniqueFd fd = make(path);
  if (!fd) return errno;
  const std::string piece = pattern(1, 65536);
  for (;;) {
    const ssize_t got = write(fd.get(), piece.data(), piece.size());
    if (got < 0) return errno;
    written += static_cast<std::size_t>(got);
  }
}

// A removed file's room is the next one's, whoever has looked at it: here at once, where nobody but
// the kernel knows the node any more, or not even that.
TEST_F(FsEnvironment, RemovedFilesMakeRoom) {
  const OwnFileSystem small{"tmpfs", "size=32m"};
  ASSERT_TRUE(small.ok());
  constexpr off_t kMost = 28 << 20;
  MountFixture::Options options;
  options.source = small.path();
  const MountFixture fixture{options};
  const UniqueFd fd = make(fixture.mount() + "/next");
  for (int round = 0; round < 40; ++round) {
    SCOPED_TRACE(round);
    // Not through the mount: closing there is not waited for.
    {
      const UniqueFd old = make(small.path() + "/old");
      ASSERT_EQ(posix_fallocate(old.get(), 0, kMost), 0);
    }
    const std::string name = fixture.mount() + "/old";
    UniqueFd held{open(name.c_str(), O_PATH | O_CLOEXEC)};
    ASSERT_TRUE(held);
    if (round % 2 == 0) held.reset();
    ASSERT_EQ(unlink(name.c_str()), 0);
    ASSERT_EQ(errno_of(fallocate(fd.get(), 0, 0, kMost)), 0);
    ASSERT_EQ(ftruncate(fd.get(), 0), 0);
  }
}

TEST_F(FsEnvironment, FullBackingFileSystem) {
  LoopImage image{16, "-m 10"};
  std::optional<MountFixture> fixture{over(image)};
  const std::string& top = fixture->mount();
  ASSERT_EQ(chmod(top.c_str(), 0777), 0);

  const std::string kept = pattern(7, 1 << 20);
  {
    const UniqueFd fd = make(top + "/kept");
    ASSERT_EQ(write(fd.get(), kept.data(), kept.size()), static_cast<ssize_t>(kept.size()));
    ASSERT_EQ(fsync(fd.get()), 0);
  }
  UniqueFd sparse = make(top + "/sparse");
  ASSERT_EQ(ftruncate(sparse.get(), 4 << 20), 0);

  // The blocks kept for root are not a user's, although the daemon is root.
  const int users = as_user(61001, 61001, [&] {
    std::size_t written = 0;
    return fill(top + "/users", written);
  });
  EXPECT_EQ(users, ENOSPC);
  struct statvfs room {};
  ASSERT_EQ(statvfs(image.path().c_str(), &room), 0);
  EXPECT_LT(room.f_bavail * room.f_frsize, 128u << 10);
  EXPECT_GT(room.f_bfree * room.f_frsize, 512u << 10) << "the user got into root's reserve";
  std::size_t roots = 0;
  EXPECT_EQ(fill(top + "/roots", roots), ENOSPC);
  EXPECT_GT(roots, 512u << 10);
  // ext4 sets blocks aside for writes that are on their way to disk, and gives back what it did not
  // need: full is what is full after that.
  int files = 0;
  for (std::size_t more = 1; more != 0 && files < 100;) {
    const UniqueFd whole{open(image.path().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
    ASSERT_EQ(syncfs(whole.get()), 0);
    more = 0;
    EXPECT_EQ(fill(top + "/rest" + std::to_string(files++), more), ENOSPC);
  }

  const std::string piece = pattern(2, 65536);
  EXPECT_EQ(errno_of(pwrite(sparse.get(), piece.data(), piece.size(), 1 << 20)), ENOSPC);
  EXPECT_EQ(errno_of(fallocate(sparse.get(), 0, 0, 1 << 20)), ENOSPC);
  EXPECT_EQ(errno_of(mkdir((top + "/dir").c_str(), 0755)), ENOSPC);
  const std::string large = pattern(3, 3000);
  EXPECT_EQ(errno_of(setxattr((top + "/kept").c_str(), "user.x", large.data(), large.size(), 0)),
            ENOSPC);
  // A store through a mapping: SIGBUS where the mapping is the backing file's, as natively; else it
  // is taken, and that there was no room for it shows in msync.
  const pid_t child = fork();
  if (child == 0) {
    signal(SIGBUS, SIG_DFL);
    void* map = mmap(nullptr, 65536, PROT_READ | PROT_WRITE, MAP_SHARED, sparse.get(), 2 << 20);
    if (map == MAP_FAILED) _exit(255);
    piece.copy(static_cast<char*>(map), piece.size());
    _exit(errno_of(msync(map, 65536, MS_SYNC)));
  }
  int status = 0;
  waitpid(child, &status, 0);
  if (fixture->io() == "passthrough") {
    EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS) << status;
  } else {
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == ENOSPC) << status;
  }

  // Room again, work again.
  ASSERT_EQ(unlink((top + "/users").c_str()), 0);
  ASSERT_EQ(unlink((top + "/roots").c_str()), 0);
  EXPECT_EQ(pwrite(sparse.get(), piece.data(), piece.size(), 1 << 20),
            static_cast<ssize_t>(piece.size()));
  EXPECT_EQ(fsync(sparse.get()), 0);

  // Passed through, it would keep the file system below busy.
  sparse.reset();
  fixture->kill_daemon();
  fixture.reset();
  image.mount_again();
  EXPECT_EQ(content(image.path() + "/kept"), kept);
  EXPECT_EQ(content(image.path() + "/sparse").substr(1 << 20, piece.size()), piece);
}

TEST_F(FsEnvironment, NoInodesLeft) {
  const LoopImage image{4, "-N 64"};
  const MountFixture fixture{over(image)};
  int err = 0;
  int made = 0;
  for (; err == 0 && made < 1000; ++made) {
    const UniqueFd fd = make(fixture.mount() + "/" + std::to_string(made));
    err = fd ? 0 : errno;
  }
  EXPECT_EQ(err, ENOSPC);
  EXPECT_EQ(errno_of(symlink("x", (fixture.mount() + "/link").c_str())), ENOSPC);
  EXPECT_EQ(errno_of(mkdir((fixture.mount() + "/dir").c_str(), 0700)), ENOSPC);
  EXPECT_EQ(errno_of(mknod((fixture.mount() + "/fifo").c_str(), S_IFIFO | 0600, 0)), ENOSPC);
  EXPECT_EQ(unlink((fixture.mount() + "/0").c_str()), 0);
  // The inode of a file without blocks is free when the kernel has forgotten it, of which it tells
  // without waiting: docs/compatibility.md.
  EXPECT_TRUE(locktest::poll_until([&] {
    const int got = errno_of(mkdir((fixture.mount() + "/dir").c_str(), 0700));
    EXPECT_TRUE(got == 0 || got == ENOSPC) << got;
    return got == 0;
  }));
}

// What every call that changes something gives on the tree below top. Nothing is changed if all of
// them are refused.
std::vector<std::pair<std::string, int>> attempts(const std::string& top) {
  const std::string file = top + "/file";
  std::vector<std::pair<std::string, int>> out;
  auto attempt = [&out](const char* what, long result) {
    out.emplace_back(what, errno_of(result));
  };
  attempt("open O_RDONLY", UniqueFd{open(file.c_str(), O_RDONLY)}.get());
  attempt("open O_WRONLY", UniqueFd{open(file.c_str(), O_WRONLY)}.get());
  attempt("open O_RDWR|O_TRUNC", UniqueFd{open(file.c_str(), O_RDWR | O_TRUNC)}.get());
  attempt("open O_CREAT", UniqueFd{open((top + "/new").c_str(), O_WRONLY | O_CREAT, 0600)}.get());
  attempt("open O_CREAT, exists", UniqueFd{open(file.c_str(), O_RDONLY | O_CREAT, 0600)}.get());
  attempt("truncate", truncate(file.c_str(), 1));
  attempt("mkdir", mkdir((top + "/d2").c_str(), 0755));
  attempt("mkdir, exists", mkdir((top + "/dir").c_str(), 0755));
  attempt("rmdir", rmdir((top + "/dir").c_str()));
  attempt("unlink", unlink(file.c_str()));
  attempt("unlink, none", unlink((top + "/none").c_str()));
  attempt("rename", rename(file.c_str(), (top + "/other").c_str()));
  attempt("link", link(file.c_str(), (top + "/other").c_str()));
  attempt("symlink", symlink("x", (top + "/sym").c_str()));
  attempt("mknod", mknod((top + "/fifo").c_str(), S_IFIFO | 0600, 0));
  attempt("chmod", chmod(file.c_str(), 0777));
  attempt("chown", chown(file.c_str(), 1, 1));
  attempt("utimensat", utimensat(AT_FDCWD, file.c_str(), nullptr, 0));
  attempt("setxattr", setxattr(file.c_str(), "user.x", "y", 1, 0));
  attempt("removexattr", removexattr(file.c_str(), "user.there"));
  attempt("access W_OK", access(file.c_str(), W_OK));
  attempt("access R_OK", access(file.c_str(), R_OK));
  return out;
}

void furnish(const std::string& top) {
  const UniqueFd fd = make(top + "/file");
  ASSERT_EQ(write(fd.get(), "content", 7), 7);
  ASSERT_EQ(mkdir((top + "/dir").c_str(), 0755), 0);
  ASSERT_EQ(setxattr((top + "/file").c_str(), "user.there", "z", 1, 0), 0);
}

TEST_F(FsEnvironment, ReadOnlyBackingGivesTheSameErrors) {
  LoopImage image{8, ""};
  ASSERT_NO_FATAL_FAILURE(furnish(image.path()));
  const MountFixture before{over(image)};  // it learns that it is read-only only later
  EXPECT_EQ(content(before.mount() + "/file"), "content");
  image.remount("ro");
  const MountFixture after{before.another()};
  auto expected = attempts(image.path());
  for (auto& [what, err] : expected) {
    // The kernel decides these two by itself, and does not know (docs/compatibility.md).
    if (what == "access W_OK") err = 0;
    if (what == "unlink, none") err = ENOENT;
  }
  EXPECT_EQ(attempts(before.mount()), expected);
  EXPECT_EQ(attempts(after.mount()), expected);
  EXPECT_EQ(content(before.mount() + "/file"), "content");
  EXPECT_EQ(content(image.path() + "/file"), "content");
}

TEST_F(FsEnvironment, ReadOnlyMountRefusesEverything) {
  MountFixture::Options options;
  options.options = {"ro"};
  const LoopImage image{8, ""};
  options.source = image.path();
  ASSERT_NO_FATAL_FAILURE(furnish(image.path()));
  const MountFixture fixture{options};
  for (const auto& [what, err] : attempts(fixture.mount())) {
    const bool reads = what.find("RDONLY") != std::string::npos || what == "access R_OK" ||
                       what == "open O_CREAT, exists";
    if (what.find("exists") == std::string::npos && what.find("none") == std::string::npos) {
      EXPECT_EQ(err, reads ? 0 : EROFS) << what;
    }
  }
  EXPECT_EQ(content(fixture.mount() + "/file"), "content");
}

TEST_F(FsEnvironment, VanishedBackingGivesErrorsAndAnOrderlyEnd) {
  LoopImage image{8, ""};
  ASSERT_NO_FATAL_FAILURE(furnish(image.path()));
  MountFixture fixture{over(image)};
  const UniqueFd open_file{open((fixture.mount() + "/file").c_str(), O_RDWR | O_CLOEXEC)};
  ASSERT_TRUE(open_file);
  const UniqueFd native_file{open((image.path() + "/file").c_str(), O_RDWR | O_CLOEXEC)};
  image.shut_down();
  const auto native = attempts(image.path());
  EXPECT_EQ(attempts(fixture.mount()), native);
  EXPECT_EQ(errno_of(write(open_file.get(), "x", 1)), errno_of(write(native_file.get(), "x", 1)));
  EXPECT_EQ(errno_of(fsync(open_file.get())), errno_of(fsync(native_file.get())));
  EXPECT_EQ(errno_of(fsync(open_file.get())), EIO);
  // The control tree does not need the disk.
  EXPECT_NE(content(fixture.mount() + "/.locks/status"), "");
}

TEST_F(FsEnvironment, DetachedBackingWorksOn) {
  LoopImage image{8, ""};
  MountFixture fixture{over(image)};
  const UniqueFd early = make(fixture.mount() + "/early");
  image.detach();
  EXPECT_EQ(write(early.get(), "x", 1), 1);
  EXPECT_EQ(fsync(early.get()), 0);
  {
    const UniqueFd late = make(fixture.mount() + "/late");
    EXPECT_EQ(write(late.get(), "y", 1), 1);
  }
  EXPECT_EQ(content(fixture.mount() + "/late"), "y");
  EXPECT_EQ(content(fixture.mount() + "/early"), "x");
}

std::vector<std::string> names_in(const std::string& path) {
  std::vector<std::string> out;
  const std::unique_ptr<DIR, int (*)(DIR*)> dir{opendir(path.c_str()), closedir};
  while (const dirent* d = dir ? readdir(dir.get()) : nullptr) out.emplace_back(d->d_name);
  std::sort(out.begin(), out.end());
  return out;
}

TEST_F(FsEnvironment, ControlNameIsHiddenAndShadows) {
  using Names = std::vector<std::string>;
  const MountFixture fixture;
  const std::string& top = fixture.mount();
  const std::string real = fixture.source() + "/.locks";
  ASSERT_EQ(mkdir(real.c_str(), 0755), 0);
  (void)make(real + "/real");
  (void)make(fixture.source() + "/file");
  ASSERT_EQ(mkdir((fixture.source() + "/dir").c_str(), 0755), 0);

  EXPECT_EQ(names_in(top), (Names{".", "..", "dir", "file"}));
  const std::string control = top + "/.locks";
  EXPECT_NE(content(control + "/README"), "");
  EXPECT_EQ(errno_of(access((control + "/real").c_str(), F_OK)), ENOENT);
  EXPECT_EQ(errno_of(mkdir(control.c_str(), 0755)), EEXIST);
  EXPECT_EQ(errno_of(symlink("x", control.c_str())), EEXIST);
  EXPECT_EQ(errno_of(link((top + "/file").c_str(), control.c_str())), EEXIST);
  EXPECT_NE(errno_of(rmdir(control.c_str())), 0);
  EXPECT_NE(errno_of(unlink(control.c_str())), 0);
  EXPECT_NE(errno_of(rename((top + "/dir").c_str(), control.c_str())), 0);
  EXPECT_NE(errno_of(rename(control.c_str(), (top + "/moved").c_str())), 0);
  EXPECT_EQ(names_in(real), (Names{".", "..", "real"}));

  // Elsewhere it is a name like any other.
  ASSERT_EQ(mkdir((top + "/dir/.locks").c_str(), 0755), 0);
  EXPECT_EQ(names_in(top + "/dir"), (Names{".", "..", ".locks"}));
  ASSERT_EQ(rename((top + "/dir/.locks").c_str(), (top + "/dir/x").c_str()), 0);
  EXPECT_EQ(names_in(top + "/dir"), (Names{".", "..", "x"}));

  MountFixture::Options options = fixture.another();
  options.options = {"control=.other"};
  const MountFixture other{options};
  EXPECT_EQ(names_in(other.mount()), (Names{".", "..", ".locks", "dir", "file"}));
  EXPECT_EQ(names_in(other.mount() + "/.locks"), (Names{".", "..", "real"}));
  EXPECT_NE(content(other.mount() + "/.other/README"), "");

  // What empties the mount leaves what it cannot see.
  const std::string command = "rm -rf '" + top + "'/* '" + top + "'/.[!.]* 2>/dev/null";
  (void)!std::system(command.c_str());  // NOLINT: the words are ours
  EXPECT_EQ(names_in(fixture.source()), (Names{".", "..", ".locks"}));
  EXPECT_EQ(names_in(real), (Names{".", "..", "real"}));
}

}  // namespace
}  // namespace latchfs::fsdiff
