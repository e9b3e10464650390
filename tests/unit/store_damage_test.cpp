// Something writes into the shared table that must not: it is noticed, what it hit is emptied, and
// nobody hangs or dies of it.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <functional>
#include <ostream>
#include <random>

#include "store/shm/region.h"
#include "store/shm/registry.h"
#include "store/shm/shm_arena.h"
#include "support/store_fixture.h"

namespace latchfs::test {
namespace {

constexpr FileId kFile{1, 100};
constexpr auto kExpected = RecordingSink::Losses::kExpected;

std::unique_ptr<shm::Region> map_table(const std::string& table) {
  const auto registry = shm::Registry::open(table);
  auto region = shm::Region::open(registry ? registry->region_name() : "");
  return region ? std::move(*region) : nullptr;
}

LockRequest ask(LockService& store, std::uint64_t key, FileId file = kFile) {
  LockRequest r;
  r.file = file;
  r.owner = {store.mount_id(), key, OwnerSpace::kRange};
  r.mode = LockMode::kExclusive;
  r.kind = LockKind::kPosix;
  return r;
}
bool take(LockService& store, const LockRequest& r) {
  const auto got = store.acquire(r, OnConflict::kRefuse, {});
  return got.ok() && std::holds_alternative<Granted>(*got);
}

// Two mounts. The first holds kFile, and locks on files of many shards; owners of both wait.
struct Ground {
  explicit Ground(std::string name = unique_table()) : table{std::move(name)} {}

  std::string table;
  RecordingSink sink_a{kExpected}, sink_b{kExpected};
  std::unique_ptr<LockService> a{make_store("shm", sink_a, table)};
  std::unique_ptr<LockService> b{make_store("shm", sink_b, table)};
  std::unique_ptr<shm::Region> region{map_table(table)};

  [[nodiscard]] bool ready() const {
    if (!a || !b || !region || !take(*a, ask(*a, 1))) return false;
    for (std::uint64_t n = 0; n < 200; ++n) {
      if (!take(*a, ask(*a, 1, {1, 1000 + n})) || !take(*b, ask(*b, 2, {1, 2000 + n}))) {
        return false;
      }
    }
    for (std::uint64_t n = 0; n < 3; ++n) {
      const auto got = b->acquire(ask(*b, 10 + n), OnConflict::kQueue, WaiterToken{10 + n});
      if (!got.ok() || !std::holds_alternative<Queued>(*got)) return false;
    }
    return true;
  }
  [[nodiscard]] shm::Shard& shard() const {
    return region->shard(shm::ShmBackend::shard_of(kFile));
  }
  template <class T>
  T& rec(lock::Ref ref) const {
    return *reinterpret_cast<T*>(region->base() + std::uint64_t{ref} * shm::kCellBytes);
  }
  [[nodiscard]] lock::FileRec& file() const {
    lock::Ref f = shard().root.files;
    while (rec<lock::FileRec>(f).ino != kFile.ino) {
      const auto& r = rec<lock::FileRec>(f);
      f = kFile < FileId{r.dev, r.ino} ? r.left : r.right;
    }
    return rec<lock::FileRec>(f);
  }
  [[nodiscard]] std::uint32_t losses() const {
    std::uint32_t n = 0;
    for (std::uint32_t i = 0; i < shm::kShardCount; ++i) n += region->shard(i).losses.load();
    return n;
  }
};

struct Damage {
  const char* what;
  bool emptied;  // whether locks must be gone
  std::function<void(Ground&)> doing;
};
void PrintTo(const Damage& d, std::ostream* os) { *os << d.what; }

class ATableWrittenOver : public testing::TestWithParam<Damage> {};

TEST_P(ATableWrittenOver, IsEmptiedOrMendedAndGoesOn) {
  const std::uint64_t looks = shm::g_most_looks.exchange(1'000'000);
  Ground ground;
  ASSERT_TRUE(ground.ready());
  GetParam().doing(ground);
  // Somebody stumbles over it: each in its own way, all come back.
  (void)ground.a->test(ask(*ground.a, 5));
  (void)ground.b->list({kFile, {}, 256});
  (void)ground.b->list_waiters({kFile, {}, 256});
  (void)ground.a->release(kFile, ask(*ground.a, 1).owner, ByteRange{});
  (void)ground.a->verify();
  EXPECT_EQ(*ground.a->verify(), "") << "what is wrong is gone the second time";
  if (GetParam().emptied) {
    EXPECT_TRUE(ground.sink_b.await_loss(kFile)) << "who waits elsewhere is told";
    EXPECT_GT(ground.losses(), 0u);
  } else {
    EXPECT_EQ(ground.sink_b.await(10), 0) << "the first that waited has it now";
    EXPECT_EQ(ground.losses(), 0u);
  }
  // It is a table like any other again, for who was there and for who comes.
  const FileId fresh{1, 77};
  EXPECT_TRUE(take(*ground.a, ask(*ground.a, 6, fresh)));
  EXPECT_FALSE(take(*ground.b, ask(*ground.b, 6, fresh)));
  RecordingSink sink{kExpected};
  const auto next = make_store("shm", sink, ground.table);
  ASSERT_NE(next, nullptr);
  EXPECT_FALSE(take(*next, ask(*next, 6, fresh)));
  EXPECT_TRUE(ground.a->release(fresh, ask(*ground.a, 6).owner, ByteRange{}).ok());
  EXPECT_TRUE(take(*next, ask(*next, 6, fresh)));
  EXPECT_EQ(next->stats()->mounts.size(), 3u);
  shm::g_most_looks = looks;
}

void overwrite_mutex(RobustMutex& mu, std::size_t at, std::uint32_t value) {
  std::memcpy(reinterpret_cast<std::byte*>(&mu) + at, &value, sizeof value);
}

// Another program's process, which has nothing to do with the table.
struct Stranger {
  pid_t pid{::fork()};
  Stranger() {
    if (pid == 0) {
      ::execl("/bin/sleep", "sleep", "1000", nullptr);
      ::_exit(1);
    }
    ::usleep(100'000);
  }
  ~Stranger() {
    ::kill(pid, SIGKILL);
    ::waitpid(pid, nullptr, 0);
  }
  Stranger(const Stranger&) = delete;
  Stranger& operator=(const Stranger&) = delete;
};

INSTANTIATE_TEST_SUITE_P(
    Everywhere, ATableWrittenOver,
    testing::Values(
        Damage{"a link that leads nowhere", true,
               [](Ground& g) { g.shard().root.files = 0xfffffff0U; }},
        Damage{"a link into the header", true, [](Ground& g) { g.shard().root.files = 1; }},
        Damage{"a link to another shard's record", true,
               [](Ground& g) {
                 const auto other = (shm::ShmBackend::shard_of(kFile) + 1) % shm::kShardCount;
                 g.shard().root.files = g.region->shard(other).root.files;
               }},
        Damage{"a link to a record of another size", true,
               [](Ground& g) { g.shard().root.files = g.file().wait_head; }},
        Damage{"a tree that bites its tail", true,
               [](Ground& g) {
                 auto& grant = g.rec<lock::GrantRec>(g.file().range_grants);
                 grant.file_left = grant.file_right = g.file().range_grants;
               }},
        Damage{"a tree that goes on to the right for ever", true,
               [](Ground& g) {
                 auto& grant = g.rec<lock::GrantRec>(g.file().range_grants);
                 grant.file_right = g.file().range_grants;
                 grant.begin = grant.end = 1;
                 grant.max_end = grant.max_ex_end = ByteRange::kEof;
               }},
        Damage{"a queue that bites its tail", true,
               [](Ground& g) {
                 g.rec<lock::WaiterRec>(g.file().wait_head).next = g.file().wait_head;
               }},
        Damage{"a file that counts what is not there", true,
               [](Ground& g) { g.file().grant_count += 7; }},
        Damage{"an announcement that nobody made", true,
               [](Ground& g) { g.shard().root.intent.owner = 0x12345; }},
        Damage{"entries in the log between steps", true,
               [](Ground& g) { g.shard().log_count = 3; }},
        Damage{"a log longer than a log", true,
               [](Ground& g) { g.shard().log_count = 0x7fffffff; }},
        Damage{"a slab that leads nowhere", true,
               [](Ground& g) { g.shard().small.head = 0x7fffffff; }},
        Damage{"a slab that counts what is not there", true,
               [](Ground& g) { g.shard().large.room += 1000; }},
        Damage{"a chunk that is another shard's", true,
               [](Ground& g) {
                 const lock::Ref ref = g.shard().root.files;
                 g.region->chunks()[ref / shm::kChunkCells].owner ^= 1;
               }},
        Damage{"a mutex that is of no kind", true,
               [](Ground& g) { overwrite_mutex(g.shard().mu, 16, 0xdeadbeefU); }},
        Damage{"a mutex that is of another kind", true,
               [](Ground& g) { overwrite_mutex(g.shard().mu, 16, 0); }},
        Damage{"a mutex that a thread has which there is not", false,
               [](Ground& g) { overwrite_mutex(g.shard().mu, 0, 0x3ffffff0U); }},
        Damage{"a mutex that a stranger has", false,
               [](Ground& g) {
                 static const Stranger stranger;
                 overwrite_mutex(g.shard().mu, 0, static_cast<std::uint32_t>(stranger.pid));
               }},
        Damage{"a mutex that nobody has but some wait for", false,
               [](Ground& g) { overwrite_mutex(g.shard().mu, 0, 0x80000000U); }},
        Damage{"the mutex of memory held by nobody", false,
               [](Ground& g) { overwrite_mutex(g.region->header().grow_mu, 0, 0x3ffffff0U); }},
        Damage{"unused memory that is used", false,
               [](Ground& g) {
                 g.region->header().space.given_back = g.shard().root.files / shm::kChunkCells;
               }},
        Damage{"a count of mounts", false,
               [](Ground& g) { g.region->header().mount_count.store(77); }},
        Damage{"a place of a mount that is not there", false,
               [](Ground& g) { g.region->header().mounts[9].id.store(77); }},
        Damage{"the next mount's number", false,
               [](Ground& g) { g.region->header().next_mount_id.store(3); }}),
    [](const auto& of) {
      std::string name = of.param.what;
      for (char& c : name) c = std::isalnum(static_cast<unsigned char>(c)) != 0 ? c : '_';
      return name;
    });

// Nobody stumbles over a header: the daemons look.
TEST(AHeaderWrittenOver, IsMadeAnewWithAnEmptyTable) {
  const std::vector<std::function<void(shm::Header&)>> damages{
      [](shm::Header& h) { h.identity.created_at ^= 1; },
      [](shm::Header& h) { h.identity.magic = 0; },
      [](shm::Header& h) { h.identity.region_bytes *= 2; },
      [](shm::Header& h) { h.ready.store(0); },
      [](shm::Header& h) { h.space.frontier = 12345; },
      [](shm::Header& h) { h.space.frontier = ~std::uint64_t{0}; },
      [](shm::Header& h) { std::memset(static_cast<void*>(&h), 0x5a, sizeof h); },
  };
  for (std::size_t n = 0; n < damages.size(); ++n) {
    Ground ground;
    ASSERT_TRUE(ground.ready());
    damages[n](ground.region->header());
    RecordingSink sink{kExpected};
    // (Longer, if who mends it gets no processor.)
    std::unique_ptr<LockService> next;
    for (int i = 0; i < 20 && next == nullptr; ++i) next = make_store("shm", sink, ground.table);
    ASSERT_NE(next, nullptr) << n << ": who comes waits for it to be mended";
    EXPECT_TRUE(ground.sink_b.await_loss(kFile)) << n;
    EXPECT_TRUE(take(*next, ask(*next, 9))) << n;
    EXPECT_FALSE(take(*ground.a, ask(*ground.a, 1))) << n << ": and the others see it";
    EXPECT_EQ(*ground.b->verify(), "") << n;
  }
}

// Made when the clock was ahead: whoever comes later is somebody else all the same.
TEST(AHeaderWrittenOver, NoTwoMountsHaveOneNumber) {
  Ground ground;
  ASSERT_TRUE(ground.ready());
  for (const std::uint64_t next : {std::uint64_t{0}, ground.b->mount_id(), ~std::uint64_t{0}}) {
    ground.region->header().next_mount_id.store(next);
    RecordingSink sink{kExpected};
    const auto third = make_store("shm", sink, ground.table);
    ASSERT_NE(third, nullptr);
    EXPECT_NE(third->mount_id(), ground.a->mount_id());
    EXPECT_NE(third->mount_id(), ground.b->mount_id());
  }
}

// Its own place, which only it knows.
TEST(AHeaderWrittenOver, AMountsPlaceIsItsOwnToMend) {
  Ground ground;
  ASSERT_TRUE(ground.ready());
  shm::MountSlot& slot = ground.region->header().mounts[0];
  const std::uint64_t id = slot.id.load();
  slot.id.store(id + 1000);
  for (int tries = 0; tries < 600 && slot.id.load() != id; ++tries) ::usleep(100'000);
  EXPECT_EQ(slot.id.load(), id);
  EXPECT_TRUE(ground.a->release(kFile, ask(*ground.a, 1).owner, ByteRange{}).ok());
  EXPECT_EQ(ground.sink_b.await(10), 0);
}

// Anything anywhere. A value inside a record that makes sense there is not noticed; but whatever it
// is, nobody crashes, nobody hangs, and once all locks are given up the table is as good as new.
void scribble_and_go_on(const std::string& table, std::uint64_t seed) {
  shm::g_most_looks = 1'000'000;
  std::mt19937_64 random{seed};
  const auto below = [&random](std::uint64_t n) { return random() % n; };
  Ground ground{table};
  if (!ground.ready()) ::_exit(2);
  shm::Region& region = *ground.region;
  for (int round = 0; round < 8; ++round) {
    const std::uint64_t chunks = region.chunk_limit();
    std::uint64_t at = 0;
    switch (below(4)) {
      case 0:
        at = below(sizeof(shm::Header));
        break;
      case 1:
        at = shm::kShardsAt + below(shm::kShardCount) * shm::kShardStride + below(2048);
        break;
      case 2:
        at = shm::kChunksAt + below(chunks * sizeof(shm::ChunkRec));
        break;
      default:
        at = shm::cells_at(region.bytes());
        at += below(std::max<std::uint64_t>(chunks * shm::kChunkBytes, at + 1) - at);
        break;
    }
    at = std::min(at, region.bytes() - 8) & ~std::uint64_t{3};
    const std::uint64_t value = below(2) == 0 ? random() : below(1000);
    std::memcpy(region.base() + at, &value, below(2) == 0 ? 4 : 8);
    for (int step = 0; step < 60; ++step) {
      LockService& store = below(2) == 0 ? *ground.a : *ground.b;
      const FileId file{1, below(3) == 0 ? 100 : 1000 + below(200)};
      switch (below(6)) {
        case 0:
          (void)store.release(file, ask(store, 1 + below(3)).owner, ByteRange{});
          break;
        case 1:
          (void)store.list({});
          break;
        case 2:
          (void)store.cancel(kFile, WaiterToken{10 + below(3)});
          break;
        default:
          (void)store.acquire(ask(store, 1 + below(3), file), OnConflict::kRefuse, {});
          break;
      }
    }
    (void)ground.a->verify();
  }
  // (A wild mount or file number inside a record stays; who ends the last mount ends it.)
  ground.a.reset();
  (void)ground.b->verify();
  if (*ground.b->verify() != "") ::_exit(3);
  if (!take(*ground.b, ask(*ground.b, 6, {9, 9}))) ::_exit(4);
  RecordingSink sink{kExpected};
  const auto next = make_store("shm", sink, ground.table);
  if (next == nullptr || take(*next, ask(*next, 6, {9, 9}))) ::_exit(5);
}

TEST(ATableScribbledOver, NobodyHangsOrDies) {
  for (const std::uint64_t first : seeds({1})) {
    for (std::uint64_t seed = first; seed < first + 15; ++seed) {
      const std::string table = unique_table();  // removed by this process, whatever happens
      const pid_t pid = ::fork();
      if (pid == 0) {
        ::alarm(100);
        ::close(2);  // it says a lot, rightly
        scribble_and_go_on(table, seed);
        ::_exit(0);
      }
      int status = 0;
      ASSERT_EQ(::waitpid(pid, &status, 0), pid);
      EXPECT_EQ(status, 0) << "LATCHFS_SEED=" << seed
                           << (WIFSIGNALED(status) ? " signal " : " exit ")
                           << (WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
    }
  }
}

}  // namespace
}  // namespace latchfs::test
