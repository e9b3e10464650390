#include <fcntl.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <functional>
#include <string>

#include "base/unique_fd.h"
#include "posix/path_finder.h"

namespace latchfs::posix {
namespace {

namespace fs = std::filesystem;

FileId id_of(int fd) {
  struct stat st {};
  EXPECT_EQ(::fstat(fd, &st), 0);
  return {st.st_dev, st.st_ino};
}

UniqueFd open_dir(const fs::path& path) {
  return UniqueFd{::open(path.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC)};
}

UniqueFd create(const fs::path& path) {
  return UniqueFd{::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600)};
}

class PathFinderTest : public ::testing::Test {
 protected:
  PathFinderTest() {
    std::string pattern = (fs::path{::testing::TempDir()} / "path finder XXXXXX").string();
    dir_ = fs::canonical(::mkdtemp(pattern.data()));
    fs::create_directories(dir_ / "root/sub/deep");
    fs::create_directories(dir_ / "elsewhere");
  }
  ~PathFinderTest() override {
    std::error_code ignored;
    fs::remove_all(dir_, ignored);
  }
  PathFinderTest(const PathFinderTest&) = delete;
  PathFinderTest& operator=(const PathFinderTest&) = delete;

  // A finder below dir_/`name`.
  struct Finder {
    UniqueFd root;
    PathFinder finder;
    explicit Finder(const fs::path& path)
        : root{open_dir(path)}, finder{root.get(), id_of(root.get())} {}
    FoundPath find(const UniqueFd& fd, pid_t pid = ::getpid()) {
      return finder.find(pid, fd.get(), id_of(fd.get()));
    }
  };

  // Runs `body` as root in a mount namespace of its own; its failures are this test's.
  static void in_namespace(const std::function<void()>& body) {
    const pid_t child = ::fork();
    if (child == 0) {
      if (::unshare(CLONE_NEWNS) != 0 ||
          ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) {
        ::_exit(77);
      }
      body();
      ::_exit(::testing::Test::HasFailure() ? 1 : 0);
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 77) {
      GTEST_SKIP() << "needs root: no mount namespace";
    }
    EXPECT_EQ(status, 0) << "failures are printed above";
  }
  static void bind(const fs::path& from, const fs::path& to) {
    ASSERT_EQ(::mount(from.c_str(), to.c_str(), nullptr, MS_BIND, nullptr), 0) << to;
  }

  fs::path dir_;
};

TEST_F(PathFinderTest, FindsFilesAtEveryDepth) {
  Finder root{dir_ / "root"};
  EXPECT_EQ(root.find(create(dir_ / "root/f")).path, "/f");
  EXPECT_EQ(root.find(create(dir_ / "root/sub/deep/f")).path, "/sub/deep/f");
  EXPECT_EQ(root.find(open_dir(dir_ / "root/sub")).path, "/sub");
  EXPECT_EQ(root.find(open_dir(dir_ / "root")).path, "/");
}

TEST_F(PathFinderTest, FollowsRenames) {
  Finder root{dir_ / "root"};
  const UniqueFd fd = create(dir_ / "root/sub/f");
  EXPECT_EQ(root.find(fd).path, "/sub/f");
  fs::rename(dir_ / "root/sub/f", dir_ / "root/g");
  EXPECT_EQ(root.find(fd).path, "/g");
  fs::rename(dir_ / "root/g", dir_ / "root/sub/deep/h");
  fs::rename(dir_ / "root/sub", dir_ / "root/new");
  EXPECT_EQ(root.find(fd).path, "/new/deep/h");
  fs::rename(dir_ / "root", dir_ / "moved");
  EXPECT_EQ(root.find(fd).path, "/new/deep/h") << "the root itself";
  fs::rename(dir_ / "moved/new/deep/h", dir_ / "elsewhere/h");
  EXPECT_EQ(root.find(fd).path, "");
  EXPECT_TRUE(root.find(fd).outside);
  fs::rename(dir_ / "elsewhere", dir_ / "moved/back");
  EXPECT_EQ(root.find(fd).path, "/back/h");
  EXPECT_FALSE(root.find(fd).outside);
}

TEST_F(PathFinderTest, OddNames) {
  Finder root{dir_ / "root"};
  for (const std::string name :
       {"new\nline", "tab\t\\040back\\slash", " ", "x (deleted)", "caf\xE9", "//deleted", "..."}) {
    if (name.find('/') != std::string::npos) continue;
    const UniqueFd fd = create(dir_ / "root" / name);
    ASSERT_TRUE(fd);
    EXPECT_EQ(root.find(fd).path, "/" + name);
  }
  const std::string longest(255, 'n');
  EXPECT_EQ(root.find(create(dir_ / "root" / longest)).path, "/" + longest);
}

TEST_F(PathFinderTest, DeletedFilesHaveNoNameAndAreNotOutside) {
  Finder root{dir_ / "root"};
  const UniqueFd gone = create(dir_ / "root/f");
  fs::remove(dir_ / "root/f");
  EXPECT_EQ(root.find(gone).path, "");
  EXPECT_FALSE(root.find(gone).outside);
  const UniqueFd other = create(dir_ / "root/f (deleted)");
  EXPECT_EQ(root.find(gone).path, "") << "another file by that text";
  EXPECT_EQ(root.find(other).path, "/f (deleted)");
  const UniqueFd reborn = create(dir_ / "root/f");
  EXPECT_EQ(root.find(gone).path, "") << "another file by that name";
  const UniqueFd far = create(dir_ / "elsewhere/f");
  fs::remove(dir_ / "elsewhere/f");
  EXPECT_TRUE(root.find(far).outside);
}

TEST_F(PathFinderTest, OutsideOnlyWhenThatIsCertain) {
  Finder root{dir_ / "root"};
  const UniqueFd file = create(dir_ / "elsewhere/f");
  EXPECT_TRUE(root.find(file).outside);
  EXPECT_TRUE(root.find(open_dir(dir_ / "elsewhere")).outside);
  EXPECT_TRUE(root.find(open_dir(dir_)).outside) << "above the root";
  fs::create_directory(dir_ / "rootlike");
  EXPECT_TRUE(root.find(create(dir_ / "rootlike/f")).outside) << "a name that begins the same";
  fs::create_hard_link(dir_ / "elsewhere/f", dir_ / "root/link");
  const FoundPath found = root.find(file);
  EXPECT_EQ(found.path, "");
  EXPECT_FALSE(found.outside) << "it has a name below the root; which, is not known";
  const UniqueFd by_link{::open((dir_ / "root/link").c_str(), O_RDONLY | O_CLOEXEC)};
  EXPECT_EQ(root.find(by_link).path, "/link");
}

TEST_F(PathFinderTest, ADescriptorThatIsSomethingElseByNow) {
  Finder root{dir_ / "root"};
  const UniqueFd fd = create(dir_ / "root/f");
  const FoundPath found = root.finder.find(::getpid(), fd.get(), {1, 2});
  EXPECT_EQ(found.path, "");
  EXPECT_FALSE(found.outside);
  int pipes[2];
  ASSERT_EQ(::pipe(pipes), 0);
  EXPECT_EQ(root.finder.find(::getpid(), pipes[0], id_of(pipes[0])).path, "");
  ::close(pipes[0]);
  ::close(pipes[1]);
  EXPECT_EQ(root.finder.find(::getpid(), -1, id_of(fd.get())).path, "");
  EXPECT_EQ(root.finder.find(::getpid(), 999'999, id_of(fd.get())).path, "");
  EXPECT_EQ(root.finder.find(0, fd.get(), id_of(fd.get())).path, "");
  EXPECT_EQ(root.finder.find(999'999'999, fd.get(), id_of(fd.get())).path, "");
}

TEST_F(PathFinderTest, FilesOfAnotherProcess) {
  int ready[2];
  ASSERT_EQ(::pipe(ready), 0);
  const fs::path path = dir_ / "root/sub/theirs";
  const UniqueFd here = create(path);
  const pid_t child = ::fork();
  if (child == 0) {
    const int fd = ::open(path.c_str(), O_RDONLY);
    const bool told = ::write(ready[1], &fd, sizeof fd) == sizeof fd;
    if (told) ::pause();
    ::_exit(1);
  }
  int fd = -1;
  ASSERT_EQ(::read(ready[0], &fd, sizeof fd), static_cast<ssize_t>(sizeof fd));
  Finder root{dir_ / "root"};
  Finder nested{dir_ / "root/sub"};
  EXPECT_EQ(root.finder.find(child, fd, id_of(here.get())).path, "/sub/theirs");
  EXPECT_EQ(nested.finder.find(child, fd, id_of(here.get())).path, "/theirs");
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  EXPECT_EQ(root.finder.find(child, fd, id_of(here.get())).path, "");
  ::close(ready[0]);
  ::close(ready[1]);
}

TEST_F(PathFinderTest, BindMounts) {
  in_namespace([this] {
    fs::create_directory(dir_ / "bound");
    bind(dir_ / "root/sub", dir_ / "bound");
    Finder root{dir_ / "root"};
    Finder bound{dir_ / "bound"};
    Finder other{dir_ / "elsewhere"};
    const UniqueFd through_bind = create(dir_ / "bound/f");
    const UniqueFd through_root = create(dir_ / "root/sub/g");
    EXPECT_EQ(root.find(through_bind).path, "/sub/f");
    EXPECT_EQ(root.find(through_root).path, "/sub/g");
    EXPECT_EQ(bound.find(through_bind).path, "/f");
    EXPECT_EQ(bound.find(through_root).path, "/g");
    EXPECT_TRUE(other.find(through_bind).outside);
    const UniqueFd beside = create(dir_ / "root/h");
    EXPECT_TRUE(bound.find(beside).outside);

    // A directory of elsewhere mounted inside the root: seen there.
    fs::create_directory(dir_ / "root/in");
    const UniqueFd far = create(dir_ / "elsewhere/far");
    EXPECT_TRUE(root.find(far).outside);
    bind(dir_ / "elsewhere", dir_ / "root/in");
    EXPECT_EQ(root.find(far).path, "/in/far") << "mounts that change are noticed";
    ASSERT_EQ(::umount((dir_ / "root/in").c_str()), 0);
    EXPECT_TRUE(root.find(far).outside);
  });
}

TEST_F(PathFinderTest, OtherFileSystemsBelowTheRoot) {
  in_namespace([this] {
    const fs::path mem = dir_ / "root/sub/mem \\x";
    fs::create_directory(mem);
    ASSERT_EQ(::mount("tmpfs", mem.c_str(), "tmpfs", 0, nullptr), 0);
    Finder root{dir_ / "root"};
    const UniqueFd fd = create(mem / "f");
    EXPECT_EQ(root.find(fd).path, "/sub/mem \\x/f");
    ASSERT_EQ(::mount("tmpfs", (dir_ / "elsewhere").c_str(), "tmpfs", 0, nullptr), 0);
    EXPECT_TRUE(root.find(create(dir_ / "elsewhere/f")).outside) << "not mounted below the root";
  });
}

TEST_F(PathFinderTest, FilesHiddenByAMountAreNotNamed) {
  in_namespace([this] {
    Finder root{dir_ / "root"};
    const UniqueFd fd = create(dir_ / "root/sub/f");
    ASSERT_EQ(::mount("tmpfs", (dir_ / "root/sub").c_str(), "tmpfs", 0, nullptr), 0);
    const UniqueFd over = create(dir_ / "root/sub/f");
    EXPECT_EQ(root.find(fd).path, "");
    EXPECT_FALSE(root.find(fd).outside);
    EXPECT_EQ(root.find(over).path, "/sub/f");
    // A mount over the root itself hides nothing from who holds the root open.
    const UniqueFd below = create(dir_ / "root/below");
    ASSERT_EQ(::mount("tmpfs", (dir_ / "root").c_str(), "tmpfs", 0, nullptr), 0);
    EXPECT_EQ(root.find(below).path, "/below");
  });
}

TEST_F(PathFinderTest, AProcessInAnotherMountNamespace) {
  in_namespace([this] {
    int ready[2];
    ASSERT_EQ(::pipe(ready), 0);
    const UniqueFd here = create(dir_ / "root/sub/f");
    Finder root{dir_ / "root"};
    const pid_t child = ::fork();
    if (child == 0) {
      fs::create_directory(dir_ / "theirs");
      int fd = -1;
      if (::unshare(CLONE_NEWNS) == 0 &&
          ::mount((dir_ / "root/sub").c_str(), (dir_ / "theirs").c_str(), nullptr, MS_BIND,
                  nullptr) == 0) {
        fd = ::open((dir_ / "theirs/f").c_str(), O_RDONLY);
      }
      if (::write(ready[1], &fd, sizeof fd) == sizeof fd) ::pause();
      ::_exit(1);
    }
    int fd = -1;
    ASSERT_EQ(::read(ready[0], &fd, sizeof fd), static_cast<ssize_t>(sizeof fd));
    ASSERT_GE(fd, 0);
    EXPECT_EQ(root.finder.find(child, fd, id_of(here.get())).path, "/sub/f");
    ::kill(child, SIGKILL);
    ::waitpid(child, nullptr, 0);
  });
}

// The figure is for people: the test does not fail on a slow machine.
TEST_F(PathFinderTest, ManyInARow) {
  Finder root{dir_ / "root"};
  const UniqueFd fd = create(dir_ / "root/sub/deep/f");
  const auto begun = std::chrono::steady_clock::now();
  for (int i = 0; i < 10'000; ++i) ASSERT_EQ(root.find(fd).path, "/sub/deep/f");
  const auto took = std::chrono::steady_clock::now() - begun;
  const auto each = std::chrono::duration_cast<std::chrono::microseconds>(took).count() / 10'000;
  RecordProperty("microseconds_each", static_cast<int>(each));
}

}  // namespace
}  // namespace latchfs::posix
