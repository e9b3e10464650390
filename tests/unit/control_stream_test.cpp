// Listings larger than what is rendered whole: made as they are read.
#include <fcntl.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "support/control_world.h"
#include "support/sanitized.h"

namespace latchfs::testing {
namespace {

using test::kSanitized;

// About `count` * 400 bytes.
void fill(ControlWorld& world, std::uint64_t count) {
  const FileId id = world.files.file("/f");
  for (std::uint64_t i = 1; i <= count; ++i) world.locks.add(grant(id, i, range(i, 1), 0));
}

class ControlStream : public ::testing::Test {
 protected:
  // Built once: the fake sorts at each insertion.
  static void SetUpTestSuite() {
    world_ = std::make_unique<ControlWorld>();
    const FileId id = world_->files.file("/f");
    std::vector<Grant> all;
    for (std::uint64_t i = 1; i <= kGrants; ++i) all.push_back(grant(id, i, range(i, 1), 0));
    world_->locks.add_all(all);
  }
  static void TearDownTestSuite() { world_.reset(); }

  static constexpr std::uint64_t kGrants = 20'000;
  static std::unique_ptr<ControlWorld> world_;
};
std::unique_ptr<ControlWorld> ControlStream::world_;

TEST_F(ControlStream, IsCompleteAndAsLongAsItsSize) {
  const std::string text = world_->cat("list");
  EXPECT_GT(text.size(), std::size_t{7} << 20);
  EXPECT_EQ(static_cast<std::size_t>(world_->walk("list")->attr.st_size), text.size());
  const auto parsed = parse_json(text);
  EXPECT_EQ(parsed["grants"].size(), kGrants);
  EXPECT_EQ(world_->cat("list", kRoot, 4096), text);
  EXPECT_EQ(world_->cat("list", kRoot, 999'999), text);
}

TEST_F(ControlStream, ReadsAnywhereGiveTheSameBytes) {
  const std::string text = world_->cat("list");
  const auto fh = world_->tree().open(world_->walk("list")->node, O_RDONLY, kRoot).value();
  std::mt19937_64 random{20261121};
  for (int i = 0; i < (kSanitized ? 15 : 60); ++i) {
    const std::uint64_t offset = random() % (text.size() + 1000);
    const std::size_t size = random() % 200'000;
    const auto part = world_->tree().read(fh, offset, size, kAlice);
    ASSERT_TRUE(part.ok());
    ASSERT_EQ(*part, offset < text.size() ? text.substr(offset, size) : "") << offset;
  }
  EXPECT_EQ(*world_->tree().read(fh, text.size() - 5, 4096, kAlice), text.substr(text.size() - 5));
  EXPECT_EQ(*world_->tree().read(fh, UINT64_MAX / 2, 4096, kAlice), "");
  EXPECT_EQ(*world_->tree().read(fh, 0, 20, kAlice), text.substr(0, 20));
  world_->tree().release(fh);
}

TEST_F(ControlStream, ForwardReadsDoNotStartOver) {
  const auto fh = world_->tree().open(world_->walk("list")->node, O_RDONLY, kRoot).value();
  const auto before = world_->locks.list_calls();
  std::uint64_t offset = 0;
  while (true) {
    const std::string part = world_->tree().read(fh, offset, 131'072, kAlice).value();
    if (part.empty()) break;
    offset += part.size();
  }
  const auto forward = world_->locks.list_calls() - before;
  EXPECT_LE(forward, kGrants / 256 + 5);
  // Back to the middle: from a mark near it, not from the beginning.
  world_->tree().read(fh, offset / 2, 4096, kAlice).value();
  EXPECT_LE(world_->locks.list_calls() - before - forward, 8U);
  world_->tree().release(fh);
}

TEST_F(ControlStream, ReadsABitOutOfOrderDoNotStartOver) {
  const std::string text = world_->cat("list");
  const auto fh = world_->tree().open(world_->walk("list")->node, O_RDONLY, kRoot).value();
  const auto before = world_->locks.list_calls();
  constexpr std::size_t kChunk = 32'768;
  for (std::size_t i = 0; (i + 2) * kChunk < text.size(); i += 2) {
    ASSERT_EQ(*world_->tree().read(fh, (i + 1) * kChunk, kChunk, kAlice),
              text.substr((i + 1) * kChunk, kChunk));
    ASSERT_EQ(*world_->tree().read(fh, i * kChunk, kChunk, kAlice),
              text.substr(i * kChunk, kChunk));
  }
  EXPECT_LE(world_->locks.list_calls() - before, kGrants / 256 + 5);
  world_->tree().release(fh);
}

TEST_F(ControlStream, SizesAreCountedOnce) {
  world_->walk("list").value();
  const auto before = world_->locks.list_calls();
  for (int i = 0; i < 10; ++i) world_->walk("list").value();
  EXPECT_EQ(world_->locks.list_calls(), before);
}

TEST_F(ControlStream, ManyOpenAtOnceStayCorrectWhenMemoryIsShort) {
  const std::string text = world_->cat("list");
  const auto node = world_->walk("list")->node;
  std::vector<std::uint64_t> open;
  for (int i = 0; i < (kSanitized ? 16 : 24); ++i)
    open.push_back(world_->tree().open(node, O_RDONLY, kRoot).value());
  for (const auto fh : open) {
    ASSERT_EQ(*world_->tree().read(fh, 0, 1000, kAlice), text.substr(0, 1000));
    ASSERT_EQ(*world_->tree().read(fh, 5'000'000, 1000, kAlice), text.substr(5'000'000, 1000));
    world_->tree().release(fh);
  }
}

TEST_F(ControlStream, AnErrorOnTheWayIsOneOfRead) {
  const auto fh = world_->tree().open(world_->walk("list")->node, O_RDONLY, kRoot).value();
  world_->locks.fail_lists(EIO);
  EXPECT_EQ(world_->tree().read(fh, 6'000'000, 10, kAlice).error().value(), EIO);
  world_->locks.fail_lists(0);
  EXPECT_TRUE(world_->tree().read(fh, 6'000'000, 10, kAlice).ok());
  world_->tree().release(fh);
}

TEST(ControlSmall, OneByteReads) {
  ControlWorld world;
  fill(world, 20);
  EXPECT_EQ(world.cat("list", kRoot, 1), world.cat("list"));
}

TEST(ControlSmall, WhatWasOpenedStaysAsItWas) {
  ControlWorld world;
  fill(world, 20);
  const std::string text = world.cat("list");
  const auto fh = world.tree().open(world.walk("list")->node, O_RDONLY, kRoot).value();
  world.locks.clear();
  EXPECT_EQ(*world.tree().read(fh, 0, 1 << 20, kAlice), text);
  EXPECT_EQ(*world.tree().read(fh, 100, 7, kAlice), text.substr(100, 7));
  world.tree().release(fh);
}

TEST(ControlBusy, ReadersAndChangesAtTheSameTime) {
  ControlWorld world;
  const FileId id = world.files.file("/f");
  for (std::uint64_t i = 1; i <= 300; ++i) world.locks.add(grant(id, 1000 + i, range(i, 1), 0));
  control::Tree& tree = world.tree();
  const auto release = world.walk("release")->node;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&world, &tree, release, id, t] {
      const Caller me{static_cast<uid_t>(t % 2 * 1000), 0, 0, 0};
      for (int i = 0; i < 60; ++i) {
        const auto key = static_cast<std::uint64_t>(t + 1);
        world.locks.add(grant(id, key, range(0, 1), me.uid));
        const auto listing = world.json("list?limit=50", me);
        EXPECT_LE(listing["grants"].size(), 50U);
        const auto fh = tree.open(release, O_RDWR, me).value();
        const std::string request =
            "ref=%2Ff&offset=0&size=1&owner_id=" + to_string(OwnerId{1, key, OwnerSpace::kRange}) +
            "\n";
        EXPECT_TRUE(tree.write(fh, 0, request, me).ok());
        EXPECT_EQ(parse_json(*tree.read(fh, 0, 100'000, kAlice))["count"], 1);
        tree.release(fh);
        tree.getattr(release, me).value();
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(world.locks.grants().size(), 300U);
}

}  // namespace
}  // namespace latchfs::testing
