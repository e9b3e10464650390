// Operations and locks of several mounts on few files, as fast as they go: the holder of a lock
// must never see another owner's operation running, nor an operation a lock.
//
// What is true is kept beside the table, in memory that all share.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <functional>
#include <random>
#include <thread>

#include "support/store_fixture.h"

namespace latchfs::test {
namespace {

constexpr std::uint64_t kFiles = 3;
constexpr int kOperations = 60'000;  // of a thread
constexpr int kLocks = 20'000;

struct Truth {
  struct alignas(64) File {
    std::atomic<std::uint32_t> locked;  // exclusively
    std::atomic<std::uint32_t> running;
  };
  std::array<File, kFiles> files;
  std::atomic<std::uint32_t> wrong, granted_ops, refused_ops, locks;
};

FileId file_of(std::uint64_t n) { return {1, 1000 + n}; }

void operate(LockService& store, Truth& truth, std::uint64_t thread, int count) {
  std::mt19937_64 random{std::random_device{}()};
  for (int i = 0; i < count; ++i) {
    const std::uint64_t n = random() % kFiles;
    LockService::OpRequest op;
    op.file = file_of(n);
    op.op = {store.mount_id(), thread << 32 | static_cast<std::uint64_t>(i), OwnerSpace::kOp};
    op.owner = {store.mount_id(), 1000 + thread, OwnerSpace::kRange};
    op.range = *ByteRange::from_half_open(0, 10);
    op.kind = random() % 2 == 0 ? LockKind::kWriteOp : LockKind::kReadOp;
    const auto got = store.begin_op(op, OnConflict::kRefuse, {});
    if (!got.ok()) {
      ++truth.wrong;
      continue;
    }
    if (!std::holds_alternative<Granted>(*got)) {
      ++truth.refused_ops;
      continue;
    }
    Truth::File& file = truth.files[n];
    ++file.running;
    for (int look = 0; look < 20; ++look) {
      if (file.locked.load() != 0) ++truth.wrong;
      if (look == 10 && random() % 16 == 0) std::this_thread::yield();
    }
    --file.running;
    store.end_op(op.file, op.op);
    ++truth.granted_ops;
  }
}

void lock(LockService& store, RecordingSink& sink, Truth& truth, std::uint64_t thread, int count) {
  std::mt19937_64 random{std::random_device{}()};
  for (int i = 0; i < count; ++i) {
    const std::uint64_t n = random() % kFiles;
    LockRequest r;
    r.file = file_of(n);
    r.owner = {store.mount_id(), thread, OwnerSpace::kRange};
    r.range = *ByteRange::from_half_open(5, 20);
    r.mode = LockMode::kExclusive;
    r.kind = LockKind::kOfd;
    const bool wait = random() % 2 == 0;
    const std::uint64_t token = thread << 32 | static_cast<std::uint64_t>(i);
    const auto got =
        store.acquire(r, wait ? OnConflict::kQueue : OnConflict::kRefuse, WaiterToken{token});
    if (!got.ok()) {
      ++truth.wrong;
      continue;
    }
    if (std::holds_alternative<Conflict>(*got)) continue;
    if (std::holds_alternative<Queued>(*got) && sink.await(token) != 0) {
      ++truth.wrong;
      continue;
    }
    Truth::File& file = truth.files[n];
    if (file.locked.fetch_add(1) != 0) ++truth.wrong;
    for (int look = 0; look < 20; ++look) {
      if (file.running.load() != 0) ++truth.wrong;
      if (look == 10 && random() % 16 == 0) std::this_thread::yield();
    }
    file.locked.fetch_sub(1);
    if (!store.release(r.file, r.owner, ByteRange{}).ok()) ++truth.wrong;
    ++truth.locks;
    // Long enough without a lock for operations to find nothing.
    if (random() % 4 == 0) std::this_thread::yield();
  }
}

void list(LockService& store, Truth& truth, int count) {
  for (int i = 0; i < count; ++i) {
    if (!store.list({std::nullopt, {}, 256}).ok()) ++truth.wrong;
    const auto wrong = store.verify();
    if (!wrong.ok() || !wrong->empty()) ++truth.wrong;
  }
}

void one_mount(const std::string& table, Truth& truth) {
  RecordingSink sink;
  const auto store = make_store("shm", sink, table);
  if (store == nullptr) {
    ++truth.wrong;
    return;
  }
  std::vector<std::thread> threads;
  for (std::uint64_t t = 1; t <= 3; ++t) {
    threads.emplace_back([&, t] { operate(*store, truth, t, kOperations); });
  }
  for (std::uint64_t t = 4; t <= 5; ++t) {
    threads.emplace_back([&, t] { lock(*store, sink, truth, t, kLocks); });
  }
  threads.emplace_back([&] { list(*store, truth, 100); });
  for (std::thread& t : threads) t.join();
}

class ShmOpsStress : public ::testing::Test {
 protected:
  void SetUp() override {
    void* at =
        ::mmap(nullptr, sizeof(Truth), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    ASSERT_NE(at, MAP_FAILED);
    truth_ = new (at) Truth{};
  }
  void TearDown() override {
    EXPECT_EQ(truth_->wrong.load(), 0u);
    EXPECT_GT(truth_->granted_ops.load(), 0u);
    EXPECT_GT(truth_->locks.load(), 0u);
    std::printf("operations: %u went ahead, %u were refused; %u locks\n",
                truth_->granted_ops.load(), truth_->refused_ops.load(), truth_->locks.load());
    // Nothing is left of all that.
    RecordingSink sink;
    const auto store = make_store("shm", sink, table_);
    ASSERT_NE(store, nullptr);
    const auto stats = store->stats();
    ASSERT_TRUE(stats.ok());
    EXPECT_EQ(stats->files, 0u);
    EXPECT_EQ(stats->bytes_used, 0u);
    EXPECT_EQ(*store->verify(), "");
    ::munmap(truth_, sizeof(Truth));
  }
  const std::string table_{unique_table()};
  Truth* truth_{};
};

TEST_F(ShmOpsStress, TwoMountsOfOneProcess) {
  RecordingSink sink;
  const auto third = make_store("shm", sink, table_);  // so that the table stays
  std::thread one{[&] { one_mount(table_, *truth_); }};
  std::thread two{[&] { one_mount(table_, *truth_); }};
  one.join();
  two.join();
}

TEST_F(ShmOpsStress, TwoProcesses) {
  std::array<pid_t, 2> pids{};
  for (pid_t& pid : pids) {
    pid = ::fork();
    if (pid == 0) {
      one_mount(table_, *truth_);
      ::_exit(0);
    }
  }
  for (const pid_t pid : pids) {
    int status = 0;
    EXPECT_EQ(::waitpid(pid, &status, 0), pid);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  }
}

}  // namespace
}  // namespace latchfs::test
