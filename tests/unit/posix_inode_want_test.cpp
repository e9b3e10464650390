// What the inode table says when nothing more can be opened: not now.
#include <sys/mount.h>
#include <sys/resource.h>

#include <algorithm>
#include <cerrno>
#include <vector>

#include "posix_inode_table_fixture.h"

namespace latchfs::posix {
namespace {

class InodeWantTest : public InodeTableTest {};

// No more than this can be opened while one of these lives, and what others close meanwhile.
class NoDescriptors {
 public:
  explicit NoDescriptors(std::size_t but = 0) {
    EXPECT_EQ(::getrlimit(RLIMIT_NOFILE, &before_), 0);
    const rlimit few{std::min<rlim_t>(before_.rlim_cur, 1024), before_.rlim_max};
    EXPECT_EQ(::setrlimit(RLIMIT_NOFILE, &few), 0);
    for (int fd = 0; fd >= 0;) {
      fd = ::fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 0);
      if (fd >= 0) all_.emplace_back(fd);
    }
    EXPECT_EQ(errno, EMFILE);
    EXPECT_GT(all_.size(), but);
    while (but-- != 0 && !all_.empty()) all_.pop_back();
  }
  ~NoDescriptors() { ::setrlimit(RLIMIT_NOFILE, &before_); }
  NoDescriptors(const NoDescriptors&) = delete;
  NoDescriptors& operator=(const NoDescriptors&) = delete;

 private:
  rlimit before_{};
  std::vector<UniqueFd> all_;
};

// A server of NFS that is told ESTALE tells its clients, and they give the file up.
TEST_P(InodeWantTest, WantOfDescriptorsIsNotTheEndOfAFile) {
  if (!by_handle()) GTEST_SKIP() << "what is forgotten is gone";
  make_dir("d");
  make_file("d/f");
  make_file("cached");
  const Entry d = look(1, "d");
  const Entry f = look(d.node, "f");
  for (const auto node : {f.node, d.node}) table().forget(node, 1);
  if (!table().lookup(f.node, ".")) {
    GTEST_SKIP() << "not on ext4: a forgotten handle cannot be had again";
  }
  table().forget(f.node, 1);
  ASSERT_EQ(table().counts().pins, 0u);
  {
    const NoDescriptors none;
    EXPECT_EQ(table().lookup(f.node, ".").error(), errno_code(ENOMEM));
    EXPECT_EQ(table().lookup(d.node, ".").error(), errno_code(ENOMEM));
    EXPECT_EQ(table().lookup(d.node, "..").error(), errno_code(ENOMEM));
    EXPECT_EQ(table().lookup(1, "d").error(), errno_code(EMFILE));
  }
  look(1, "cached");
  {
    const NoDescriptors none;
    EXPECT_EQ(look(f.node, ".").generation, f.generation) << "by the one that was cached";
    EXPECT_EQ(look(f.node, ".").node, f.node);
  }
  EXPECT_EQ(look(d.node, ".").generation, d.generation);
  EXPECT_EQ(look(d.node, "..").node, 1u);
}

// Met without a descriptor, a file system would be one without handles for good.
TEST_P(InodeWantTest, AFileSystemIsMetWhenItCanBeLookedAt) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root to mount";
  make_dir("m");
  const Unmounted at_last{{at("m")}};
  ASSERT_EQ(::mount("tmpfs", at("m").c_str(), "tmpfs", 0, "size=1m"), 0);
  make_file("m/f");
  for (const std::size_t room : {0, 1, 2}) {
    const NoDescriptors few{room};
    const auto met = table().lookup(1, "m");
    if (met) {
      table().forget(met->node, 1);
    } else {
      EXPECT_EQ(met.error(), errno_code(EMFILE));
    }
  }
  const Entry m = look(1, "m");
  EXPECT_EQ(NodeIds::slot_of(m.node), 1u);
  EXPECT_EQ(table().has_handles(stat_at("m").st_dev), by_handle());
  EXPECT_EQ(ino_through(look(m.node, "f").node), stat_at("m/f").st_ino);
  close_table();
}

INSTANTIATE_TEST_SUITE_P(Kinds, InodeWantTest, testing::Values(true, false),
                         [](const auto& param) { return param.param ? "ByHandle" : "ByName"; });

}  // namespace
}  // namespace latchfs::posix
