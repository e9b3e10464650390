#include <gtest/gtest.h>

#include <vector>

#include "posix/file_handle.h"
#include "posix/node_ids.h"

namespace latchfs::posix {
namespace {

constexpr std::uint64_t kHighBits = std::uint64_t{7} << 61;

FileHandle handle_of(std::int32_t type, const std::vector<std::uint32_t>& words) {
  return FileHandle::make(type, words.data(), words.size() * sizeof words[0]).value();
}

TEST(NodeIds, AreTheInodeNumberOnTheFirstDevice) {
  NodeIds ids;
  EXPECT_EQ(ids.node_of(0, {9, 12}), 12u);
  EXPECT_EQ(ids.node_of(0, {9, NodeIds::kInoMask}), NodeIds::kInoMask);
}

TEST(NodeIds, CarryTheDeviceAboveIt) {
  NodeIds ids;
  const std::uint64_t node = ids.node_of(510, {9, 12});
  EXPECT_EQ(NodeIds::slot_of(node), 510u);
  EXPECT_EQ(NodeIds::ino_of(node), 12u);
  EXPECT_EQ(node & kHighBits, 0u);
  EXPECT_FALSE(NodeIds::dealt(node));
}

TEST(NodeIds, AreDealtWhereTheNumberDoesNotFit) {
  NodeIds ids;
  const FileId huge{9, NodeIds::kInoMask + 1};
  const FileId like_root{9, 1};
  const FileId many{10, 12};
  const std::uint64_t a = ids.node_of(0, huge);
  const std::uint64_t b = ids.node_of(0, like_root);
  const std::uint64_t c = ids.node_of(NodeIds::kDealtSlot, many);
  for (const std::uint64_t node : {a, b, c}) {
    EXPECT_TRUE(NodeIds::dealt(node));
    EXPECT_EQ(node & kHighBits, 0u);
    EXPECT_NE(node, NodeIds::kRoot);
  }
  EXPECT_NE(a, b);
  EXPECT_NE(b, c);
  EXPECT_EQ(ids.node_of(0, huge), a);
  // On another device inode 1 is a number like any other.
  EXPECT_FALSE(NodeIds::dealt(ids.node_of(1, {10, 1})));
}

TEST(NodeIds, AreNotDealtAgainAfterRelease) {
  NodeIds ids;
  const FileId huge{9, ~std::uint64_t{0}};
  const std::uint64_t before = ids.node_of(0, huge);
  ids.release(huge, before);
  const std::uint64_t now = ids.node_of(0, huge);
  EXPECT_NE(now, before);
  ids.release(huge, before);  // is another's by now
  EXPECT_EQ(ids.node_of(0, huge), now);
}

// Who was dealt it before its release, and uses it after.
TEST(NodeIds, AreKeptByWhoComesFirst) {
  NodeIds ids;
  const FileId huge{9, ~std::uint64_t{0}};
  const std::uint64_t a = ids.node_of(0, huge);
  EXPECT_TRUE(ids.keep(huge, a));
  ids.release(huge, a);
  EXPECT_TRUE(ids.keep(huge, a));
  EXPECT_EQ(ids.node_of(0, huge), a);
  ids.release(huge, a);
  const std::uint64_t b = ids.node_of(0, huge);
  EXPECT_FALSE(ids.keep(huge, a));
  EXPECT_TRUE(ids.keep(huge, b));
}

TEST(FileHandle, HashIsNeverZeroAndTellsFilesApart) {
  EXPECT_NE(FileHandle{}.hash(), 0u);
  const auto a = handle_of(1, {12, 7});
  const auto b = handle_of(1, {13, 7});
  EXPECT_NE(a.hash(), b.hash());
  EXPECT_FALSE(a == b);
  EXPECT_EQ(FileHandle{}.open(0).error(), errno_code(ESTALE));
}

TEST(FileHandle, IsOfBoundedSize) {
  const std::vector<std::uint32_t> much(9, 1);
  EXPECT_EQ(FileHandle::make(1, much.data(), 36).error(), errno_code(EOVERFLOW));
  EXPECT_TRUE(FileHandle::make(1, much.data(), 35));
}

// The words of ext4's, xfs's and btrfs's; what is none of them is told apart by all of it.
TEST(FileHandle, GenerationIsTheFileSystemsOwn) {
  EXPECT_EQ(handle_of(0x01, {12, 77}).generation(), 77u);
  EXPECT_EQ(handle_of(0x81, {12, 0, 78}).generation(), 78u);
  EXPECT_EQ(handle_of(0x4d, {256, 0, 5, 0, 79}).generation(), 79u);
  const auto of_tmpfs = handle_of(0x01, {80, 12, 0});
  EXPECT_EQ(of_tmpfs.generation(), of_tmpfs.hash());
  const auto none = handle_of(0x01, {12, 0});
  EXPECT_EQ(none.generation(), none.hash());
  EXPECT_NE(none.generation(), 0u);
}

}  // namespace
}  // namespace latchfs::posix
