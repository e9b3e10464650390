#include <gtest/gtest.h>

#include "posix/file_handle.h"
#include "posix/node_ids.h"

namespace latchfs::posix {
namespace {

constexpr std::uint64_t kHighBits = std::uint64_t{7} << 61;

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
  ids.release(huge);
  EXPECT_NE(ids.node_of(0, huge), before);
}

TEST(FileHandle, HashIsNeverZeroAndTellsFilesApart) {
  EXPECT_NE(FileHandle{}.hash(), 0u);
  const auto a = FileHandle::ext_wildcard(12);
  const auto b = FileHandle::ext_wildcard(13);
  ASSERT_TRUE(a && b);
  EXPECT_NE(a->hash(), b->hash());
  EXPECT_FALSE(*a == *b);
  EXPECT_FALSE(FileHandle::ext_wildcard(std::uint64_t{1} << 32));
  EXPECT_EQ(FileHandle{}.open(0).error(), errno_code(ESTALE));
}

}  // namespace
}  // namespace latchfs::posix
