// Names, attributes and bytes, as whoever runs the test.
#include <linux/falloc.h>
#include <sys/wait.h>
#include <sys/xattr.h>

#include <thread>

#include "posix/attributes.h"
#include "posix/credentials.h"
#include "posix/file_io.h"
#include "posix/names.h"
#include "posix/sys.h"
#include "posix_scratch.h"

namespace latchfs::posix {
namespace {

class FilesTest : public Scratch {
 protected:
  static Caller me() { return {::geteuid(), ::getegid(), ::getpid(), 022}; }
  static std::string content(int fd) {
    std::string text(100000, '\0');
    const auto n = read_at(fd, text.data(), text.size(), 0, me());
    text.resize(n ? *n : 0);
    return text;
  }
  UniqueFd open_at(const std::string& name, int flags) {
    return UniqueFd{::open(at(name).c_str(), flags | O_CLOEXEC)};
  }
};

TEST_F(FilesTest, AppendGoesToTheEndWhateverTheOffset) {
  make_file("f", "0123456789");
  const UniqueFd fd = open_at("f", O_RDWR | O_APPEND);
  ASSERT_TRUE(write_at(fd.get(), "ab", 2, 0, O_APPEND, me()));
  EXPECT_EQ(content(fd.get()), "0123456789ab");
  // fcntl(F_SETFL) has taken O_APPEND off since.
  ASSERT_TRUE(write_at(fd.get(), "cd", 2, 1, 0, me()));
  EXPECT_EQ(content(fd.get()), "0cd3456789ab");
  ASSERT_TRUE(write_at(fd.get(), "ef", 2, 0, O_APPEND | O_DSYNC, me()));
  EXPECT_EQ(content(fd.get()), "0cd3456789abef");
}

TEST_F(FilesTest, AppendersDoNotOverwriteEachOther) {
  make_file("f");
  constexpr int kEach = 500;
  std::vector<std::thread> writers;
  for (int w = 0; w < 4; ++w) {
    writers.emplace_back([this, w] {
      const UniqueFd fd = open_at("f", O_WRONLY | O_APPEND);
      const std::string line(10, static_cast<char>('a' + w));
      for (int i = 0; i < kEach; ++i) {
        EXPECT_TRUE(write_at(fd.get(), line.data(), line.size(), 0, O_APPEND, me()));
      }
    });
  }
  for (std::thread& w : writers) w.join();
  const std::string all = content(open_at("f", O_RDONLY).get());
  ASSERT_EQ(all.size(), 4u * kEach * 10);
  for (std::size_t i = 0; i < all.size(); i += 10) {
    EXPECT_EQ(all.substr(i, 10), std::string(10, all[i]));
  }
}

TEST_F(FilesTest, CreatingSaysWhetherItWasThere) {
  const UniqueFd d = dir();
  auto made = create_file(d.get(), "f", O_RDWR | O_CREAT | O_EXCL, 0644, me());
  ASSERT_TRUE(made);
  EXPECT_TRUE(made->fresh);
  ASSERT_TRUE(write_at(made->fd.get(), "x", 1, 0, 0, me()));
  EXPECT_EQ(create_file(d.get(), "f", O_RDWR | O_CREAT | O_EXCL, 0644, me()).error(),
            errno_code(EEXIST));
  auto found = create_file(d.get(), "f", O_RDWR | O_CREAT | O_TRUNC, 0644, me());
  ASSERT_TRUE(found);
  EXPECT_FALSE(found->fresh);
  EXPECT_EQ(content(found->fd.get()), "x");  // emptying it is for the caller to decide
}

TEST_F(FilesTest, CreatingOverSomethingElseIsStale) {
  make_dir("d");
  ASSERT_EQ(::symlink("/etc/passwd", at("l").c_str()), 0);
  ASSERT_EQ(::mkfifo(at("p").c_str(), 0666), 0);
  const UniqueFd here = dir();
  for (const char* name : {"d", "l", "p"}) {
    EXPECT_EQ(create_file(here.get(), name, O_RDWR | O_CREAT, 0644, me()).error(),
              errno_code(ESTALE))
        << name;
  }
}

TEST_F(FilesTest, OpeningDropsWhatTheBackingFileMustNotSee) {
  make_file("f", "abc");
  const UniqueFd f = path_fd("f");
  const auto fd =
      open_file(f.get(), O_RDWR | O_CREAT | O_EXCL | O_TRUNC | O_DIRECT | O_APPEND | 040, me());
  ASSERT_TRUE(fd) << fd.error().message();
  const int flags = ::fcntl(fd->get(), F_GETFL);
  EXPECT_EQ(flags & O_DIRECT, 0);
  EXPECT_EQ(flags & O_APPEND, O_APPEND);
  EXPECT_EQ(content(fd->get()), "abc");
  EXPECT_EQ(::fcntl(fd->get(), F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
}

TEST_F(FilesTest, ATruncateThroughAnOpenFileNeedsNoMode) {
  make_file("f", "0123456789");
  const UniqueFd path = path_fd("f");
  const UniqueFd fd = open_at("f", O_RDWR);
  ASSERT_EQ(::chmod(at("f").c_str(), 0), 0);
  FileRef file;
  file.path_fd = path.get();
  file.open_fd = fd.get();
  file.writable = true;
  AttrChange change;
  change.size = 4;
  ASSERT_TRUE(change_attributes(file, change, me()));
  EXPECT_EQ(content(fd.get()), "0123");
}

TEST_F(FilesTest, TimesAreSetOmittedOrNow) {
  make_file("f");
  const UniqueFd path = path_fd("f");
  FileRef file;
  file.path_fd = path.get();
  AttrChange change;
  change.times = true;
  change.atime = {100, 5};
  change.mtime = {200, 7};
  ASSERT_TRUE(change_attributes(file, change, me()));
  EXPECT_EQ(stat_at("f").st_atim.tv_sec, 100);
  EXPECT_EQ(stat_at("f").st_mtim.tv_nsec, 7);
  change.atime = {0, UTIME_OMIT};
  change.mtime = {0, UTIME_NOW};
  ASSERT_TRUE(change_attributes(file, change, me()));
  EXPECT_EQ(stat_at("f").st_atim.tv_sec, 100);
  EXPECT_GT(stat_at("f").st_mtim.tv_sec, 1000000);
}

TEST_F(FilesTest, SymlinksThemselvesAreChanged) {
  make_file("f");
  ASSERT_EQ(::symlink("f", at("l").c_str()), 0);
  const UniqueFd link = path_fd("l");
  FileRef file;
  file.path_fd = link.get();
  AttrChange change;
  change.times = true;
  change.atime = change.mtime = {300, 0};
  ASSERT_TRUE(change_attributes(file, change, me()));
  EXPECT_EQ(stat_at("l").st_mtim.tv_sec, 300);
  EXPECT_NE(stat_at("f").st_mtim.tv_sec, 300);
  EXPECT_EQ(*read_link(link.get(), me()), "f");
  const UniqueFd here = dir();
  ASSERT_TRUE(make_link(link.get(), here.get(), "l2", me()));
  EXPECT_TRUE(S_ISLNK(stat_at("l2").st_mode));
  EXPECT_EQ(stat_at("l2").st_ino, stat_at("l").st_ino);
}

TEST_F(FilesTest, ExtendedAttributes) {
  make_file("f");
  const UniqueFd f = path_fd("f");
  if (!set_xattr(f.get(), "user.a", "value", 5, XATTR_CREATE, me())) {
    GTEST_SKIP() << "no user attributes on this file system";
  }
  EXPECT_EQ(set_xattr(f.get(), "user.a", "v", 1, XATTR_CREATE, me()).error(), errno_code(EEXIST));
  char value[16];
  EXPECT_EQ(*get_xattr(f.get(), "user.a", nullptr, 0), 5u);
  EXPECT_EQ(*get_xattr(f.get(), "user.a", value, sizeof value), 5u);
  EXPECT_EQ(get_xattr(f.get(), "user.a", value, 2).error(), errno_code(ERANGE));
  EXPECT_EQ(get_xattr(f.get(), "user.b", value, 2).error(), errno_code(ENODATA));
  EXPECT_EQ(*list_xattrs(f.get(), me()), std::string("user.a", 7));
  ASSERT_TRUE(remove_xattr(f.get(), "user.a", me()));
  EXPECT_EQ(*list_xattrs(f.get(), me()), "");
}

TEST_F(FilesTest, TrustedNamesAreRootsAlone) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root";
  make_file("f", "", 0644);
  const UniqueFd f = path_fd("f");
  if (::setxattr(at("f").c_str(), "trusted.t", "1", 1, 0) != 0) GTEST_SKIP() << "not here";
  ASSERT_TRUE(set_xattr(f.get(), "user.u", "1", 1, 0, me()));
  EXPECT_NE(list_xattrs(f.get(), me())->find("trusted.t"), std::string::npos);
  EXPECT_EQ(*list_xattrs(f.get(), Caller{61001, 61001, 0, 0}), std::string("user.u", 7));
  become_daemon();
}

TEST_F(FilesTest, HolesAndRanges) {
  make_file("f", std::string(65536, 'x'));
  const UniqueFd fd = open_at("f", O_RDWR);
  ASSERT_TRUE(allocate(fd.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 4096, 8192, me()));
  EXPECT_EQ(*seek_file(fd.get(), 0, SEEK_HOLE), 4096);
  EXPECT_EQ(*seek_file(fd.get(), 4096, SEEK_DATA), 12288);
  EXPECT_EQ(seek_file(fd.get(), 70000, SEEK_DATA).error(), errno_code(ENXIO));
  make_file("g");
  const UniqueFd to = open_at("g", O_RDWR);
  EXPECT_EQ(*copy_range(fd.get(), 60000, to.get(), 100, 10000, 0, me()), 5536u);
  EXPECT_EQ(stat_at("g").st_size, 5636);
  EXPECT_TRUE(sync_file(fd.get(), true));
  EXPECT_TRUE(sync_file(fd.get(), false));
  EXPECT_TRUE(flush_file(fd.get()));
}

TEST_F(FilesTest, ADescriptorsNameWorksAfterAFork) {
  make_file("f", "abc");
  ASSERT_GE(self_fds(), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    const UniqueFd mine = path_fd("f");
    const UniqueFd fd{::openat(self_fds(), FdName{mine.get()}.c_str(), O_RDONLY)};
    ::_exit(fd && content(fd.get()) == "abc" ? 0 : 1);
  }
  int status = -1;
  ::waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
  EXPECT_STREQ(FdName{2147483647}.absolute(), "/proc/self/fd/2147483647");
}

}  // namespace
}  // namespace latchfs::posix
