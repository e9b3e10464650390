// Handles of files on the mount as an NFS server keeps them: kept over everything, of nobody else,
// and harmless whatever they say. What knfsd does is open_by_handle_at(2) on the mount.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "base/unique_fd.h"
#include "latchfs/ioctl.h"
#include "support/fs_image.h"
#include "support/lock_proc.h"
#include "support/mount_fixture.h"

namespace latchfs::test {
namespace {

namespace files = std::filesystem;

constexpr int kNode64Gen = 0x81;        // FILEID_INO64_GEN, linux/exportfs.h
constexpr int kNode64GenParent = 0x82;  // with the directory's, as subtree_check has it

// A handle as fs/fuse/inode.c fuse_encode_fh() makes it.
struct Handle {
  int type{kNode64Gen};
  std::vector<std::uint32_t> words;  // node id, high word first; generation

  [[nodiscard]] std::uint64_t node() const {
    return std::uint64_t{words.at(0)} << 32 | words.at(1);
  }
  static Handle of(std::uint64_t node, std::uint32_t generation) {
    return {kNode64Gen,
            {static_cast<std::uint32_t>(node >> 32), static_cast<std::uint32_t>(node), generation}};
  }
  bool operator==(const Handle&) const = default;
};

struct alignas(struct file_handle) Buffer {
  unsigned char raw[sizeof(struct file_handle) + MAX_HANDLE_SZ]{};
  struct file_handle* get() {
    return reinterpret_cast<struct file_handle*>(raw);
  }
  unsigned char* bytes() { return raw + sizeof(struct file_handle); }
};

Handle handle_at(const std::string& path) {
  Buffer buffer;
  buffer.get()->handle_bytes = MAX_HANDLE_SZ;
  int mount = 0;
  Handle handle;
  if (::name_to_handle_at(AT_FDCWD, path.c_str(), buffer.get(), &mount, 0) != 0) {
    ADD_FAILURE() << path << ": " << std::strerror(errno);
    return handle;
  }
  handle.type = buffer.get()->handle_type;
  handle.words.resize(buffer.get()->handle_bytes / 4);
  std::memcpy(handle.words.data(), buffer.bytes(), handle.words.size() * 4);
  EXPECT_EQ(handle.type, kNode64Gen);
  return handle;
}

// at: the mount, open.
UniqueFd open_handle_at(int at, const Handle& handle, int flags = O_PATH) {
  Buffer buffer;
  buffer.get()->handle_type = handle.type;
  buffer.get()->handle_bytes = static_cast<unsigned>(handle.words.size() * 4);
  std::memcpy(buffer.bytes(), handle.words.data(), handle.words.size() * 4);
  const int fd = ::open_by_handle_at(at, buffer.get(), flags | O_CLOEXEC | O_NOFOLLOW);
  return UniqueFd{fd};
}

UniqueFd open_handle(const std::string& mount, const Handle& handle, int flags = O_PATH) {
  const UniqueFd at{::open(mount.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
  return open_handle_at(at.get(), handle, flags);
}

int errno_of_open(const std::string& mount, const Handle& handle) {
  errno = 0;
  return open_handle(mount, handle) ? 0 : errno;
}

struct stat stat_of(int fd) {
  struct stat st {};
  EXPECT_EQ(::fstat(fd, &st), 0) << std::strerror(errno);
  return st;
}

std::string content(int fd) {
  std::array<char, 256> text{};
  const auto n = ::read(fd, text.data(), text.size());
  return n < 0 ? std::string{"errno "} + std::to_string(errno)
               : std::string{text.data(), static_cast<std::size_t>(n)};
}

void put(const std::string& path, const std::string& text) {
  std::ofstream{path} << text << std::flush;
}

// What nobody uses is forgotten: the kernel's names and inodes, and so the daemon's nodes.
void forget_everything() { std::ofstream{"/proc/sys/vm/drop_caches"} << "2\n" << std::flush; }

// A directory seen at another place as well.
class Bind {
 public:
  Bind(const std::string& from, std::string to) : to_{std::move(to)} {
    EXPECT_EQ(::mount(from.c_str(), to_.c_str(), nullptr, MS_BIND, nullptr), 0);
  }
  ~Bind() { ::umount2(to_.c_str(), MNT_DETACH); }
  Bind(const Bind&) = delete;
  Bind& operator=(const Bind&) = delete;
  // (A killed daemon's rings are taken down in the background.)
  [[nodiscard]] bool end() const {
    return locktest::poll_until([this] { return ::umount(to_.c_str()) == 0; });
  }

 private:
  const std::string to_;
};

class Handles : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    constexpr int kLeast = 320;  // MB; what mkfs.xfs wants
    image_ = std::make_unique<fsdiff::LoopImage>(kLeast, "", GetParam());
    ASSERT_TRUE(files::create_directories(image_->path() + "/source"));
    ASSERT_TRUE(files::create_directories(image_->path() + "/beside"));
    start();
  }
  void TearDown() override {
    fixture_.reset();
    remove_table(table_);
  }
  // In the table of all of this test's mounts, or in one where nothing is remembered.
  void start(bool remembering = true) {
    MountFixture::Options options;
    options.source = image_->path() + "/source";
    options.table = remembering ? table_ : table_ + "-new";
    options.owns_table = !remembering;
    fixture_.emplace(std::move(options));
  }
  // The daemon dies, as by SIGKILL, and another one takes its place.
  void restart() {
    fixture_->kill_daemon();
    fixture_->detach();
    fixture_.reset();
    forget_everything();
    start();
  }
  [[nodiscard]] std::string at(const std::string& name) const { return fixture_->mount() + name; }
  [[nodiscard]] std::string below(const std::string& name) const {
    return image_->path() + "/source" + name;
  }
  [[nodiscard]] UniqueFd open(const Handle& handle, int flags = O_PATH) const {
    return open_handle(fixture_->mount(), handle, flags);
  }
  [[nodiscard]] int error(const Handle& handle) const {
    return errno_of_open(fixture_->mount(), handle);
  }

  // One of each type, at some depth.
  void make_tree() {
    files::create_directories(at("/a/b/c"));
    put(at("/a/b/c/file"), "content");
    put(at("/top"), "top");
    ASSERT_EQ(::symlink("top", at("/link").c_str()), 0);
    ASSERT_EQ(::mkfifo(at("/a/fifo").c_str(), 0644), 0);
  }
  const std::vector<std::string> tree_{"/a",   "/a/b",  "/a/b/c", "/a/b/c/file",
                                       "/top", "/link", "/a/fifo"};
  [[nodiscard]] std::vector<Handle> handles() const {
    std::vector<Handle> all;
    for (const auto& name : tree_) all.push_back(handle_at(at(name)));
    return all;
  }
  void expect_same(const std::vector<Handle>& handles) {
    for (std::size_t i = 0; i < tree_.size(); ++i) {
      const UniqueFd fd = open(handles[i]);
      ASSERT_TRUE(fd) << tree_[i] << ": " << std::strerror(errno);
      struct stat st {};
      ASSERT_EQ(::lstat(below(tree_[i]).c_str(), &st), 0);
      EXPECT_EQ(stat_of(fd.get()).st_ino, st.st_ino) << tree_[i];
      EXPECT_EQ(stat_of(fd.get()).st_mode, st.st_mode) << tree_[i];
    }
    EXPECT_EQ(content(open(handles[3], O_RDONLY).get()), "content");
  }

  const std::string table_ = "test-handles-" + std::to_string(::getpid());
  std::unique_ptr<fsdiff::LoopImage> image_;
  std::optional<MountFixture> fixture_;
};

TEST_P(Handles, AreKeptWhenEverythingIsForgotten) {
  make_tree();
  const auto before = handles();
  forget_everything();
  expect_same(before);
  forget_everything();
  EXPECT_EQ(handles(), before);
}

TEST_P(Handles, AreKeptOverTheDeathOfTheDaemon) {
  make_tree();
  const auto before = handles();
  restart();
  expect_same(before);
  EXPECT_EQ(handles(), before);
}

TEST_P(Handles, AreKeptOverANewMountOfEverything) {
  make_tree();
  const auto before = handles();
  ASSERT_TRUE(fixture_->unmount());
  fixture_.reset();
  image_->mount_again();
  start();
  expect_same(before);
}

TEST_P(Handles, AreKeptOverRenames) {
  make_tree();
  const auto before = handles();
  ASSERT_EQ(::rename(at("/a/b/c/file").c_str(), at("/moved").c_str()), 0);
  forget_everything();
  EXPECT_EQ(content(open(before[3], O_RDONLY).get()), "content");
  restart();
  EXPECT_EQ(content(open(before[3], O_RDONLY).get()), "content");
}

TEST_P(Handles, OfDirectoriesKnowTheWayUp) {
  make_tree();
  const auto deep = handle_at(at("/a/b/c"));
  const auto above = stat_of(UniqueFd{::open(at("/a/b").c_str(), O_PATH)}.get()).st_ino;
  restart();
  const UniqueFd fd = open(deep, O_RDONLY | O_DIRECTORY);
  ASSERT_TRUE(fd) << std::strerror(errno);
  const UniqueFd up{::openat(fd.get(), "..", O_PATH)};
  EXPECT_EQ(stat_of(up.get()).st_ino, above);
  EXPECT_EQ(files::read_symlink("/proc/self/fd/" + std::to_string(fd.get())), at("/a/b/c"));
  EXPECT_EQ(content(UniqueFd{::openat(fd.get(), "file", O_RDONLY)}.get()), "content");
}

// Who asks for a directory's way up is told of the root, which the kernel has from the beginning.
TEST_P(Handles, LeadUpToTheRootThatIsThere) {
  make_tree();
  const UniqueFd root{::open(fixture_->mount().c_str(), O_RDONLY | O_DIRECTORY)};
  const auto own = handle_at(fixture_->mount());
  EXPECT_EQ(own, Handle::of(1, 0));
  const auto top = handle_at(at("/a"));
  forget_everything();
  const UniqueFd fd = open(top, O_RDONLY | O_DIRECTORY);
  ASSERT_TRUE(fd) << std::strerror(errno);
  EXPECT_EQ(handle_at(fixture_->mount()), own);
  EXPECT_EQ(error(own), 0);
  EXPECT_EQ(stat_of(UniqueFd{::openat(fd.get(), "..", O_PATH)}.get()).st_ino,
            stat_of(root.get()).st_ino);
  EXPECT_EQ(content(UniqueFd{::openat(root.get(), "top", O_RDONLY)}.get()), "top");
}

TEST_P(Handles, OfRemovedFilesAreStale) {
  make_tree();
  const auto before = handles();
  ASSERT_EQ(::unlink(at("/a/b/c/file").c_str()), 0);
  ASSERT_EQ(::unlink(below("/top").c_str()), 0);  // behind the mount's back
  // The daemon hears of the last close, and of what is forgotten, when nobody waits for it; until
  // then a removed file is as alive as one that is open.
  for (const auto& handle : {before[3], before[4]}) {
    EXPECT_TRUE(locktest::poll_until([&] {
      forget_everything();
      return error(handle) == ESTALE;
    })) << error(handle);
  }
  restart();
  EXPECT_EQ(error(before[3]), ESTALE);
  EXPECT_EQ(error(before[4]), ESTALE);
}

// ENOMEM is what an NFS client asks again after; ESTALE would be for good.
TEST_P(Handles, AreNotStaleForWantOfDescriptors) {
  make_tree();
  const auto before = handles();
  const UniqueFd mount{::open(fixture_->mount().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
  rlimit many{};
  ASSERT_EQ(::prlimit(fixture_->daemon(), RLIMIT_NOFILE, nullptr, &many), 0);
  const rlimit none{3, many.rlim_max};  // all of which are in use
  for (const std::size_t i : {3, 1}) {
    EXPECT_TRUE(locktest::poll_until([&] {
      forget_everything();
      EXPECT_EQ(::prlimit(fixture_->daemon(), RLIMIT_NOFILE, &none, nullptr), 0);
      errno = 0;
      const bool opened{open_handle_at(mount.get(), before[i])};  // it is known yet
      const int err = errno;
      EXPECT_EQ(::prlimit(fixture_->daemon(), RLIMIT_NOFILE, &many, nullptr), 0);
      EXPECT_TRUE(opened || err == ENOMEM) << tree_[i] << ": " << std::strerror(err);
      return !opened;
    })) << tree_[i];
  }
  expect_same(before);
}

// The number of a removed file is soon another's (but on btrfs, which never gives one out twice).
TEST_P(Handles, AreNotAnotherFilesThatHasTheInodeNumber) {
  for (const bool behind : {false, true}) {
    put(at("/old"), "old");
    const auto old = handle_at(at("/old"));
    const auto ino = stat_of(UniqueFd{::open(at("/old").c_str(), O_PATH)}.get()).st_ino;
    ASSERT_EQ(::unlink((behind ? below("/old") : at("/old")).c_str()), 0);
    EXPECT_TRUE(locktest::poll_until([&] {
      forget_everything();
      return error(old) == ESTALE;
    })) << error(old);
    std::optional<std::string> heir;
    for (int i = 0; i < 300 && !heir; ++i) {
      const std::string name = "/new" + std::to_string(behind) + "-" + std::to_string(i);
      put(behind ? below(name) : at(name), "new");
      struct stat st {};
      ASSERT_EQ(::stat(below(name).c_str(), &st), 0);
      if (st.st_ino == ino) heir = name;
    }
    EXPECT_EQ(heir.has_value(), std::string{GetParam()} != "btrfs");
    EXPECT_EQ(error(old), ESTALE);
    if (heir) {
      const auto now = handle_at(at(*heir));
      EXPECT_EQ(now.node(), old.node());
      EXPECT_NE(now, old);
      EXPECT_EQ(error(old), ESTALE);
      EXPECT_EQ(content(open(now, O_RDONLY).get()), "new");
      restart();
      EXPECT_EQ(error(old), ESTALE);
      EXPECT_EQ(content(open(now, O_RDONLY).get()), "new");
    }
  }
}

TEST_P(Handles, LeadToNothingThatTheyDoNotName) {
  make_tree();
  const auto known = handles();
  std::mt19937_64 random{20261123};
  const auto any = [&random] { return static_cast<std::uint32_t>(random()); };
  // Node ids of all kinds: near real ones, the control tree's, other devices', dealt ones.
  const auto some_node = [&] {
    const std::uint64_t node = known[random() % known.size()].node();
    switch (random() % 6) {
      case 0:
        return node;
      case 1:
        return node + random() % 64;
      case 2:
        return node | std::uint64_t{1} << (52 + random() % 12);
      case 3:
        return random() % 64;
      case 4:
        return std::uint64_t{511} << 52 | random() % 16;
      default:
        return random();
    }
  };
  for (int i = 0; i < 3000; ++i) {
    if (i % 500 == 0) forget_everything();
    Handle forged = Handle::of(some_node(), any());
    if (random() % 4 == 0) forged.type = kNode64GenParent;
    if (random() % 8 == 0) forged.words.resize(random() % 16, any());
    if (random() % 16 == 0) forged.type = static_cast<int>(random() % 256);
    if (forged.type == kNode64GenParent) forged.words.resize(6, any());
    const int got = error(forged);
    EXPECT_TRUE(got == ESTALE || got == EINVAL || got == EOVERFLOW)
        << i << ": type " << forged.type << ", errno " << got;
  }
  expect_same(known);
}

// What is on the same file system, but not below SOURCE: its own handle says all that is needed.
TEST_P(Handles, OfDirectoriesBesideTheSourceAreStale) {
  files::create_directories(image_->path() + "/beside/secret");
  const auto own = handle_at(fixture_->mount());
  for (const char* const name : {"/beside", "/beside/secret", ""}) {
    struct stat st {};
    ASSERT_EQ(::stat((image_->path() + name).c_str(), &st), 0);
    Buffer native;
    native.get()->handle_bytes = MAX_HANDLE_SZ;
    int mount = 0;
    ASSERT_EQ(
        ::name_to_handle_at(AT_FDCWD, (image_->path() + name).c_str(), native.get(), &mount, 0), 0);
    // Its generation is a word of it, whichever.
    for (unsigned word = 0; word < native.get()->handle_bytes / 4; ++word) {
      std::uint32_t generation = 0;
      std::memcpy(&generation, native.bytes() + word * 4, 4);
      EXPECT_EQ(error(Handle::of(st.st_ino, generation)), ESTALE) << name;
    }
  }
  EXPECT_EQ(error(own), 0);
}

TEST_P(Handles, OfTheControlTreeAreKeptWhileTheDaemonLives) {
  make_tree();
  const auto list = handle_at(at("/.locks/list"));
  const auto mirror = handle_at(at("/.locks/files/a/b/c/file"));
  const auto query = handle_at(at("/.locks/list?ref=%2Ftop"));
  forget_everything();
  for (const auto& handle : {list, mirror, query}) {
    const UniqueFd fd = open(handle, O_RDONLY);
    ASSERT_TRUE(fd) << std::strerror(errno);
    EXPECT_EQ(content(fd.get()).rfind("{\"grants\": [", 0), 0u);
  }
  restart();
  EXPECT_EQ(content(open(list, O_RDONLY).get()).rfind("{\"grants\": [", 0), 0u);
}

TEST_P(Handles, AreTiedToTheTablesKey) {
  make_tree();
  const UniqueFd fd = open(handle_at(at("/a/b/c/file")), O_RDONLY);
  FileKey key;
  ASSERT_EQ(::ioctl(fd.get(), kIocFileKey, &key), 0) << std::strerror(errno);
  struct stat st {};
  ASSERT_EQ(::stat(below("/a/b/c/file").c_str(), &st), 0);
  EXPECT_EQ(key.dev, st.st_dev);
  EXPECT_EQ(key.ino, st.st_ino);
  EXPECT_NE(key.mount, 0u);
  EXPECT_EQ(std::string{key.table}, fixture_->table());
  const UniqueFd dir{::open(at("/a").c_str(), O_RDONLY)};
  EXPECT_EQ(::ioctl(dir.get(), kIocFileKey, &key), 0);
  ASSERT_EQ(::stat(below("/a").c_str(), &st), 0);
  EXPECT_EQ(key.ino, st.st_ino);
  const UniqueFd control{::open(at("/.locks/list").c_str(), O_RDONLY)};
  EXPECT_EQ(::ioctl(control.get(), kIocFileKey, &key), -1);
  EXPECT_EQ(errno, ENOTTY);
  EXPECT_EQ(fsdiff::as_user(1000, 1000,
                            [&] { return fsdiff::errno_of(::ioctl(fd.get(), kIocFileKey, &key)); }),
            EPERM);
}

// A file system below SOURCE, entered after a restart by a handle alone, or after others were.
TEST_P(Handles, BelowNestedFileSystemsAreKept) {
  const fsdiff::LoopImage one{320, "", GetParam()};
  const fsdiff::LoopImage two{320, "", GetParam()};
  const fsdiff::LoopImage* const nested[] = {&one, &two};
  std::vector<Handle> handles;
  std::vector<std::unique_ptr<Bind>> places;
  for (const auto* image : nested) {
    const std::string name = "/nested" + std::to_string(places.size());
    ASSERT_TRUE(files::create_directories(below(name)));
    places.push_back(std::make_unique<Bind>(image->path(), below(name)));
    // The same names in the same order: the inode numbers are the same on both.
    files::create_directories(image->path() + "/d");
    put(image->path() + "/d/f", "of" + name);
    handles.push_back(handle_at(at(name + "/d/f")));
  }
  for (const bool meet_the_second_first : {false, true}) {
    restart();
    if (meet_the_second_first) {
      static_cast<void>(handle_at(at("/nested1/d/f")));
    }
    for (std::size_t i : {1, 0}) {
      const UniqueFd fd = open(handles[i], O_RDONLY);
      EXPECT_TRUE(fd) << i << ": " << std::strerror(errno);
      EXPECT_EQ(content(fd.get()), "of/nested" + std::to_string(i));
    }
  }
  // One is unmounted: its files are stale, and not those of what comes in its place.
  fixture_->kill_daemon();
  fixture_->detach();
  fixture_.reset();
  ASSERT_TRUE(places[0]->end());
  start();
  EXPECT_EQ(error(handles[0]), ESTALE);
  fixture_->kill_daemon();
  fixture_->detach();
  fixture_.reset();
  const fsdiff::LoopImage three{320, "", GetParam()};
  files::create_directories(three.path() + "/d");
  put(three.path() + "/d/f", "of the third");
  const Bind other{three.path(), below("/nested0")};
  start();
  EXPECT_EQ(error(handles[0]), ESTALE);
  EXPECT_EQ(content(open(handles[1], O_RDONLY).get()), "of/nested1");
  fixture_.reset();
}

// Of a snapshot, files have the inode numbers and generations of the original's.
TEST_P(Handles, OfSubvolumesAreNotThoseOfTheirSnapshots) {
  if (std::string{GetParam()} != "btrfs") GTEST_SKIP() << "has no subvolumes";
  const auto btrfs = [](const std::string& words) {
    return std::system(("PATH=$PATH:/sbin btrfs subvolume " + words + " >/dev/null").c_str()) == 0;
  };
  ASSERT_TRUE(btrfs("create " + below("/work")));
  put(below("/work/f"), "before");
  ASSERT_TRUE(btrfs("snapshot " + below("/work") + " " + below("/saved")));
  put(below("/work/f"), "after!");
  const auto work = handle_at(at("/work/f"));
  const auto saved = handle_at(at("/saved/f"));
  EXPECT_NE(work, saved);
  restart();
  EXPECT_EQ(content(open(saved, O_RDONLY).get()), "before");
  EXPECT_EQ(content(open(work, O_RDONLY).get()), "after!");
  // The numbers the other way round, as if what is remembered were lost.
  fixture_->kill_daemon();
  fixture_->detach();
  fixture_.reset();
  start(false);
  EXPECT_EQ(content(UniqueFd{::open(at("/saved/f").c_str(), O_RDONLY)}.get()), "before");
  EXPECT_EQ(content(UniqueFd{::open(at("/work/f").c_str(), O_RDONLY)}.get()), "after!");
  EXPECT_EQ(error(saved), ESTALE);
  EXPECT_EQ(error(work), ESTALE);
}

INSTANTIATE_TEST_SUITE_P(OnImages, Handles, ::testing::Values("ext4", "xfs", "btrfs"),
                         [](const auto& on) { return std::string{on.param}; });

}  // namespace
}  // namespace latchfs::test
