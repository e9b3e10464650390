#include <sys/mount.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "posix_inode_table_fixture.h"

namespace latchfs::posix {
namespace {

TEST_P(InodeTableTest, FindsWhatIsThere) {
  make_dir("d");
  make_file("d/f", "hello");
  const Entry d = look(1, "d");
  const Entry f = look(d.node, "f");
  EXPECT_EQ(f.attr.st_size, 5);
  EXPECT_EQ(f.node, stat_at("d/f").st_ino);
  EXPECT_NE(f.generation, 0u);
  EXPECT_EQ(ino_through(f.node), stat_at("d/f").st_ino);
  EXPECT_EQ(table().lookup(1, "none").error(), errno_code(ENOENT));
  EXPECT_EQ(table().lookup(f.node, "x").error(), errno_code(ENOTDIR));
  EXPECT_EQ(table().lookup(1, "d/f").error(), errno_code(EINVAL));
  EXPECT_EQ(table().lookup(1, "").error(), errno_code(EINVAL));
  EXPECT_EQ(table().lookup(1, std::string(300, 'x').c_str()).error(), errno_code(ENAMETOOLONG));
}

TEST_P(InodeTableTest, DoesNotFollowSymlinks) {
  ASSERT_EQ(::symlink("/etc", at("l").c_str()), 0);
  const Entry l = look(1, "l");
  EXPECT_TRUE(S_ISLNK(l.attr.st_mode));
  EXPECT_EQ(table().lookup(l.node, "passwd").error(), errno_code(ENOTDIR));
}

TEST_P(InodeTableTest, CountsReferences) {
  make_file("f");
  const Entry f = look(1, "f");
  look(1, "f");
  look(1, "f");
  table().forget(f.node, 2);
  EXPECT_TRUE(table().pin(f.node));
  table().forget(f.node, 1);
  EXPECT_EQ(table().pin(f.node).error(), errno_code(ESTALE));
  EXPECT_EQ(table().counts().inodes, 0u);
  EXPECT_EQ(table().counts().pins, 0u);
  table().forget(f.node, 1);  // of nothing
  table().forget(1, 5);
  EXPECT_TRUE(table().pin(1));
}

TEST_P(InodeTableTest, OneNodeForAllLinks) {
  make_file("a");
  ASSERT_EQ(::link(at("a").c_str(), at("b").c_str()), 0);
  EXPECT_EQ(look(1, "a").node, look(1, "b").node);
}

TEST_P(InodeTableTest, AFileThatWasMadeIsReachedWhenItsMakerHasClosedIt) {
  UniqueFd fd{::open(at("f").c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600)};
  const auto made = table().adopt_open(fd.get(), 1, "f");
  ASSERT_TRUE(made);
  EXPECT_EQ(made->id.ino, stat_at("f").st_ino);
  EXPECT_EQ(table().counts().pins, by_handle() ? 0u : 1u);
  fd = UniqueFd{};
  EXPECT_EQ(ino_through(made->node), made->id.ino);
  // By a descriptor that is nobody's right to write: the file could not be run.
  const auto pin = table().pin(made->node);
  ASSERT_TRUE(pin);
  EXPECT_EQ(::fcntl((*pin)->fd.get(), F_GETFL) & O_PATH, O_PATH);
  const Entry found = look(1, "f");
  EXPECT_EQ(found.node, made->node);
  EXPECT_EQ(found.generation, made->generation);

  const UniqueFd nameless{::open(at(".").c_str(), O_RDWR | O_TMPFILE | O_CLOEXEC, 0600)};
  ASSERT_TRUE(nameless);
  const auto hidden = table().adopt_open(nameless.get(), 1, "");
  ASSERT_TRUE(hidden);
  EXPECT_EQ(table().counts().pins, 2u);
  EXPECT_EQ(ino_through(hidden->node), hidden->id.ino);
}

TEST_P(InodeTableTest, FollowsRenames) {
  make_dir("d");
  make_dir("e");
  make_file("d/f");
  const Entry d = look(1, "d");
  const Entry e = look(1, "e");
  const Entry f = look(d.node, "f");
  ASSERT_EQ(::rename(at("d/f").c_str(), at("e/g").c_str()), 0);
  table().renamed(f.node, e.node, "g");
  ASSERT_EQ(::rename(at("e").c_str(), at("z").c_str()), 0);
  table().renamed(e.node, 1, "z");
  for (int i = 0; i < 2000; ++i) make_file("f" + std::to_string(i));
  touch_all();
  EXPECT_EQ(ino_through(f.node), f.attr.st_ino);
}

TEST_P(InodeTableTest, AWalkOfManyNeedsFewDescriptors) {
  constexpr int kFiles = 3000;
  for (int i = 0; i < kFiles; ++i) make_file("f" + std::to_string(i), std::to_string(i));
  const int before = open_fds();
  std::vector<Entry> all;
  for (int i = 0; i < kFiles; ++i) all.push_back(look(1, "f" + std::to_string(i)));
  EXPECT_LE(open_fds() - before, 512);
  EXPECT_EQ(table().counts().inodes, static_cast<std::size_t>(kFiles));
  for (const Entry& e : all) ASSERT_EQ(ino_through(e.node), e.attr.st_ino);
  EXPECT_LE(open_fds() - before, 512);
  for (const Entry& e : all) table().forget(e.node, 1);
  EXPECT_EQ(table().counts().inodes, 0u);
  EXPECT_LE(open_fds() - before, 2);
}

TEST_P(InodeTableTest, AReusedInodeNumberIsANewFile) {
  // ext4 and tmpfs hand a freed number out again soon; if it does not happen here, so be it.
  std::uint64_t old_node = 0;
  std::uint32_t old_generation = 0;
  for (int i = 0; i < 64; ++i) {
    make_file("f");
    const Entry f = look(1, "f");
    if (f.node == old_node) {
      EXPECT_NE(f.generation, old_generation);
      EXPECT_EQ(ino_through(f.node), f.attr.st_ino);
      table().forget(f.node, 2);  // what both files had
      EXPECT_FALSE(table().pin(f.node));
      return;
    }
    if (old_node != 0) table().forget(old_node, 1);
    old_node = f.node;
    old_generation = f.generation;
    UniqueFd fd = path_fd("f");
    ASSERT_EQ(::unlink(at("f").c_str()), 0);
    struct stat st = stat_of(fd.get()).ok() ? *stat_of(fd.get()) : f.attr;
    st.st_blocks = 8;  // as if it had some
    table().removed(std::move(fd), st);
    table().make_room();
  }
  // Without handles the descriptor that is kept keeps the number taken.
  if (by_handle()) GTEST_SKIP() << "no inode number was used twice";
}

TEST_P(InodeTableTest, ARemovedDirectoryStaysReachableUntilForgotten) {
  make_dir("d");
  const Entry d = look(1, "d");
  remove("d");
  for (int i = 0; i < 2000; ++i) make_file("f" + std::to_string(i));
  touch_all();
  table().make_room();
  EXPECT_EQ(ino_through(d.node), d.attr.st_ino);
  const int before = open_fds();
  table().forget(d.node, 1);
  EXPECT_LE(open_fds(), before - 1);  // the table closes others, unasked
}

// The kernel has looked the file up and is about to open it. On ext4 and tmpfs each new file of
// those below would have the number, and the node, of the one before.
TEST_P(InodeTableTest, ARemovedFileAndItsNumberStayUntilForgotten) {
  for (const char* content : {"", "some"}) {
    make_file("f", content);
    const Entry f = look(1, "f");
    remove("f");
    for (int i = 0; i < 32; ++i) {
      make_file("f", content);
      EXPECT_NE(stat_at("f").st_ino, f.id.ino) << "the next file is another node";
      ASSERT_EQ(::unlink(at("f").c_str()), 0);
    }
    const auto pin = table().pin(f.node);
    ASSERT_TRUE(pin) << pin.error().message();
    const UniqueFd fd{::openat(self_fds(), FdName{(*pin)->fd.get()}.c_str(), O_RDONLY | O_CLOEXEC)};
    EXPECT_TRUE(fd) << "to be opened";
    EXPECT_EQ(table().counts().kept, 1u);
    const int before = open_fds();
    table().forget(f.node, 1);
    EXPECT_EQ(table().counts().kept, 0u);
    EXPECT_LE(open_fds(), before);  // ours is the last
    EXPECT_EQ(table().pin(f.node).error(), errno_code(ESTALE));
  }
}

TEST_P(InodeTableTest, ARemovedFilesSpaceIsHadWhereThereIsNone) {
  make_file("f", std::string(10000, 'x'));
  const Entry f = look(1, "f");
  remove("f");
  EXPECT_EQ(table().counts().pins, 0u);
  EXPECT_TRUE(table().pin(f.node));
  const int before = open_fds();
  table().make_room();
  // Without handles the descriptor is all there is.
  EXPECT_EQ(table().counts().kept, by_handle() ? 0u : 1u);
  EXPECT_LE(open_fds(), by_handle() ? before - 1 : before);
  EXPECT_EQ(table().pin(f.node).ok(), !by_handle());
}

TEST_P(InodeTableTest, RemovedFilesNeedFewDescriptors) {
  constexpr std::size_t kPins = 64;
  constexpr int kFiles = 500;
  make_table(kPins);
  const int before = open_fds();
  std::vector<Entry> all;
  for (int i = 0; i < kFiles; ++i) {
    const std::string name = "f" + std::to_string(i);
    make_file(name, i % 2 == 0 ? "some" : "");
    all.push_back(look(1, name));
    remove(name);
    ASSERT_LE(table().counts().kept, kPins);
  }
  EXPECT_EQ(table().counts().kept, kPins);
  EXPECT_LE(open_fds() - before, static_cast<int>(2 * kPins) + 1);  // one for the device
  EXPECT_EQ(ino_through(all.front().node), all.front().id.ino);
  for (const Entry& e : all) table().forget(e.node, 1);
  EXPECT_EQ(table().counts().kept, 0u);
  EXPECT_EQ(table().counts().inodes, 0u);
  EXPECT_LE(open_fds() - before, 1);
}

TEST_P(InodeTableTest, ARemovedFilesSpaceIsNotHeldForGood) {
  if (!by_handle()) GTEST_SKIP() << "without handles the descriptor is all there is";
  make_table(512, 1);
  make_dir("d");
  make_file("f", "some");
  const Entry d = look(1, "d");
  const Entry f = look(1, "f");
  remove("d");
  remove("f");
  const auto patience = std::chrono::steady_clock::now() + std::chrono::seconds{20};
  while (table().counts().kept != 1 && std::chrono::steady_clock::now() < patience) {
    std::this_thread::sleep_for(std::chrono::milliseconds{50});
  }
  EXPECT_EQ(table().counts().kept, 1u);
  EXPECT_EQ(table().pin(f.node).error(), errno_code(ESTALE));
  EXPECT_EQ(ino_through(d.node), d.id.ino);
}

TEST_P(InodeTableTest, DescriptorsUnusedForAWhileGo) {
  make_file("f");
  const Entry f = look(1, "f");
  if (!by_handle()) {
    EXPECT_EQ(table().counts().pins, 1u);
    return;
  }
  const auto patience = std::chrono::steady_clock::now() + std::chrono::seconds{20};
  while (table().counts().pins != 0 && std::chrono::steady_clock::now() < patience) {
    std::this_thread::sleep_for(std::chrono::milliseconds{50});
  }
  EXPECT_EQ(table().counts().pins, 0u);
  EXPECT_EQ(ino_through(f.node), f.attr.st_ino);
}

// On other file systems, whose descriptors stay, too much may be known.
TEST_P(InodeTableTest, DescriptorsUnusedForAWhileGoBesideThoseThatStay) {
  if (!by_handle()) GTEST_SKIP() << "all of them stay";
  make_dir("proc");
  make_file("f", "some");
  const Unmounted at_last{{at("proc")}};
  ASSERT_EQ(::mount("proc", at("proc").c_str(), "proc", 0, nullptr), 0);
  // Of each shard the oldest.
  std::size_t others = 0;
  const auto visit = [&](const auto& self, std::uint64_t dir, const std::string& path) -> void {
    std::error_code none;
    for (const auto& entry : std::filesystem::directory_iterator{at(path), none}) {
      const std::string name = entry.path().filename();
      const auto found = table().lookup(dir, name.c_str());
      if (!found) continue;
      ++others;
      if (S_ISDIR(found->attr.st_mode)) self(self, found->node, path + "/" + name);
    }
  };
  visit(visit, look(look(1, "proc").node, "sys").node, "proc/sys");
  ASSERT_GT(others, 500u);
  const Entry f = look(1, "f");
  const auto is_open = [&] {
    for (const auto& fd : std::filesystem::directory_iterator{"/proc/self/fd"}) {
      std::error_code none;
      if (std::filesystem::read_symlink(fd.path(), none) == at("f")) return true;
    }
    return false;
  };
  const auto patience = std::chrono::steady_clock::now() + std::chrono::seconds{20};
  while (is_open() && std::chrono::steady_clock::now() < patience) {
    std::this_thread::sleep_for(std::chrono::milliseconds{50});
  }
  EXPECT_FALSE(is_open());
  EXPECT_GT(table().counts().pins, 0u);
  EXPECT_EQ(ino_through(f.node), f.id.ino);
  close_table();
}

TEST_P(InodeTableTest, DotIsTheNodeItself) {
  make_dir("d");
  make_file("d/f");
  const Entry d = look(1, "d");
  const Entry f = look(d.node, "f");
  EXPECT_EQ(look(f.node, ".").node, f.node);
  table().forget(f.node, 1);
  EXPECT_TRUE(table().pin(f.node));  // "." took a reference
  EXPECT_EQ(look(d.node, "..").node, 1u);
  EXPECT_EQ(look(1, "..").node, 1u);
  EXPECT_EQ(look(1, ".").node, 1u);
  // With another generation than the kernel's own the root would be another inode.
  EXPECT_EQ(look(d.node, "..").generation, 0u);
  EXPECT_EQ(look(1, "..").generation, 0u);
  EXPECT_EQ(look(1, ".").generation, 0u);
}

TEST_P(InodeTableTest, DotFindsForgottenNodesByHandle) {
  make_dir("d");
  make_file("d/f");
  const Entry d = look(1, "d");
  const Entry f = look(d.node, "f");
  table().forget(f.node, 1);
  table().forget(d.node, 1);
  const auto again = table().lookup(f.node, ".");
  if (!by_handle()) {
    EXPECT_EQ(again.error(), errno_code(ESTALE));
    return;
  }
  if (!again) GTEST_SKIP() << "not on ext4: a forgotten handle cannot be had again";
  EXPECT_EQ(again->node, f.node);
  EXPECT_EQ(again->generation, f.generation);
  EXPECT_EQ(look(d.node, "..").node, 1u);
  // What lies outside is no node of this mount.
  struct stat above {};
  ASSERT_EQ(::stat(at("..").c_str(), &above), 0);
  EXPECT_EQ(table().lookup(above.st_ino, ".").error(), errno_code(ESTALE));
  EXPECT_EQ(table().lookup(0, ".").error(), errno_code(ESTALE));
  EXPECT_EQ(table().lookup(~std::uint64_t{0}, ".").error(), errno_code(ESTALE));
  EXPECT_EQ(table().lookup((std::uint64_t{5} << 52) | 7, ".").error(), errno_code(ESTALE));
  EXPECT_EQ(table().lookup(3999999999, ".").error(), errno_code(ESTALE));
}

TEST_P(InodeTableTest, CrossesIntoOtherFileSystems) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root to mount";
  make_dir("m");
  ASSERT_EQ(::mount("tmpfs", at("m").c_str(), "tmpfs", 0, "size=1m"), 0);
  make_file("m/f", "x");
  {
    const Entry m = look(1, "m");
    const Entry f = look(m.node, "f");
    EXPECT_EQ(NodeIds::slot_of(f.node), 1u);
    EXPECT_EQ(f.attr.st_ino, f.node);  // as shown: unique in the mount
    EXPECT_EQ(f.id.ino, stat_at("m/f").st_ino);
    EXPECT_EQ(ino_through(f.node), stat_at("m/f").st_ino);
    EXPECT_EQ(table().shown_ino(stat_at("m/f").st_dev, f.id.ino), f.node);
    EXPECT_EQ(table().shown_ino(stat_at(".").st_dev, 17), 17u);
  }
  close_table();
  EXPECT_EQ(::umount2(at("m").c_str(), MNT_DETACH), 0);
}

// The root of a tmpfs has the inode number 1, and that node is the mount's root.
TEST_P(InodeTableTest, AFileHasOneDealtNumberAsLongAsAnybodyKnowsIt) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root to mount";
  make_dir("t");
  const Unmounted at_last{{at("t/source/m"), at("t")}};
  ASSERT_EQ(::mount("tmpfs", at("t").c_str(), "tmpfs", 0, "size=1m"), 0);
  make_dir("t/source");
  make_dir("t/source/m");
  ASSERT_EQ(::mount(at("t").c_str(), at("t/source/m").c_str(), nullptr, MS_BIND, nullptr), 0);
  const auto made = InodeTable::create(path_fd("t/source"), {by_handle(), 512});
  ASSERT_TRUE(made);
  InodeTable& inodes = **made;
  const auto m = inodes.lookup(1, "m");
  ASSERT_TRUE(m);
  ASSERT_TRUE(NodeIds::dealt(m->node)) << m->id.ino;
  inodes.forget(m->node, 1);
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 2000; ++i) {
        const auto one = inodes.lookup(1, "m");
        const auto other = inodes.lookup(1, "m");
        if (!one || !other || one->node != other->node) ++wrong;
        if (one) inodes.forget(one->node, 1);
        if (other) inodes.forget(other->node, 1);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_EQ(inodes.counts().inodes, 0u);
}

// A nested file system is not kept mounted by having been visited, nor lost by not being kept.
TEST_P(InodeTableTest, NestedFileSystemsCanBeUnmountedAfterAWhile) {
  if (!by_handle()) GTEST_SKIP() << "by name, nodes hold their descriptors until forgotten";
  const Unmounted at_last{{at("elsewhere/deep"), at("elsewhere"), at("m/deep"), at("m")}};
  const auto bind = [&](const char* from, const char* to) {
    return ::mount(at(from).c_str(), at(to).c_str(), nullptr, MS_BIND, nullptr);
  };
  const auto unmount = [&](const char* name) {
    for (int tries = 0; tries < 400; ++tries) {
      if (::umount2(at(name).c_str(), 0) == 0) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds{50});
    }
    return false;
  };
  make_dir("m");
  make_dir("elsewhere");
  ASSERT_EQ(::mount("tmpfs", at("m").c_str(), "tmpfs", 0, "size=1m"), 0);
  // Where "/" is shared, unmounting in one of the two places would do it in the other.
  ASSERT_EQ(::mount(nullptr, at("m").c_str(), nullptr, MS_PRIVATE, nullptr), 0);
  make_dir("m/deep");
  ASSERT_EQ(::mount("tmpfs", at("m/deep").c_str(), "tmpfs", 0, "size=1m"), 0);
  make_file("m/deep/f", "x");
  const Entry m = look(1, "m");
  const Entry deep = look(m.node, "deep");
  const Entry f = look(deep.node, "f");
  // Mounted twice, so that what is unmounted is still the same file system when it comes back.
  ASSERT_EQ(bind("m", "elsewhere"), 0);
  ASSERT_EQ(bind("m/deep", "elsewhere/deep"), 0);
  ASSERT_TRUE(unmount("m/deep"));
  EXPECT_EQ(table().pin(f.node).error(), errno_code(ESTALE));
  ASSERT_EQ(bind("elsewhere/deep", "m/deep"), 0);
  EXPECT_EQ(ino_through(f.node), f.id.ino) << "by the way it was entered";
  ASSERT_TRUE(unmount("m/deep"));
  ASSERT_EQ(bind("elsewhere/deep", "m/deep"), 0);
  EXPECT_EQ(look(look(look(1, "m").node, "deep").node, "f").node, f.node) << "by its name";
  ASSERT_TRUE(unmount("m/deep"));
  ASSERT_TRUE(unmount("m"));
  EXPECT_EQ(table().pin(m.node).error(), errno_code(ESTALE));
}

TEST_P(InodeTableTest, SeesTheDirectoryUnderItsOwnMount) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root to mount";
  make_dir("d");
  make_dir("d/m");
  make_file("d/m/covered");
  UniqueFd under = path_fd("d/m");
  ASSERT_EQ(::mount("tmpfs", at("d/m").c_str(), "tmpfs", 0, "size=1m"), 0);  // plays the FUSE mount
  make_file("d/m/on-top");
  table().set_own_mount(stat_at("d/m").st_dev, std::move(under));
  const Entry d = look(1, "d");
  const Entry m = look(d.node, "m");
  look(m.node, "covered");
  EXPECT_EQ(table().lookup(m.node, "on-top").error(), errno_code(ENOENT));
  close_table();
  EXPECT_EQ(::umount2(at("d/m").c_str(), MNT_DETACH), 0);
}

TEST_P(InodeTableTest, ManyThreadsAtOnce) {
  for (int i = 0; i < 50; ++i) make_file("f" + std::to_string(i));
  make_table(64);
  std::atomic<bool> stop{false};
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = t; !stop; ++i) {
        const auto found = table().lookup(1, ("f" + std::to_string(i % 50)).c_str());
        if (!found) {
          ++wrong;
          continue;
        }
        const auto pin = table().pin(found->node);
        const auto st = pin ? stat_of((*pin)->fd.get()) : Result<struct stat>{pin.error()};
        if (!st || st->st_ino != found->attr.st_ino) ++wrong;
        table().forget(found->node, 1);
      }
    });
  }
  std::this_thread::sleep_for(std::chrono::milliseconds{500});
  stop = true;
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_EQ(table().counts().inodes, 0u);
}

TEST_P(InodeTableTest, ManyThreadsRemove) {
  make_table(64);
  make_file("first");
  table().forget(look(1, "first").node, 1);  // the device has its descriptor
  const int before = open_fds();
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 200; ++i) {
        const std::string name = "f" + std::to_string(t);
        make_file(name, i % 3 == 0 ? "" : "some");
        const auto found = table().lookup(1, name.c_str());
        remove(name);
        if (t == 0 && i % 8 == 0) table().make_room();
        const auto pin = found ? table().pin(found->node) : Result<PinPtr>{found.error()};
        // Its blocks may have been given back meanwhile.
        if (!pin && pin.error() != errno_code(ESTALE)) ++wrong;
        if (pin && (*pin)->id != found->id) ++wrong;
        if (found) table().forget(found->node, 1);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_EQ(table().counts().inodes, 0u);
  EXPECT_EQ(table().counts().kept, 0u);
  EXPECT_EQ(open_fds(), before);
}

INSTANTIATE_TEST_SUITE_P(Kinds, InodeTableTest, testing::Values(true, false),
                         [](const auto& param) { return param.param ? "ByHandle" : "ByName"; });

}  // namespace
}  // namespace latchfs::posix
