// Modifications in flight and filelocks' transitions, by themselves and through a store.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "base/fault_point.h"
#include "store/shm/change_table.h"
#include "support/store_fixture.h"

namespace latchfs::shm {
namespace {

constexpr FileId kFile{7, 100};
constexpr FileId kOther{7, 101};
constexpr std::uint32_t kSlot = 70;  // not in the first word of mounts
constexpr std::uint64_t kMount = 4711;

Change change_of(FileId file, bool listed = true) {
  Change change;
  change.file = file;
  change.range = *ByteRange::from_half_open(5, 10);
  change.holder.pid = 13;
  change.holder.uid = 14;
  change.holder.fh = 15;
  change.holder.backing_fd = 16;
  change.listed = listed;
  return change;
}
std::int64_t soon() { return monotonic_ns() + 20'000'000; }

// Holds the first thread that passes a fault point until it is let go.
class HoldAt {
 public:
  explicit HoldAt(const char* name) : name_{name} {
    self_ = this;
    hook_faults([](const char* at) noexcept { self_->pass(at); });
  }
  ~HoldAt() {
    let_go();
    hook_faults(nullptr);
    self_ = nullptr;
  }
  HoldAt(const HoldAt&) = delete;
  HoldAt& operator=(const HoldAt&) = delete;
  void await() {
    std::unique_lock hold{mu_};
    changed_.wait(hold, [this] { return held_; });
  }
  void let_go() {
    const std::lock_guard hold{mu_};
    gone_ = true;
    changed_.notify_all();
  }

 private:
  void pass(const char* at) noexcept {
    if (std::strcmp(at, name_) != 0) return;
    std::unique_lock hold{mu_};
    if (held_) return;
    held_ = true;
    changed_.notify_all();
    changed_.wait(hold, [this] { return gone_; });
  }
  static inline HoldAt* self_;
  const char* const name_;
  std::mutex mu_;
  std::condition_variable changed_;
  bool held_{};
  bool gone_{};
};

class Changes : public ::testing::Test {
 protected:
  // As a new table's memory is.
  std::unique_ptr<ChangeTable> owned_{new ChangeTable{}};
  ChangeTable& table_{*owned_};
};

TEST_F(Changes, SayAllThatAListingShows) {
  table_.begin(kSlot, kMount, change_of(kFile));
  std::vector<Grant> all;
  EXPECT_EQ(table_.list(std::nullopt, 0, 10, all), std::nullopt);
  ASSERT_EQ(all.size(), 1u);
  EXPECT_EQ(all[0].file, kFile);
  EXPECT_EQ(all[0].range, *ByteRange::from_half_open(5, 10));
  EXPECT_EQ(all[0].kind, LockKind::kWriteOp);
  EXPECT_EQ(all[0].mode, LockMode::kExclusive);
  EXPECT_EQ(all[0].owner.mount, kMount);
  EXPECT_EQ(all[0].owner.space, OwnerSpace::kOp);
  EXPECT_EQ(all[0].holder.pid, 13u);
  EXPECT_EQ(all[0].holder.uid, 14u);
  EXPECT_EQ(all[0].holder.fh, 15u);
  EXPECT_EQ(all[0].holder.backing_fd, 16);
  EXPECT_GT(all[0].acquired_at_ns, 1'500'000'000'000'000'000);
}

TEST_F(Changes, AreListedByPagesAndByFile) {
  for (int i = 0; i < 10; ++i) table_.begin(kSlot, kMount, change_of(i % 2 == 0 ? kFile : kOther));
  table_.begin(3, 1, change_of(kFile));
  table_.begin(kSlot, kMount, change_of(kFile, false));
  EXPECT_TRUE(table_.any_listed());
  std::vector<Grant> all;
  std::uint64_t at = 0;
  int pages = 0;
  for (;; ++pages) {
    const std::size_t before = all.size();
    const auto next = table_.list(kFile, at, 2, all);
    EXPECT_LE(all.size() - before, 2u);
    if (!next) break;
    EXPECT_GT(*next, at);
    at = *next;
  }
  EXPECT_EQ(all.size(), 6u);
  EXPECT_GE(pages, 2);
}

TEST_F(Changes, HiddenOnesAreInFlightAllTheSame) {
  const auto slot = table_.begin(kSlot, kMount, change_of(kFile, false));
  EXPECT_FALSE(table_.any_listed());
  EXPECT_EQ(table_.wait(kFile, soon()).size(), 1u);
  table_.end(kSlot, slot);
  EXPECT_TRUE(table_.wait(kFile, soon()).empty());
}

TEST_F(Changes, AreWaitedForByFileInAllMounts) {
  table_.begin(kSlot, kMount, change_of(kFile));
  table_.begin(0, 1, change_of(kFile));
  table_.begin(1, 2, change_of(kOther));
  const auto left = table_.wait(kFile, soon());
  EXPECT_EQ(left.size(), 2u);
  for (const Change& change : left) EXPECT_EQ(change.holder.pid, 13u);
  EXPECT_TRUE(table_.wait({8, 100}, soon()).empty()) << "another file system";
}

TEST_F(Changes, WhoWaitsGoesOnWhenTheyEnd) {
  const auto slot = table_.begin(kSlot, kMount, change_of(kFile));
  std::atomic<bool> over{false};
  std::thread waiter{[&] {
    EXPECT_TRUE(table_.wait(kFile, monotonic_ns() + 60'000'000'000).empty());
    EXPECT_TRUE(over.load());
  }};
  ::usleep(20'000);
  over = true;
  table_.end(kSlot, slot);
  waiter.join();
}

TEST_F(Changes, LaterOnesAreNotWaitedFor) {
  // A slot that is always in use, but never by the same change for long.
  std::atomic<bool> stop{false};
  std::atomic<int> turns{0};
  std::thread writer{[&] {
    while (!stop) {
      const auto slot = table_.begin(kSlot, kMount, change_of(kFile));
      table_.end(kSlot, slot);
      ++turns;
    }
  }};
  while (turns < 100) std::this_thread::yield();
  EXPECT_TRUE(table_.wait(kFile, monotonic_ns() + 60'000'000'000).empty());
  stop = true;
  writer.join();
}

TEST_F(Changes, MoreThreadsThanSlotsTakeTurns) {
  std::vector<std::uint32_t> slots;
  for (std::uint32_t i = 0; i < kChangeSlots; ++i) {
    slots.push_back(table_.begin(kSlot, kMount, change_of(kFile)));
  }
  std::atomic<bool> in{false};
  std::thread late{[&] {
    const auto slot = table_.begin(kSlot, kMount, change_of(kFile));
    in = true;
    table_.end(kSlot, slot);
  }};
  ::usleep(20'000);
  EXPECT_FALSE(in.load());
  table_.end(kSlot, slots[17]);
  late.join();
  EXPECT_TRUE(in.load());
}

TEST_F(Changes, ADeadMountsAreForgottenAndNobodyElses) {
  table_.begin(kSlot, kMount, change_of(kFile));
  table_.begin(0, 1, change_of(kFile));
  ASSERT_TRUE(table_.begin_transition(kMount, kFile, 5));
  ASSERT_TRUE(table_.begin_transition(1, kOther, 6));
  const auto before = table_.version(kFile);
  table_.forget(kMount);
  table_.forget(kMount);
  EXPECT_EQ(table_.wait(kFile, soon()).size(), 1u);
  EXPECT_EQ(table_.transition_on(kFile), std::nullopt);
  EXPECT_NE(table_.version(kFile), before);
  EXPECT_EQ(table_.transition_on(kOther), 6u);
  EXPECT_EQ(table_.transitions_now, 1u);
}

TEST_F(Changes, WhoHasTheSlotNextBeginsWithNothing) {
  table_.begin(kSlot, kMount, change_of(kFile));
  table_.join(kSlot);
  EXPECT_TRUE(table_.wait(kFile, soon()).empty());
}

TEST_F(Changes, TransitionsAreSeenWhileTheyLast) {
  const auto version = table_.version(kFile);
  const auto place = table_.begin_transition(kMount, kFile, 1000);
  ASSERT_TRUE(place);
  EXPECT_NE(table_.version(kFile), version);
  EXPECT_EQ(table_.transition_on(kFile), 1000u);
  EXPECT_EQ(table_.transition_on(kOther), std::nullopt);
  const auto during = table_.version(kFile);
  const auto ended = table_.ended.load();
  table_.end_transition(*place);
  EXPECT_EQ(table_.transition_on(kFile), std::nullopt);
  EXPECT_NE(table_.version(kFile), during);
  EXPECT_EQ(table_.ended, ended + 1);
  table_.end_transition(*place);
  EXPECT_EQ(table_.ended, ended + 1) << "it was over";
}

TEST_F(Changes, NoMoreTransitionsThanThereIsRoomFor) {
  for (std::uint32_t i = 0; i < kTransitions; ++i) {
    ASSERT_TRUE(table_.begin_transition(kMount, kFile, 1));
  }
  EXPECT_FALSE(table_.begin_transition(kMount, kFile, 1));
}

TEST_F(Changes, StorersAreToldOfAllMountsUntilTheyLeave) {
  const auto uids = [&](FileId file) {
    std::vector<std::uint32_t> all;
    const auto storers = table_.storers_of(file);
    for (const auto& who : *storers) all.push_back(who.uid);
    std::sort(all.begin(), all.end());
    return all;
  };
  using Uids = std::vector<std::uint32_t>;
  const auto mine = table_.enter_storer(kSlot, kMount, kFile, {1000, 1001, 1002});
  const auto other = table_.enter_storer(0, 1, kFile, {2000, 2001, 2002});
  const auto elsewhere = table_.enter_storer(0, 1, kOther, {3000, 3001, 3002});
  ASSERT_TRUE(mine && other && elsewhere);
  EXPECT_EQ(uids(kFile), (Uids{1000, 2000}));
  EXPECT_EQ(uids(kOther), Uids{3000});
  table_.leave_storer(0, other);
  EXPECT_EQ(uids(kFile), Uids{1000});
  EXPECT_EQ(table_.storers_of(kFile)->front().gid, 1001u);
  EXPECT_EQ(table_.storers_of(kFile)->front().pid, 1002u);
  table_.forget(kMount);
  EXPECT_EQ(uids(kFile), Uids{});
  EXPECT_EQ(uids(kOther), Uids{3000});
}

TEST_F(Changes, WhereThereIsNoRoomForAStorerNothingIsClaimed) {
  for (std::uint32_t i = 0; i < kStorerReach; ++i) {
    ASSERT_TRUE(table_.enter_storer(kSlot, kMount, kFile, {1, 1, 1}));
  }
  EXPECT_EQ(table_.storers_of(kFile)->size(), kStorerReach);
  const auto beyond = table_.enter_storer(kSlot, kMount, kFile, {2, 2, 2});
  EXPECT_FALSE(beyond);
  EXPECT_EQ(table_.storers_of(kOther).error(), errno_code(ENOBUFS));
  table_.leave_storer(kSlot, beyond);
  EXPECT_TRUE(table_.storers_of(kOther));
}

// ---- each side held where the other might slip past ----

TEST_F(Changes, OneThatHasNotLookedYetIsWaitedFor) {
  const auto known = table_.version(kFile);
  HoldAt hold{"shm.change_published"};
  std::uint32_t seen = known;
  std::thread writer{[&] {
    const auto slot = table_.begin(kSlot, kMount, change_of(kFile));
    seen = table_.version(kFile);
    table_.end(kSlot, slot);
  }};
  hold.await();
  const auto place = table_.begin_transition(1, kFile, 5);
  ASSERT_TRUE(place);
  EXPECT_EQ(table_.wait(kFile, soon()).size(), 1u);
  hold.let_go();
  writer.join();
  EXPECT_NE(seen, known) << "it looked after the transition had begun";
}

TEST_F(Changes, OneThatLookedBeforeIsWaitedFor) {
  const auto known = table_.version(kFile);
  HoldAt hold{"shm.transition_published"};
  std::optional<std::uint32_t> place;
  std::vector<Change> left;
  std::thread locker{[&] {
    place = table_.begin_transition(1, kFile, 5);
    left = table_.wait(kFile, soon());
  }};
  hold.await();
  const auto slot = table_.begin(kSlot, kMount, change_of(kFile));
  EXPECT_EQ(table_.version(kFile), known) << "so it goes on";
  hold.let_go();
  locker.join();
  EXPECT_EQ(left.size(), 1u);
  table_.end(kSlot, slot);
}

// Writers that know who may, and believe it as long as the version is the same; one who locks and
// unlocks. What ChangeEdge and MountFilelocks do, without files.
TEST_F(Changes, NothingSlipsPastATransition) {
  constexpr int kWriters = 3;
  constexpr int kRounds = 200;
  std::atomic<bool> locked{false};  // the mark on disk
  std::atomic<int> quiet{0};        // the locker believes that nobody modifies the file
  std::atomic<int> inside{0};
  std::atomic<bool> stop{false};
  std::atomic<int> wrong{0};
  std::atomic<std::uint64_t> written{0};
  std::vector<std::thread> writers;
  for (std::uint32_t w = 0; w < kWriters; ++w) {
    writers.emplace_back([&, w] {
      std::uint32_t version = table_.version(kFile) - 1;
      bool allowed = false;
      while (!stop) {
        const auto slot = table_.begin(w, w + 1, change_of(kFile));
        const auto now = table_.version(kFile);
        bool may = allowed;
        if (now != version) {
          may = !table_.transition_on(kFile);
          if (may) {
            allowed = may = !locked.load();
            version = now;
          }
        }
        if (may) {
          inside.fetch_add(1);
          if (quiet.load() != 0) ++wrong;
          written.fetch_add(1);
          if (quiet.load() != 0) ++wrong;
          inside.fetch_sub(1);
        }
        table_.end(w, slot);
      }
    });
  }
  for (int i = 0; i < kRounds; ++i) {
    const auto place = table_.begin_transition(9, kFile, 5);
    ASSERT_TRUE(place);
    ASSERT_TRUE(table_.wait(kFile, monotonic_ns() + 60'000'000'000).empty());
    quiet = 1;
    if (inside.load() != 0) ++wrong;
    locked = true;
    table_.end_transition(*place);
    std::this_thread::yield();
    if (inside.load() != 0) ++wrong;

    const auto back = table_.begin_transition(9, kFile, 5);
    ASSERT_TRUE(back);
    locked = false;
    quiet = 0;
    table_.end_transition(*back);
    const auto before = written.load();
    for (int tries = 0; i % 100 == 0 && written.load() == before && tries < 10'000; ++tries) {
      ::usleep(100);
    }
  }
  stop = true;
  for (auto& writer : writers) writer.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_GT(written, 0u);
}

// ---- through stores ----

TEST(ChangesOfStores, AreListedByEachMountAndGoWithTheDead) {
  const std::string table = test::unique_table();
  test::RecordingSink sink;
  ShmStore::Options options;
  options.table = table;
  options.table_max = 64ULL << 20;
  int ready[2];
  ASSERT_EQ(::pipe(ready), 0);
  const pid_t child = ::fork();  // while there is one thread
  if (child == 0) {
    test::RecordingSink own;
    auto second = ShmStore::attach(options, own);
    if (!second) ::_exit(1);
    static_cast<void>((*second)->begin_change(change_of(kFile)));
    if (!(*second)->begin_transition(kOther, 5)) ::_exit(1);
    if (::write(ready[1], "x", 1) != 1) ::_exit(1);
    for (;;) ::pause();
  }
  ASSERT_GT(child, 0);
  ::close(ready[1]);
  char byte = 0;
  ASSERT_EQ(::read(ready[0], &byte, 1), 1);
  const auto store = ShmStore::attach(options, sink);
  ASSERT_TRUE(store);
  const auto mine = (*store)->begin_change(change_of(kOther));

  ListQuery query;
  query.limit = 1;
  std::vector<FileId> seen;
  for (;;) {
    const auto page = (*store)->list(query);
    ASSERT_TRUE(page);
    for (const Grant& grant : page->grants) seen.push_back(grant.file);
    if (!page->next) break;
    const auto cursor = parse_list_cursor(to_string(*page->next));
    ASSERT_TRUE(cursor);
    query.after = *cursor;
  }
  std::sort(seen.begin(), seen.end());
  EXPECT_EQ(seen, (std::vector<FileId>{kFile, kOther}));
  query = {};
  query.file = kFile;
  const auto of_file = (*store)->list(query);
  ASSERT_TRUE(of_file);
  EXPECT_EQ(of_file->grants.size(), 1u);
  EXPECT_EQ((*store)->transition_on(kOther), 5u);

  ASSERT_EQ(::kill(child, SIGKILL), 0);
  ASSERT_EQ(::waitpid(child, nullptr, 0), child);
  EXPECT_TRUE((*store)->wait_for_changes(kFile, monotonic_ns() + 60'000'000'000).empty());
  for (int i = 0; i < 600 && (*store)->transition_on(kOther); ++i) ::usleep(100'000);
  EXPECT_EQ((*store)->transition_on(kOther), std::nullopt);
  EXPECT_EQ((*store)->wait_for_changes(kOther, soon()).size(), 1u) << "the living one's";
  (*store)->end_change(mine);
  EXPECT_TRUE((*store)->list({})->grants.empty());
  ::close(ready[0]);
}

}  // namespace
}  // namespace latchfs::shm
