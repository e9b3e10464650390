// Slots of operations in flight and the filter of files, by themselves.
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "store/shm/file_filter.h"
#include "store/shm/op_slots.h"

namespace latchfs::shm {
namespace {

constexpr FileId kFile{7, 100};
constexpr std::uint32_t kSlot = 70;  // not in the first word of mounts
constexpr std::uint64_t kMount = 4711;

LockService::OpRequest request(std::uint64_t key, FileId file = kFile,
                               std::uint64_t mount = kMount) {
  LockService::OpRequest op;
  op.file = file;
  op.op = {mount, key, OwnerSpace::kOp};
  op.owner = {mount, 11, OwnerSpace::kRange};
  op.description = {mount, 12, OwnerSpace::kRange};
  op.range = *ByteRange::from_half_open(5, 10);
  op.kind = LockKind::kReadOp;
  op.holder.pid = 13;
  op.holder.uid = 14;
  op.holder.fh = 15;
  op.holder.backing_fd = -1;
  std::memcpy(op.holder.comm.data(), "sixteen letters", 16);
  return op;
}

std::vector<std::uint64_t> take_in(OpTable& table, FileId file) {
  std::vector<std::uint64_t> keys;
  table.take_in(file,
                [&](const LockService::OpRequest& op, std::int64_t) { keys.push_back(op.op.key); });
  return keys;
}
using Keys = std::vector<std::uint64_t>;

class OpSlots : public ::testing::Test {
 protected:
  // As a new table's memory is.
  std::unique_ptr<OpTable> owned_{new OpTable{}};
  OpTable& table_{*owned_};
};

TEST_F(OpSlots, SayAllThatTheTableWouldKnow) {
  ASSERT_NE(table_.publish(kSlot, request(1), 99), nullptr);
  int seen = 0;
  table_.take_in(kFile, [&](const LockService::OpRequest& op, std::int64_t started) {
    ++seen;
    const auto said = request(1);
    EXPECT_EQ(op.file, said.file);
    EXPECT_EQ(op.op, said.op);
    EXPECT_EQ(op.owner, said.owner);
    EXPECT_EQ(op.description, said.description);
    EXPECT_EQ(op.range, said.range);
    EXPECT_EQ(op.kind, said.kind);
    EXPECT_EQ(op.holder.pid, said.holder.pid);
    EXPECT_EQ(op.holder.uid, said.holder.uid);
    EXPECT_EQ(op.holder.fh, said.holder.fh);
    EXPECT_EQ(op.holder.backing_fd, said.holder.backing_fd);
    EXPECT_EQ(op.holder.comm, said.holder.comm);
    EXPECT_EQ(started, 99);
  });
  EXPECT_EQ(seen, 1);
}

TEST_F(OpSlots, WhatEndsUnseenNeedsNoMutex) {
  ASSERT_NE(table_.publish(kSlot, request(1), 0), nullptr);
  EXPECT_TRUE(table_.over(kSlot, 1));
  EXPECT_FALSE(table_.over(kSlot, 1)) << "it is over";
  EXPECT_EQ(take_in(table_, kFile), Keys{});
  EXPECT_TRUE(table_.files().empty());
}

TEST_F(OpSlots, WhatWasTakenInDoes) {
  ASSERT_NE(table_.publish(kSlot, request(1), 0), nullptr);
  EXPECT_EQ(take_in(table_, {7, 101}), Keys{}) << "another file";
  EXPECT_EQ(take_in(table_, {8, 100}), Keys{}) << "another file system";
  EXPECT_EQ(take_in(table_, kFile), Keys{1});
  EXPECT_EQ(take_in(table_, kFile), Keys{1}) << "again: the step may have been undone";
  EXPECT_FALSE(table_.over(kSlot, 1));
  EXPECT_EQ(take_in(table_, kFile), Keys{});
}

TEST_F(OpSlots, WhoFoundARecordWithdraws) {
  OpSlot* slot = table_.publish(kSlot, request(1), 0);
  ASSERT_NE(slot, nullptr);
  EXPECT_TRUE(OpTable::withdraw(*slot));
  EXPECT_EQ(take_in(table_, kFile), Keys{});
  slot = table_.publish(kSlot, request(2), 0);
  ASSERT_NE(slot, nullptr);
  EXPECT_EQ(take_in(table_, kFile), Keys{2});
  EXPECT_FALSE(OpTable::withdraw(*slot)) << "it was taken in: it goes on";
  EXPECT_FALSE(table_.over(kSlot, 2));
}

TEST_F(OpSlots, FullIsNullAndComesFree) {
  for (std::uint64_t key = 1; key <= kOpSlots; ++key) {
    ASSERT_NE(table_.publish(kSlot, request(key), 0), nullptr);
  }
  EXPECT_EQ(table_.publish(kSlot, request(1000), 0), nullptr);
  EXPECT_EQ(take_in(table_, kFile).size(), kOpSlots);
  for (std::uint64_t key = 1; key <= kOpSlots; ++key) EXPECT_FALSE(table_.over(kSlot, key));
  EXPECT_NE(table_.publish(kSlot, request(1000), 0), nullptr);
}

TEST_F(OpSlots, AReaperTakesTheDeadOnesOnly) {
  ASSERT_NE(table_.publish(kSlot, request(1), 0), nullptr);
  ASSERT_NE(table_.publish(kSlot, request(2, {7, 101}), 0), nullptr);
  ASSERT_NE(table_.publish(3, request(1, kFile, 5), 0), nullptr);
  EXPECT_EQ(take_in(table_, {7, 101}), Keys{2});
  table_.forget(kMount);
  EXPECT_EQ(table_.files(), std::vector<FileId>{kFile});
  // The next mount has the place; a reaper that was slow comes again.
  table_.join(kSlot);
  ASSERT_NE(table_.publish(kSlot, request(1, kFile, kMount + 1), 0), nullptr);
  table_.forget(kMount);
  EXPECT_TRUE(table_.over(kSlot, 1));
}

TEST_F(OpSlots, WhoJoinsFindsAllFree) {
  for (std::uint64_t key = 1; key <= kOpSlots; ++key) {
    ASSERT_NE(table_.publish(kSlot, request(key), 0), nullptr);
  }
  table_.join(kSlot);
  EXPECT_TRUE(table_.files().empty());
  for (std::uint64_t key = 1; key <= kOpSlots; ++key) {
    ASSERT_NE(table_.publish(kSlot, request(key), 0), nullptr);
  }
}

// A slot is used for one file and another in turn while somebody looks through it.
TEST_F(OpSlots, NobodyReadsHalfOfEach) {
  const FileId other{9, 200};
  std::atomic<bool> over{false};
  std::thread mount{[&] {
    for (std::uint64_t key = 1; key <= 300'000; ++key) {
      auto op = request(key, key % 2 == 0 ? kFile : other);
      op.range = *ByteRange::from_half_open(key, key + 1);
      op.holder.fh = key;
      if (table_.publish(kSlot, op, 0) != nullptr) (void)table_.over(kSlot, key);
    }
    over = true;
  }};
  std::uint64_t seen = 0;
  std::uint64_t wrong = 0;
  while (!over) {
    for (const FileId file : {kFile, other}) {
      table_.take_in(file, [&](const LockService::OpRequest& op, std::int64_t) {
        ++seen;
        const bool right = op.range.begin() == op.op.key && op.holder.fh == op.op.key &&
                           (op.op.key % 2 == 0) == (file == kFile);
        wrong += right ? 0 : 1;
      });
    }
    (void)table_.files();
  }
  mount.join();
  EXPECT_EQ(wrong, 0u) << "of " << seen;
}

class Filter : public ::testing::Test {
 protected:
  std::unique_ptr<FileFilter> owned_{new FileFilter{}};
  FileFilter& filter_{*owned_};
};

TEST_F(Filter, ABitIsUpFromTheMarkToTheEndOfTheLastOne) {
  const std::uint32_t cell = FileFilter::cell_of(kFile);
  EXPECT_TRUE(filter_.nothing_in(cell));
  filter_.counts[cell] = 2;
  filter_.mark(cell);
  EXPECT_FALSE(filter_.nothing_in(cell));
  filter_.counts[cell] = 1;
  filter_.settle(cell);
  EXPECT_FALSE(filter_.nothing_in(cell));
  filter_.counts[cell] = 0;
  EXPECT_FALSE(filter_.nothing_in(cell));
  filter_.settle(cell);
  EXPECT_TRUE(filter_.nothing_in(cell));
}

TEST_F(Filter, AfterAnUndoneStepTheCountsSay) {
  filter_.counts[0] = 1;
  filter_.counts[5000] = 3;
  filter_.mark(17);
  filter_.mark(5001);
  filter_.settle_all();
  for (std::uint32_t cell = 0; cell < FileFilter::kCells; ++cell) {
    EXPECT_EQ(filter_.nothing_in(cell), cell != 0 && cell != 5000) << cell;
  }
}

TEST_F(Filter, MadeAnew) {
  filter_.counts[3] = 7;
  filter_.begin_anew();
  for (std::uint32_t cell = 0; cell < FileFilter::kCells; ++cell) {
    ASSERT_FALSE(filter_.nothing_in(cell)) << "everybody takes the mutex meanwhile";
  }
  filter_.settle_all();
  for (std::uint32_t cell = 0; cell < FileFilter::kCells; ++cell) {
    EXPECT_TRUE(filter_.nothing_in(cell));
  }
}

// Both sides of the argument at once, over and over: one of the two must see the other. (A plain
// store in place of the operation's `seq_cst` one fails here within moments; of the other one's it
// was not seen to, for that needs a store delayed for as long as it takes to publish.)
TEST_F(Filter, OneOfTheTwoSeesTheOther) {
  constexpr int kRounds = 200'000;
  const std::uint32_t cell = FileFilter::cell_of(kFile);
  const std::unique_ptr<OpTable> owned{new OpTable{}};
  OpTable& table = *owned;
  std::atomic<int> ready{0};
  const auto both = [&ready](int round) {
    ready.fetch_add(1);
    for (int spins = 0; ready.load(std::memory_order_relaxed) < 2 * round; ++spins) {
      if (spins > 1000) std::this_thread::yield();
    }
  };
  std::vector<char> nothing(kRounds), taken(kRounds);
  std::thread operation{[&] {
    for (int i = 0; i < kRounds; ++i) {
      both(2 * i + 1);
      table.publish(kSlot, request(static_cast<std::uint64_t>(i) + 1), 0);
      nothing[i] = filter_.nothing_in(cell) ? 1 : 0;
      both(2 * i + 2);
      (void)table.over(kSlot, static_cast<std::uint64_t>(i) + 1);
    }
  }};
  for (int i = 0; i < kRounds; ++i) {
    filter_.settle(cell);  // its count is 0: the bit goes
    both(2 * i + 1);
    // (As long as the other one takes to fill in its slot.)
    for (int wait = i % 64; wait > 0; --wait) std::atomic_signal_fence(std::memory_order_seq_cst);
    filter_.mark(cell);
    taken[i] = take_in(table, kFile).empty() ? 0 : 1;
    both(2 * i + 2);
  }
  operation.join();
  int neither = 0;
  int each = 0;
  for (int i = 0; i < kRounds; ++i) {
    neither += nothing[i] != 0 && taken[i] == 0 ? 1 : 0;
    each += nothing[i] == 0 && taken[i] != 0 ? 1 : 0;
  }
  EXPECT_EQ(neither, 0);
  std::printf("both saw the other %d times of %d\n", each, kRounds);
}

// Files beside each other on one file system are spread over shards and cells.
TEST_F(Filter, HundredThousandFilesLeaveFiveOfSixAlone) {
  std::vector<bool> taken(std::size_t{64} * FileFilter::kCells);
  const auto place = [](FileId f) {
    return (file_hash(f) >> 58) * FileFilter::kCells + FileFilter::cell_of(f);
  };
  for (std::uint64_t ino = 0; ino < 100'000; ++ino) taken[place({2049, ino})] = true;
  int mistaken = 0;
  for (std::uint64_t ino = 5'000'000; ino < 5'010'000; ++ino) {
    mistaken += taken[place({2049, ino})] ? 1 : 0;
  }
  EXPECT_LT(mistaken, 10'000 / 4);
}

}  // namespace
}  // namespace latchfs::shm
