// Times the lock table itself: no FUSE, one process, a table of its own in shared memory.
//
// usage: tablebench WHAT [COUNT] HOW_MANY
//   pair COUNT RANGES     ns for one exclusive lock or its unlock, on a file on which one owner
//                         holds RANGES others
//   files COUNT FILES     the same where FILES files have a lock each
//   readers COUNT OWNERS  the same, shared, where OWNERS hold all of that very range
//   memory RANGES         bytes that one of RANGES ranges on a file takes
//   queue COUNT WAITERS   ns for one request to begin to wait behind WAITERS others
//   chain COUNT OWNERS    the same, where OWNERS owners each wait for the next one: what the
//                         deadlock search costs
//   cycle COUNT OWNERS    ns for one request that would close a cycle of OWNERS
//   moved WAITERS         ns for one unlock after which WAITERS wait for another owner
//   ops COUNT FILES       ns for an operation, begin and end, with nothing on its file
//   ops_beside COUNT N    the same on a file on which a lock is held beside it
//   look COUNT FILES      ns for the bare look, where FILES other files have a lock
#include <unistd.h>

#include <array>
#include <memory>
#include <string>
#include <string_view>

#include "measure.h"
#include "store/shm/shm_store.h"

namespace latchfs::bench {
namespace {

class NobodyWaits final : public GrantSink {
 public:
  void granted(WaiterToken) noexcept override {}
  void refused(WaiterToken, int) noexcept override {}
};

class TableOnTrial {
 public:
  TableOnTrial() {
    ShmStore::Options options;
    options.table = "tablebench-" + std::to_string(::getpid());
    options.table_max = std::uint64_t{4} << 30;
    options.max_locks_per_user = 0;
    auto store = ShmStore::attach(options, sink_);
    if (!store) errno = store.error().value();
    must(static_cast<bool>(store), "a table");
    store_ = std::move(*store);
  }

  void lock(std::uint64_t file, std::uint64_t owner, std::uint64_t at, LockMode mode) {
    LockRequest request;
    request.file = {1, file};
    request.owner = {store_->mount_id(), owner, OwnerSpace::kRange};
    request.range = *ByteRange::from_half_open(at, at + kLength);
    request.mode = mode;
    request.kind = LockKind::kPosix;
    request.holder.pid = 1;
    const auto got = store_->acquire(request, OnConflict::kRefuse, {});
    must(got && std::holds_alternative<Granted>(*got), "lock");
  }
  void unlock(std::uint64_t file, std::uint64_t owner, std::uint64_t at) {
    must(static_cast<bool>(store_->release({1, file},
                                           {store_->mount_id(), owner, OwnerSpace::kRange},
                                           *ByteRange::from_half_open(at, at + kLength))),
         "unlock");
  }
  // True: it waits now. False: it would have closed a cycle.
  bool wait(std::uint64_t file, std::uint64_t owner, std::uint64_t token) {
    LockRequest request;
    request.file = {1, file};
    request.owner = {store_->mount_id(), owner, OwnerSpace::kRange};
    request.range = *ByteRange::from_half_open(0, kLength);
    request.mode = LockMode::kExclusive;
    request.kind = LockKind::kPosix;
    request.holder.pid = 1;
    const auto got = store_->acquire(request, OnConflict::kQueue, WaiterToken{token});
    must(got && !std::holds_alternative<Granted>(*got), "a request that waits");
    return std::holds_alternative<Queued>(*got);
  }
  void cancel(std::uint64_t file, std::uint64_t token) {
    must(store_->cancel({1, file}, WaiterToken{token}) == Cancelled::kCancelled, "cancel");
  }
  void operate(std::uint64_t file) {
    LockService::OpRequest op;
    op.file = {1, file};
    op.op = {store_->mount_id(), ++last_op_, OwnerSpace::kOp};
    op.owner = {store_->mount_id(), 2, OwnerSpace::kRange};
    op.range = *ByteRange::from_half_open(0, kLength);
    op.kind = LockKind::kWriteOp;
    const auto got = store_->begin_op(op, OnConflict::kRefuse, {});
    must(got && std::holds_alternative<Granted>(*got), "operation");
    store_->end_op(op.file, op.op);
  }
  [[nodiscard]] bool nothing_on(std::uint64_t file) { return store_->nothing_on({1, file}); }
  [[nodiscard]] std::uint64_t bytes_used() {
    const auto stats = store_->stats();
    must(static_cast<bool>(stats), "stats");
    return stats->bytes_used;
  }

  static constexpr std::uint64_t kLength = 4;

 private:
  NobodyWaits sink_;
  std::uint64_t last_op_{};
  std::unique_ptr<ShmStore> store_;
};

constexpr std::uint64_t kStride = 20;
constexpr std::uint64_t kPrime = 7919;  // next ones are not beside each other

void fill(TableOnTrial& table, std::uint64_t ranges) {
  for (std::uint64_t i = 0; i < ranges; ++i) table.lock(1, 1, kStride * i, LockMode::kExclusive);
}

void pair(std::uint64_t count, std::uint64_t ranges) {
  TableOnTrial table;
  fill(table, ranges);
  report(ns_each(2 * count, [&] {
    for (std::uint64_t i = 0; i < count; ++i) {
      const std::uint64_t gap = kStride * (i * kPrime % ranges) + kStride / 2;
      table.lock(1, 2, gap, LockMode::kExclusive);
      table.unlock(1, 2, gap);
    }
  }));
}

void files(std::uint64_t count, std::uint64_t files) {
  TableOnTrial table;
  for (std::uint64_t i = 0; i < files; ++i) table.lock(1 + i, 1, 0, LockMode::kExclusive);
  report(ns_each(2 * count, [&] {
    for (std::uint64_t i = 0; i < count; ++i) {
      const std::uint64_t file = 1 + i * kPrime % files;
      table.lock(file, 2, kStride, LockMode::kExclusive);
      table.unlock(file, 2, kStride);
    }
  }));
}

void readers(std::uint64_t count, std::uint64_t owners) {
  TableOnTrial table;
  for (std::uint64_t i = 0; i < owners; ++i) table.lock(1, 10 + i, 0, LockMode::kShared);
  report(ns_each(2 * count, [&] {
    for (std::uint64_t i = 0; i < count; ++i) {
      table.lock(1, 2, 0, LockMode::kShared);
      table.unlock(1, 2, 0);
    }
  }));
}

// On 1,024 files that nobody has a lock on, one after the other. All numbers are scattered: those
// in a row would share no cell of the filter.
constexpr std::uint64_t kUnlocked = 1024;

std::uint64_t scattered(std::uint64_t n) {
  n = (n ^ (n >> 30)) * 0xBF58476D1CE4E5B9ULL;
  n = (n ^ (n >> 27)) * 0x94D049BB133111EBULL;
  return n ^ (n >> 31);
}

std::array<std::uint64_t, kUnlocked> unlocked_files() {
  std::array<std::uint64_t, kUnlocked> all{};
  for (std::uint64_t i = 0; i < kUnlocked; ++i) all[i] = scattered((std::uint64_t{1} << 40) + i);
  return all;
}

void lock_files(TableOnTrial& table, std::uint64_t files) {
  for (std::uint64_t i = 0; i < files; ++i) {
    table.lock(scattered(1 + i), 1, 0, LockMode::kExclusive);
  }
}

void ops(std::uint64_t count, std::uint64_t files) {
  TableOnTrial table;
  lock_files(table, files);
  const auto unlocked = unlocked_files();
  report(ns_each(count, [&] {
    for (std::uint64_t i = 0; i < count; ++i) table.operate(unlocked[i % kUnlocked]);
  }));
}

void ops_beside(std::uint64_t count, std::uint64_t files) {
  TableOnTrial table;
  for (std::uint64_t i = 0; i < files; ++i) table.lock(1 + i, 1, kStride, LockMode::kExclusive);
  report(ns_each(count, [&] {
    for (std::uint64_t i = 0; i < count; ++i) table.operate(1 + i % files);
  }));
}

void look(std::uint64_t count, std::uint64_t files) {
  TableOnTrial table;
  lock_files(table, files);
  const auto unlocked = unlocked_files();
  std::uint64_t clear = 0;
  report(ns_each(count, [&] {
    for (std::uint64_t i = 0; i < count; ++i) {
      clear += table.nothing_on(unlocked[i % kUnlocked]) ? 1 : 0;
    }
  }));
  must(clear > count / 2, "nothing on most of them");
  std::fprintf(stderr, "nothing on %.1f%%\n",
               100.0 * static_cast<double>(clear) / static_cast<double>(count));
}

void memory(std::uint64_t ranges) {
  TableOnTrial table;
  const std::uint64_t before = table.bytes_used();
  fill(table, ranges);
  report(static_cast<double>(table.bytes_used() - before) / static_cast<double>(ranges));
}

// Owner i holds file i and waits for that of owner i + 1; the last one waits for nobody.
void chain_up(TableOnTrial& table, std::uint64_t owners) {
  for (std::uint64_t i = 1; i <= owners; ++i) table.lock(i, i, 0, LockMode::kExclusive);
  for (std::uint64_t i = 1; i < owners; ++i) must(table.wait(i + 1, i, i), "a chain");
}

void queue(std::uint64_t count, std::uint64_t waiters) {
  TableOnTrial table;
  table.lock(1, 1, 0, LockMode::kExclusive);
  for (std::uint64_t i = 2; i < 2 + waiters; ++i) must(table.wait(1, i, i), "a queue");
  const std::uint64_t next = 2 + waiters;
  report(ns_each(count, [&] {
    for (std::uint64_t i = next; i < next + count; ++i) must(table.wait(1, i, i), "a queue");
  }));
}

void chain(std::uint64_t count, std::uint64_t owners) {
  TableOnTrial table;
  chain_up(table, owners);
  report(ns_each(count, [&] {
    for (std::uint64_t i = 1; i <= count; ++i) must(table.wait(1, owners + i, owners + i), "wait");
  }));
}

void cycle(std::uint64_t count, std::uint64_t owners) {
  TableOnTrial table;
  chain_up(table, owners);
  std::uint64_t queued = 0;
  report(ns_each(count, [&] {
    for (std::uint64_t i = 1; i <= count; ++i) {
      if (!table.wait(1, owners, owners)) continue;
      ++queued;
      table.cancel(1, owners);
    }
  }));
  if (queued != 0)
    std::fprintf(stderr, "not found: %llu\n", static_cast<unsigned long long>(queued));
}

void moved(std::uint64_t waiters) {
  TableOnTrial table;
  table.lock(1, 1, 0, LockMode::kShared);
  table.lock(1, 2, 0, LockMode::kShared);
  for (std::uint64_t i = 3; i < 3 + waiters; ++i) must(table.wait(1, i, i), "a queue");
  report(ns_each(1, [&] { table.unlock(1, 1, 0); }));
}

int run(int argc, char** argv) {
  const std::string_view what = argc > 2 ? argv[1] : "";
  if (what == "pair" && argc == 4) {
    pair(number(argv[2]), number(argv[3]));
  } else if (what == "files" && argc == 4) {
    files(number(argv[2]), number(argv[3]));
  } else if (what == "readers" && argc == 4) {
    readers(number(argv[2]), number(argv[3]));
  } else if (what == "ops" && argc == 4) {
    ops(number(argv[2]), number(argv[3]));
  } else if (what == "ops_beside" && argc == 4) {
    ops_beside(number(argv[2]), number(argv[3]));
  } else if (what == "look" && argc == 4) {
    look(number(argv[2]), number(argv[3]));
  } else if (what == "memory" && argc == 3) {
    memory(number(argv[2]));
  } else if (what == "queue" && argc == 4) {
    queue(number(argv[2]), number(argv[3]));
  } else if (what == "chain" && argc == 4) {
    chain(number(argv[2]), number(argv[3]));
  } else if (what == "cycle" && argc == 4) {
    cycle(number(argv[2]), number(argv[3]));
  } else if (what == "moved" && argc == 3) {
    moved(number(argv[2]));
  } else {
    std::fputs(
        "usage: tablebench pair|files|readers|ops|ops_beside|look|queue|chain|cycle COUNT "
        "HOW_MANY, "
        "tablebench memory|moved HOW_MANY\n",
        stderr);
    return 2;
  }
  return 0;
}

}  // namespace
}  // namespace latchfs::bench

int main(int argc, char** argv) { return latchfs::bench::run(argc, argv); }
