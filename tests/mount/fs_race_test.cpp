// Walks and changes at the same time: names that move under a walk, caches that are emptied during
// it, and a user who swaps files and directories for symlinks to lead the daemon outside the tree.
#include <dirent.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/fs.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/unique_fd.h"
#include "support/fs_image.h"
#include "support/fs_snapshot.h"
#include "support/fs_stage.h"
#include "support/lock_children.h"
#include "support/mount_fixture.h"
#include "support/sanitized.h"

namespace latchfs::fsdiff {
namespace {

using test::MountFixture;

class FsRace : public testing::Test {
 protected:
  void SetUp() override {
    if (geteuid() != 0) FAIL() << "fs_race needs root: it acts as several users";
    if (access("/dev/fuse", R_OK | W_OK) != 0) FAIL() << "fs_race needs /dev/fuse";
    use_private_mounts();
  }
};

// A process that does one thing over and over until the object goes.
class Meanwhile {
 public:
  Meanwhile(uid_t uid, const std::function<void()>& once) {
    child_ = fork();
    if (child_ != 0) return;
    if (setresgid(uid, uid, uid) != 0 || setresuid(uid, uid, uid) != 0) _exit(255);
    for (;;) once();
  }
  ~Meanwhile() {
    kill(child_, SIGKILL);
    waitpid(child_, nullptr, 0);
  }
  Meanwhile(const Meanwhile&) = delete;
  Meanwhile& operator=(const Meanwhile&) = delete;

 private:
  pid_t child_;
};

void put(const std::string& path, const std::string& text, mode_t mode = 0644) {
  const UniqueFd fd{open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode)};
  ASSERT_EQ(write(fd.get(), text.data(), text.size()), static_cast<ssize_t>(text.size()));
}

std::string get(int dir, const char* name) {
  const UniqueFd fd{openat(dir, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC)};
  char buffer[256];
  const ssize_t got = read(fd.get(), buffer, sizeof buffer);
  return got < 0 ? "" : std::string(buffer, static_cast<std::size_t>(got));
}

// Each directory has a file "id" that says which it is; `seen` counts them. Anything but a name
// that has just moved away is an error.
void walk(int dir, const std::string& mine, std::map<std::string, int>& seen, int also = ENOENT) {
  EXPECT_EQ(get(dir, "id"), mine);
  ++seen[mine];
  const int copy = openat(dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  ASSERT_GE(copy, 0) << mine;
  const std::unique_ptr<DIR, int (*)(DIR*)> stream{fdopendir(copy), closedir};
  errno = 0;
  while (const dirent* d = readdir(stream.get())) {
    if (d->d_name[0] == '.' || std::string{d->d_name} == "id") continue;
    const UniqueFd next{openat(dir, d->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)};
    if (next) {
      walk(next.get(), get(next.get(), "id"), seen, also);
    } else {
      EXPECT_TRUE(errno == ENOENT || errno == also) << d->d_name << ": " << errno;
    }
    errno = 0;
  }
  EXPECT_EQ(errno, 0) << "readdir";
}

// depth levels of 4 directories each; ids are the paths they were made at.
void plant(const std::string& top, const std::string& path, int depth) {
  put(top + path + "/id", path);
  if (depth == 0) return;
  for (const char* name : {"/a", "/b", "/c", "/d"}) {
    ASSERT_EQ(mkdir((top + path + name).c_str(), 0755), 0);
    plant(top, path + name, depth - 1);
  }
}

void exchange(const std::string& one, const std::string& two) {
  syscall(SYS_renameat2, AT_FDCWD, one.c_str(), AT_FDCWD, two.c_str(), RENAME_EXCHANGE);
}

// Subtrees change places below each of the given directories.
std::vector<std::unique_ptr<Meanwhile>> movers(const std::vector<std::string>& tops) {
  std::vector<std::unique_ptr<Meanwhile>> out;
  for (const std::string& top : tops) {
    out.push_back(std::make_unique<Meanwhile>(0, [top] {
      exchange(top + "/a", top + "/b/c");
      exchange(top + "/d/a/b", top + "/c/b");
      rename((top + "/c/d").c_str(), (top + "/c/moved").c_str());
      rename((top + "/c/moved").c_str(), (top + "/c/d").c_str());
    }));
  }
  return out;
}

void walk_while_moving(const MountFixture& fixture, const std::vector<std::string>& tops,
                       int also) {
  ASSERT_NO_FATAL_FAILURE(plant(fixture.source(), "", 4));
  {
    const auto moving = movers(tops);
    const UniqueFd root{open(fixture.mount().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
    for (int i = 0; i < 15; ++i) {
      std::map<std::string, int> seen;
      walk(root.get(), "", seen, also);
      EXPECT_GE(seen.size(), 20u);
    }
  }
  // At rest, everything is there exactly once.
  const MountFixture fresh{fixture.another()};
  const UniqueFd root{open(fresh.mount().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
  std::map<std::string, int> seen;
  walk(root.get(), "", seen);
  // A mover killed between its two renames leaves "moved", with all that is in it.
  EXPECT_EQ(seen.size(), 341u);
  for (const auto& [path, times] : seen) EXPECT_EQ(times, 1) << path;
}

TEST_F(FsRace, ParentsRenamedDuringAWalk) {
  const MountFixture fixture;
  walk_while_moving(fixture, {fixture.mount()}, ENOENT);
}

TEST_F(FsRace, ParentsRenamedElsewhereDuringAWalk) {
  const MountFixture fixture;
  const MountFixture second{fixture.another()};
  // ESTALE: see fs_deviations.cpp, d_splice_alias().
  walk_while_moving(fixture, {fixture.mount(), second.mount(), fixture.source()}, ESTALE);
}

TEST_F(FsRace, CachesDroppedDuringAWalk) {
  if (access("/proc/sys/vm/drop_caches", W_OK) != 0) {
    GTEST_SKIP() << "/proc/sys/vm/drop_caches cannot be written here";
  }
  const MountFixture fixture;
  ASSERT_NO_FATAL_FAILURE(plant(fixture.source(), "", 5));
  const Meanwhile dropper{0, [] {
                            std::ofstream{"/proc/sys/vm/drop_caches"} << "2\n" << std::flush;
                            usleep(2000);
                          }};
  const UniqueFd root{open(fixture.mount().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
  for (int i = 0; i < 3; ++i) {
    std::map<std::string, int> seen;
    walk(root.get(), "", seen);
    EXPECT_EQ(seen.size(), 1365u);
    // Every inode number is the backing one, also of a node made anew.
    struct stat there {};
    struct stat here {};
    const std::string path = "/a/b/c/d/a/id";
    ASSERT_EQ(stat((fixture.source() + path).c_str(), &there), 0);
    ASSERT_EQ(stat((fixture.mount() + path).c_str(), &here), 0);
    EXPECT_EQ(here.st_ino, there.st_ino);
  }
}

// How often calls of several processes failed with what.
class Tally {
 public:
  void add(bool failed) { ++counts_->at(failed ? static_cast<std::size_t>(errno) : 0); }
  [[nodiscard]] long of(int err) const { return counts_->at(static_cast<std::size_t>(err)); }
  // Of all others than these.
  [[nodiscard]] std::string beside(int allowed) const {
    std::string out;
    for (std::size_t err = 1; err < counts_->size(); ++err) {
      if (counts_->at(err) == 0 || static_cast<int>(err) == allowed) continue;
      out += std::string{strerrorname_np(static_cast<int>(err))} + " " +
             std::to_string(counts_->at(err)) + " times; ";
    }
    return out;
  }

 private:
  locktest::Shared<std::array<std::atomic<long>, 134>> counts_;
};

void open_read_and_stat(const std::string& path, Tally& tally) {
  const UniqueFd fd{open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  tally.add(!fd);
  char byte{};
  if (fd) tally.add(read(fd.get(), &byte, 1) < 0);
  struct stat st {};
  tally.add(stat(path.c_str(), &st) != 0);
}

// One name that is made and removed, or replaced, while others open it. As on a local file system a
// file that was looked up can be opened though its name is gone, and the number of the node is not
// the next file's before all are done with it.
TEST_F(FsRace, RemovedAndReplacedWhileOpened) {
  constexpr int kOpeners = 4;
  const int rounds = test::kSanitized ? 500 : 4000;
  for (const char* cache : {"cache=strict", "cache=relaxed"}) {
    MountFixture::Options options;
    options.options = {cache};
    const MountFixture fixture{options};
    const std::string name = fixture.mount() + "/name";
    const std::string next = fixture.mount() + "/next";
    for (const bool replace : {false, true}) {
      SCOPED_TRACE(std::string{cache} + (replace ? ", replaced" : ", removed"));
      Tally opening;
      Tally making;
      ASSERT_NO_FATAL_FAILURE(put(name, "content"));
      std::vector<std::unique_ptr<Meanwhile>> openers;
      for (int i = 0; i < kOpeners; ++i) {
        openers.push_back(
            std::make_unique<Meanwhile>(0, [&] { open_read_and_stat(name, opening); }));
      }
      for (int round = 0; round < rounds; ++round) {
        if (!replace) making.add(unlink(name.c_str()) != 0);
        ASSERT_NO_FATAL_FAILURE(put(replace ? next : name, "content"));
        if (replace) making.add(rename(next.c_str(), name.c_str()) != 0);
      }
      openers.clear();
      EXPECT_EQ(making.beside(0), "");
      EXPECT_EQ(opening.beside(replace ? 0 : ENOENT), "") << opening.of(0) << " times it went well";
      EXPECT_GT(opening.of(0), 0);
    }
  }
}

constexpr uid_t kAttacker = 61001;

// A place outside the tree that nobody but root may touch, and what it looked like.
class Outside {
 public:
  Outside() {
    put(path() + "/file", "untouched");
    mkdir((path() + "/dir").c_str(), 0700);
    put(path() + "/dir/file", "untouched");
    setxattr((path() + "/file").c_str(), "user.x", "untouched", 9, 0);
    chmod(path().c_str(), 0700);
    before_ = take_snapshot(path());
  }
  ~Outside() { remove_tree(path_); }
  Outside(const Outside&) = delete;
  Outside& operator=(const Outside&) = delete;
  [[nodiscard]] const std::string& path() const { return path_; }

  // "" or what has happened to it.
  [[nodiscard]] std::string harm() const {
    const TimeName exact = [](const timespec& t) {
      return std::to_string(t.tv_sec) + "." + std::to_string(t.tv_nsec);
    };
    CompareOptions options;
    options.access_times = AccessTimes::kIgnored;
    std::string out;
    for (const std::string& line :
         differences(before_, exact, take_snapshot(path()), exact, options)) {
      out += line + "\n";
    }
    return out;
  }

 private:
  std::string path_ = make_scratch_directory("latchfs-outside");
  Snapshot before_;
};

// Everything that changes a file or directory, as root, on what `name` is when it is looked up:
// never through a symlink, so whatever happens outside is the daemon's doing.
void touch_everything(int home, const std::string& name, int round) {
  const UniqueFd there{openat(home, name.c_str(), O_PATH | O_NOFOLLOW | O_CLOEXEC)};
  if (!there) return;
  const std::string magic = "/proc/self/fd/" + std::to_string(there.get());
  struct stat st {};
  if (fstat(there.get(), &st) != 0 || S_ISLNK(st.st_mode)) return;
  const std::string fresh = "new" + std::to_string(round);
  (void)!chmod(magic.c_str(), S_ISDIR(st.st_mode) ? 0777 : 0666);
  (void)!chown(magic.c_str(), kAttacker, kAttacker);
  (void)!utimensat(AT_FDCWD, magic.c_str(), nullptr, 0);
  (void)!setxattr(magic.c_str(), "user.x", "changed", 7, 0);
  if (S_ISDIR(st.st_mode)) {
    const int dir = there.get();
    UniqueFd{openat(dir, fresh.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600)};
    (void)!mkdirat(dir, (fresh + "d").c_str(), 0700);
    (void)!symlinkat("x", dir, (fresh + "s").c_str());
    (void)!linkat(dir, fresh.c_str(), dir, (fresh + "l").c_str(), 0);
    (void)!renameat(dir, (fresh + "s").c_str(), dir, (fresh + "t").c_str());
    (void)!unlinkat(dir, "file", 0);
    (void)!unlinkat(dir, "dir", AT_REMOVEDIR);
    for (const char* tail : {"", "t", "l"}) (void)!unlinkat(dir, (fresh + tail).c_str(), 0);
    (void)!unlinkat(dir, (fresh + "d").c_str(), AT_REMOVEDIR);
    return;
  }
  (void)!truncate(magic.c_str(), 1);
  const UniqueFd fd{openat(home, name.c_str(), O_RDWR | O_NOFOLLOW | O_CLOEXEC)};
  (void)!write(fd.get(), "changed", 7);
  (void)!fchmod(fd.get(), 0666);
  (void)!removexattr(magic.c_str(), "user.x");
}

TEST_F(FsRace, SymlinkSwapsNeverLeadOutside) {
  const Outside outside;
  const MountFixture fixture;
  const std::string home = fixture.source() + "/home";
  ASSERT_EQ(mkdir(home.c_str(), 0755), 0);
  ASSERT_EQ(mkdir((home + "/dir").c_str(), 0755), 0);
  put(home + "/file", "inside");
  ASSERT_EQ(symlink(outside.path().c_str(), (home + "/dir-link").c_str()), 0);
  ASSERT_EQ(symlink((outside.path() + "/file").c_str(), (home + "/file-link").c_str()), 0);
  for (const char* name : {"", "/dir", "/file", "/dir-link", "/file-link"}) {
    ASSERT_EQ(lchown((home + name).c_str(), kAttacker, kAttacker), 0);
  }
  std::vector<std::unique_ptr<Meanwhile>> attackers;
  for (const std::string& top : {fixture.source() + "/home", fixture.mount() + "/home"}) {
    attackers.push_back(std::make_unique<Meanwhile>(kAttacker, [top] {
      exchange(top + "/dir", top + "/dir-link");
      exchange(top + "/file", top + "/file-link");
    }));
  }
  const UniqueFd dir{open((fixture.mount() + "/home").c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
  ASSERT_TRUE(dir);
  int hits = 0;
  for (int round = 0; round < 1500; ++round) {
    for (const char* name : {"dir", "file", "dir-link", "file-link"}) {
      touch_everything(dir.get(), name, round);
    }
    struct stat st {};
    hits += fstatat(dir.get(), "dir", &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISLNK(st.st_mode) ? 1 : 0;
    if (round % 100 != 0) continue;
    ASSERT_EQ(outside.harm(), "") << "in round " << round;
  }
  attackers.clear();
  EXPECT_EQ(outside.harm(), "");
  EXPECT_GT(hits, 0) << "the attack never happened";
}

}  // namespace
}  // namespace latchfs::fsdiff
