// A table of the inodes below a test's directory.
#pragma once

#include <gtest/gtest.h>
#include <sys/mount.h>

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "posix/inode_table.h"
#include "posix/sys.h"
#include "posix_scratch.h"

namespace latchfs::posix {

// Mounts of a test, at its end.
struct Unmounted {
  ~Unmounted() {
    // Beginning with those on top; for one that went in order: EINVAL.
    for (const auto& path : paths) ::umount2(path.c_str(), MNT_DETACH);
  }
  std::vector<std::string> paths;
};

// By handle (which needs root), and by descriptor and name.
class InodeTableTest : public Scratch, public testing::WithParamInterface<bool> {
 protected:
  void SetUp() override {
    if (by_handle() && ::geteuid() != 0) GTEST_SKIP() << "open_by_handle_at needs root";
    Scratch::SetUp();
    make_table(512);
  }
  [[nodiscard]] static bool by_handle() { return GetParam(); }
  void make_table(std::size_t pins, std::uint32_t grace = 60, std::uint32_t settled = 2) {
    auto made = InodeTable::create(dir(), {by_handle(), pins, grace, settled});
    ASSERT_TRUE(made);
    table_ = std::move(*made);
  }
  InodeTable& table() { return *table_; }
  void close_table() { table_.reset(); }
  // Descriptors go when there are too many: this looks at everything in the root.
  void touch_all() {
    for (const auto& entry : std::filesystem::directory_iterator{at(".")}) {
      static_cast<void>(table().lookup(1, entry.path().filename().c_str()));
    }
  }

  Entry look(std::uint64_t parent, const std::string& name) {
    const auto found = table().lookup(parent, name.c_str());
    EXPECT_TRUE(found) << name << ": " << found.error().message();
    return found ? *found : Entry{};
  }
  ino_t ino_through(std::uint64_t node) {
    const auto pin = table().pin(node);
    if (!pin) return 0;
    const auto st = stat_of((*pin)->fd.get());
    return st ? st->st_ino : 0;
  }

  // Removes a name as the mount does.
  void remove(const std::string& name) {
    UniqueFd fd = path_fd(name);
    ASSERT_EQ(
        ::unlinkat(AT_FDCWD, at(name).c_str(), S_ISDIR(stat_at(name).st_mode) ? AT_REMOVEDIR : 0),
        0);
    const auto st = stat_of(fd.get());
    ASSERT_TRUE(st);
    table().removed(std::move(fd), *st);
  }

 private:
  std::unique_ptr<InodeTable> table_;
};

}  // namespace latchfs::posix
