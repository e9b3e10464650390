// Names that a directory was just read with: InodeTable::lookup() with an inode number.
#include <sys/mount.h>

#include <chrono>
#include <cstring>
#include <thread>

#include "posix_inode_table_fixture.h"

namespace latchfs::posix {
namespace {

class InodeListingTest : public InodeTableTest {
 protected:
  // As for a listing of the directory.
  Entry list(std::uint64_t parent, const std::string& path) {
    const std::string name = std::filesystem::path{path}.filename();
    const auto found = table().lookup(parent, name.c_str(), stat_at(path).st_ino);
    EXPECT_TRUE(found) << name << ": " << found.error().message();
    return found ? *found : Entry{};
  }
  // Nothing known has a descriptor, so that only what is asked in full gets one.
  bool let_pins_go() {
    if (!by_handle()) return true;
    const auto patience = std::chrono::steady_clock::now() + std::chrono::seconds{20};
    while (table().counts().pins != 0 && std::chrono::steady_clock::now() < patience) {
      std::this_thread::sleep_for(std::chrono::milliseconds{20});
    }
    return table().counts().pins == 0;
  }
  // Until what was made before has another time of birth than what is made after.
  static void let_clock_tick() { std::this_thread::sleep_for(std::chrono::milliseconds{30}); }
  // Negative and another each time where there is none.
  std::int64_t birth_at(const std::string& name) {
    const auto full = full_stat_of(AT_FDCWD, at(name).c_str(), AT_SYMLINK_NOFOLLOW);
    static std::int64_t none = 0;
    return full && full->birth != 0 ? full->birth : --none;
  }
  // How many nodes have a descriptor, where that tells anything.
  bool pinned(std::size_t count) {
    return !by_handle() || birth_at(".") < 0 || table().counts().pins == count;
  }
};

// Whatever way it is answered; by handle, it is by one statx(2), which opens nothing.
TEST_P(InodeListingTest, AListedFileThatIsKnownIsToldAsItIs) {
  make_table(512, 60, 0);
  make_dir("d");
  make_file("d/f", "hello");
  ASSERT_EQ(::mkfifo(at("d/p").c_str(), 0600), 0);
  ASSERT_EQ(::symlink("/etc", at("d/l").c_str()), 0);
  let_clock_tick();
  const Entry d = look(1, "d");
  for (const char* name : {"f", "p", "l"}) {
    const std::string path = std::string{"d/"} + name;
    const Entry first = look(d.node, name);
    ASSERT_TRUE(let_pins_go());
    if (std::strcmp(name, "f") == 0) make_file(path, "hello, world", 04751);
    ASSERT_EQ(::link(at(path).c_str(), at("d/more").c_str()), 0);
    ASSERT_EQ(::lchown(at(path).c_str(), ::geteuid(), ::getegid()), 0);
    const struct stat now = stat_at(path);
    const Entry again = list(d.node, path);
    EXPECT_EQ(again.node, first.node);
    EXPECT_EQ(again.generation, first.generation);
    EXPECT_EQ(again.id, first.id);
    EXPECT_EQ(std::memcmp(&again.attr, &now, sizeof now), 0) << "to the last bit";
    EXPECT_TRUE(pinned(1)) << "d's, and it is answered from";
    EXPECT_EQ(ino_through(first.node), first.id.ino);
    table().forget(first.node, 1);
    EXPECT_TRUE(table().pin(first.node)) << "it took a reference";
    table().forget(first.node, 1);
    EXPECT_FALSE(table().pin(first.node));
    const Entry unknown = list(d.node, path);
    EXPECT_EQ(unknown.node, first.node);
    EXPECT_EQ(ino_through(unknown.node), first.id.ino);
    ASSERT_EQ(::unlink(at("d/more").c_str()), 0);
  }
  EXPECT_EQ(table().lookup(d.node, "none", 17).error(), errno_code(ENOENT));
  EXPECT_EQ(table().lookup(d.node, "none", stat_at("d/f").st_ino).error(), errno_code(ENOENT));
  EXPECT_EQ(table().lookup(d.node, "../d", d.id.ino).error(), errno_code(EINVAL));
  EXPECT_EQ(list(d.node, "d/..").node, 1u);
}

// Two files of one number can be born within a tick, not two seconds apart.
TEST_P(InodeListingTest, AFileIsKnownByItsBirthOnlyWhenThatIsPast) {
  make_file("f");
  const Entry f = look(1, "f");
  std::this_thread::sleep_for(std::chrono::milliseconds{2100});
  ASSERT_TRUE(let_pins_go());
  list(1, "f");
  EXPECT_TRUE(pinned(1)) << "was looked up too young";
  ASSERT_TRUE(let_pins_go());
  list(1, "f");
  EXPECT_TRUE(pinned(0));
  EXPECT_EQ(ino_through(f.node), f.id.ino);
}

TEST_P(InodeListingTest, AListedNameMayHaveGotAnotherFile) {
  make_table(512, 60, 0);
  // All of one tick, if it can be had.
  for (int tries = 0; tries < 100 && birth_at("a") != birth_at("b"); ++tries) {
    for (const char* name : {"a", "b"}) ::unlink(at(name).c_str());
    for (const char* name : {"a", "b"}) {
      const UniqueFd fd{::open(at(name).c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600)};
    }
  }
  make_file("a", "a");
  make_file("b", "bb");
  make_dir("c");
  let_clock_tick();
  const Entry a = look(1, "a");
  const Entry b = look(1, "b");
  const Entry c = look(1, "c");
  ASSERT_TRUE(let_pins_go());
  const ino_t listed = a.id.ino;
  // Between the reading of the directory and the look at its names.
  ASSERT_EQ(::rename(at("b").c_str(), at("a").c_str()), 0);
  const auto found = table().lookup(1, "a", listed);
  ASSERT_TRUE(found);
  EXPECT_EQ(found->node, b.node);
  EXPECT_EQ(found->attr.st_size, 2);
  EXPECT_EQ(ino_through(found->node), b.id.ino);
  const auto dir = table().lookup(1, "c", b.id.ino);
  ASSERT_TRUE(dir);
  EXPECT_EQ(dir->node, c.node);
  EXPECT_TRUE(S_ISDIR(dir->attr.st_mode));
}

TEST_P(InodeListingTest, AListedInodeNumberMayHaveANewFile) {
  make_table(512, 60, 0);
  for (int i = 0; i < 8; ++i) {
    make_file("f", "old");
    let_clock_tick();
    const Entry old = look(1, "f");
    ASSERT_TRUE(let_pins_go());
    ASSERT_EQ(::unlink(at("f").c_str()), 0);
    make_file("f", "newer");
    if (stat_at("f").st_ino != old.id.ino) {
      table().forget(old.node, 1);
      ASSERT_EQ(::unlink(at("f").c_str()), 0);
      continue;
    }
    EXPECT_EQ(table().pin(old.node).error(), errno_code(ESTALE));
    const Entry fresh = list(1, "f");
    EXPECT_EQ(fresh.node, old.node);
    EXPECT_NE(fresh.generation, old.generation);
    EXPECT_EQ(fresh.attr.st_size, 5);
    EXPECT_EQ(ino_through(fresh.node), fresh.id.ino);
    return;
  }
  GTEST_SKIP() << "no inode number was used twice";
}

// What is removed through the mount keeps its number, so it is not the next file's.
TEST_P(InodeListingTest, AListedNameOfARemovedFileIsANewFile) {
  make_table(512, 60, 0);
  make_file("f", "old");
  let_clock_tick();
  const Entry old = look(1, "f");
  remove("f");
  make_file("f", "newer");
  const Entry fresh = list(1, "f");
  EXPECT_NE(fresh.node, old.node);
  EXPECT_EQ(fresh.attr.st_size, 5);
  EXPECT_EQ(ino_through(old.node), old.id.ino);
}

TEST_P(InodeListingTest, AListedNameMayBeAMountPoint) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root to mount";
  make_table(512, 60, 0);
  make_dir("m");
  make_dir("own");
  make_dir("same");
  make_file("same/f");
  UniqueFd under = path_fd("own");
  let_clock_tick();
  const Entry covered = look(1, "m");
  const Entry own = look(1, "own");
  const Entry same = look(1, "same");
  ASSERT_TRUE(let_pins_go());
  ASSERT_EQ(::mount("tmpfs", at("m").c_str(), "tmpfs", 0, "size=1m"), 0);
  ASSERT_EQ(::mount("tmpfs", at("own").c_str(), "tmpfs", 0, "size=1m"), 0);
  ASSERT_EQ(::mount(at("same").c_str(), at("same").c_str(), nullptr, MS_BIND, nullptr), 0);
  make_file("m/f", "x");
  table().set_own_mount(stat_at("own").st_dev, std::move(under));
  {
    // getdents(2) tells the covered directory's number, stat(2) the other one.
    for (const std::uint64_t listed : {covered.id.ino, stat_at("m").st_ino}) {
      const auto m = table().lookup(1, "m", listed);
      ASSERT_TRUE(m);
      EXPECT_EQ(m->id, file_id(stat_at("m")));
      EXPECT_NE(m->node, covered.node);
    }
    const auto still = table().lookup(1, "own", own.id.ino);
    ASSERT_TRUE(still);
    EXPECT_EQ(still->node, own.node);
    EXPECT_EQ(still->id, own.id) << "what is under the mount";
    const std::size_t before = table().counts().pins;
    EXPECT_EQ(list(1, "same").node, same.node);
    EXPECT_TRUE(pinned(before + 1)) << "not by statx(2) alone";
    // On the other device it is as on the first.
    const Entry m = look(1, "m");
    let_clock_tick();
    const Entry f = look(m.node, "f");
    EXPECT_EQ(NodeIds::slot_of(f.node), 1u);
    ASSERT_TRUE(let_pins_go());
    const Entry again = list(m.node, "m/f");
    EXPECT_EQ(again.node, f.node);
    EXPECT_EQ(again.attr.st_ino, f.node) << "as shown";
    EXPECT_TRUE(pinned(1)) << "m's, that was asked";
  }
  close_table();
  for (const char* name : {"m", "own", "same"}) {
    EXPECT_EQ(::umount2(at(name).c_str(), MNT_DETACH), 0);
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, InodeListingTest, testing::Values(true, false),
                         [](const auto& param) { return param.param ? "ByHandle" : "ByName"; });

}  // namespace
}  // namespace latchfs::posix
