// The shared table at its limits: full, damaged, of another format.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <functional>
#include <optional>
#include <utility>
#include <vector>

#include "store/shm/region.h"
#include "store/shm/registry.h"
#include "support/store_fixture.h"

namespace latchfs::test {
namespace {

LockRequest request(LockService& store, std::uint64_t n, std::uint32_t uid = 0) {
  LockRequest r;
  r.file = {1, n};
  r.owner = {store.mount_id(), n + 1, OwnerSpace::kRange};
  r.mode = LockMode::kExclusive;
  r.kind = LockKind::kPosix;
  r.holder.uid = uid;
  return r;
}
std::error_code take(LockService& store, const LockRequest& r) {
  return store.acquire(r, OnConflict::kRefuse, {}).error();
}

// Takes locks on new files until refused; how many it got. 0 if refused for another reason.
std::uint64_t fill(LockService& store) {
  for (std::uint64_t n = 0; n < 10'000'000; ++n) {
    const auto ec = take(store, request(store, n));
    if (ec) return ec == errno_code(ENOLCK) ? n : 0;
  }
  return 0;
}

std::string registry_file(const std::string& table) { return "/run/latchfs/" + table + ".table"; }
std::string region_path(const std::string& table) {
  std::ifstream in{registry_file(table)};
  std::string name;
  std::getline(in, name);
  return "/dev/shm/" + name;
}

// In a child of its own, so that namespaces and identities stay there. True if fn was.
bool in_child(const std::function<bool()>& fn) {
  const pid_t pid = ::fork();
  if (pid == 0) ::_exit(fn() ? 0 : 1);
  int status = 0;
  return ::waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

Result<std::unique_ptr<ShmStore>> smallest_table(GrantSink& sink) {
  ShmStore::Options options;
  options.table = unique_table();
  options.table_max = shm::kMinRegion;
  return ShmStore::attach(options, sink);
}

TEST(ShmTable, FullIsEnolckAndGivesEverythingBack) {
  RecordingSink sink;
  auto store = smallest_table(sink);
  ASSERT_TRUE(store.ok()) << store.error().message();
  const std::uint64_t first = fill(**store);
  ASSERT_GT(first, 0u);
  EXPECT_EQ(*(*store)->verify(), "");
  for (std::uint64_t n = 0; n < first; ++n) {
    ASSERT_TRUE((*store)->drop_owner({1, n}, request(**store, n).owner).ok());
  }
  const auto empty = (*store)->stats();
  ASSERT_TRUE(empty.ok());
  EXPECT_EQ(empty->bytes_used, 0u);
  EXPECT_GE(fill(**store), first) << "what was given back must be there again";
}

// One shard's burst, then another's: what the first has nothing in any more serves the second.
TEST(ShmTable, MemoryOfOneBurstServesTheNext) {
  RecordingSink sink;
  auto store = smallest_table(sink);
  ASSERT_TRUE(store.ok()) << store.error().message();
  const auto burst = [&](std::uint64_t file) {
    LockRequest r = request(**store, file);
    std::uint64_t n = 0;
    for (; n < 10'000'000; ++n) {
      r.range = *ByteRange::from_half_open(2 * n, 2 * n + 1);
      if (take(**store, r)) break;
    }
    EXPECT_TRUE((*store)->drop_owner(r.file, r.owner).ok());
    return n;
  };
  const std::uint64_t first = burst(1);
  ASSERT_GT(first, 1000u);
  for (std::uint64_t file = 2; file < 6; ++file) {
    EXPECT_GT(burst(file), first - first / 4) << file;
    EXPECT_EQ(*(*store)->verify(), "");
  }
}

// Who knows where records go could otherwise choose offsets whose tree is one long branch; so deep
// that it would be taken for damaged.
TEST(ShmTable, NobodyChoosesTheShapeOfATree) {
  RecordingSink sink;  // aborts if anything is taken for damaged
  const std::string table = unique_table();
  const auto store = make_store("shm", sink, table);
  ASSERT_NE(store, nullptr);
  constexpr std::uint32_t kLocks = 2 * lock::kDeepest;
  // In an empty table: the first chunk, then, after that of owners and files, one after the other.
  constexpr shm::Chunk kFirst = shm::first_chunk(256ULL << 20);
  const auto record = [](std::uint32_t n) {
    const std::uint32_t nth = n / shm::kChunkCells;
    return (kFirst + (nth == 0 ? 0 : nth + 1)) * shm::kChunkCells + n % shm::kChunkCells;
  };
  std::vector<std::pair<std::uint64_t, std::uint32_t>> order;
  for (std::uint32_t n = 0; n < kLocks; ++n) {
    order.emplace_back(lock::treap_priority(record(n), 0), n);
  }
  std::sort(order.begin(), order.end());
  std::vector<std::uint64_t> place(kLocks);
  for (std::uint32_t i = 0; i < kLocks; ++i) place[order[i].second] = i;
  LockRequest r = request(*store, 1);
  for (const std::uint64_t at : place) {
    r.range = *ByteRange::from_half_open(2 * at, 2 * at + 1);
    ASSERT_FALSE(take(*store, r));
  }
  EXPECT_EQ(store->stats()->grants, kLocks);
}

TEST(ShmTable, MemoryGoesBackToTheSystemAfterABurst) {
  RecordingSink sink;
  ShmStore::Options options;
  options.table = unique_table();
  auto store = ShmStore::attach(options, sink);
  ASSERT_TRUE(store.ok()) << store.error().message();
  const auto used_pages = [&] {
    struct stat st {};
    return ::stat(region_path(options.table).c_str(), &st) == 0 ? st.st_blocks : 0;
  };
  const std::uint64_t committed = (*store)->stats()->bytes_committed;
  const auto pages = used_pages();
  LockRequest r = request(**store, 1);
  for (std::uint64_t n = 0; n < 100'000; ++n) {
    r.range = *ByteRange::from_half_open(2 * n, 2 * n + 1);
    ASSERT_FALSE(take(**store, r));
  }
  EXPECT_GT((*store)->stats()->bytes_committed, committed + 100'000 * 64 - 1);
  // But for one lock: its chunk stays.
  ASSERT_TRUE((*store)->release(r.file, r.owner, *ByteRange::from_half_open(1, 1 << 30)).ok());
  for (int tries = 0; tries < 600; ++tries) {
    if ((*store)->stats()->bytes_committed < committed + (1 << 20)) break;
    ::usleep(100'000);
  }
  EXPECT_LT((*store)->stats()->bytes_committed, committed + (1 << 20));
  EXPECT_LT(used_pages(), pages + (1 << 20) / 512);
  EXPECT_EQ((*store)->stats()->grants, 1u);
  EXPECT_EQ(*(*store)->verify(), "");
}

TEST(ShmTable, AUsersLimitHoldsForWhatUnlockingSplits) {
  RecordingSink sink;
  ShmStore::Options options;
  options.table = unique_table();
  options.max_locks_per_user = 10;
  auto store = ShmStore::attach(options, sink);
  ASSERT_TRUE(store.ok()) << store.error().message();
  LockRequest one = request(**store, 1);
  one.holder.uid = 1000;
  ASSERT_FALSE(take(**store, one));
  int split = 0;
  for (std::uint64_t at = 1; at < 100; at += 2) {
    const auto r = (*store)->release(one.file, one.owner, *ByteRange::from_half_open(at, at + 1));
    if (!r) {
      EXPECT_EQ(r.error(), errno_code(ENOLCK));
      break;
    }
    ++split;
  }
  EXPECT_EQ(split, 9) << "ten locks of one";
  EXPECT_EQ((*store)->stats()->grants, 10u);
  // What makes no more of them is no concern of the limit.
  EXPECT_TRUE((*store)->release(one.file, one.owner, ByteRange{}).ok());
  EXPECT_EQ((*store)->stats()->grants, 0u);
}

TEST(ShmTable, FullSharedMemoryIsEnolckNotSigbus) {
  EXPECT_TRUE(in_child([] {
    if (::unshare(CLONE_NEWNS) != 0) return false;
    if (::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) return false;
    const std::string size = "size=" + std::to_string(shm::cells_at(256ULL << 20) + (4 << 20));
    if (::mount("none", "/dev/shm", "tmpfs", 0, size.c_str()) != 0) return false;
    RecordingSink sink;
    const auto store = make_store("shm", sink);
    return store != nullptr && fill(*store) > 0 && *store->verify() == "";
  })) << "needs root: a mount namespace of its own";
}

TEST(ShmTable, NoRoomForTheTableItselfIsAnError) {
  EXPECT_TRUE(in_child([] {
    if (::unshare(CLONE_NEWNS) != 0) return false;
    if (::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) return false;
    if (::mount("none", "/dev/shm", "tmpfs", 0, "size=1m") != 0) return false;
    RecordingSink sink;
    ShmStore::Options options;
    options.table = unique_table();
    const auto store = ShmStore::attach(options, sink);
    ::unlink(registry_file(options.table).c_str());
    return store.error() == errno_code(ENOSPC);
  }));
}

TEST(ShmTable, AUserHasHisShareAndRootHasNoLimit) {
  RecordingSink sink;
  ShmStore::Options options;
  options.table = unique_table();
  options.table_max = 64 << 20;
  options.max_locks_per_user = 10;
  auto store = ShmStore::attach(options, sink);
  ASSERT_TRUE(store.ok());
  for (std::uint64_t n = 0; n < 10; ++n) EXPECT_FALSE(take(**store, request(**store, n, 1000)));
  EXPECT_EQ(take(**store, request(**store, 10, 1000)), errno_code(ENOLCK));
  EXPECT_FALSE(take(**store, request(**store, 11, 1001)));
  for (std::uint64_t n = 20; n < 50; ++n) EXPECT_FALSE(take(**store, request(**store, n, 0)));
  ASSERT_TRUE((*store)->drop_owner({1, 3}, request(**store, 3).owner).ok());
  EXPECT_FALSE(take(**store, request(**store, 10, 1000)));
}

TEST(ShmTable, NobodyElseHasRightsAndNothingStays) {
  const std::string table = unique_table();
  std::string region;
  {
    RecordingSink sink;
    const auto store = make_store("shm", sink, table);
    ASSERT_NE(store, nullptr);
    region = region_path(table);
    for (const auto& path : {region, registry_file(table)}) {
      struct stat st {};
      ASSERT_EQ(::stat(path.c_str(), &st), 0) << path;
      EXPECT_EQ(st.st_mode & 0777, 0600u) << path;
      EXPECT_EQ(st.st_uid, ::geteuid()) << path;
    }
    struct stat dir {};
    ASSERT_EQ(::stat("/run/latchfs", &dir), 0);
    EXPECT_EQ(dir.st_mode & 0077, 0u);
  }
  EXPECT_NE(::access(region.c_str(), F_OK), 0);
  EXPECT_NE(::access(registry_file(table).c_str(), F_OK), 0);
}

// A table of another format that somebody uses: of him only the byte in the registry is there.
struct ForeignTable {
  std::string table{unique_table()}, region;
  std::optional<shm::Registry> user;

  explicit ForeignTable(const std::function<void(shm::Header&)>& change) {
    auto registry = shm::Registry::open(table);
    auto name = shm::Registry::fresh_region_name(table);
    if (!registry || !name || !registry->set_region_name(*name)) return;
    region = *name;
    const auto made = shm::Region::create(region, 256ULL << 20);
    if (!made || !registry->claim(0)) return;
    change((*made)->header());
    user = std::move(*registry);
  }
  ~ForeignTable() { shm::Region::remove(region); }
};

ShmStore::Options options_for(const std::string& table) {
  ShmStore::Options options;
  options.table = table;
  options.table_max = 256ULL << 20;
  return options;
}

TEST(ShmTable, AnotherFormatIsRefusedWhileUsedAndReplacedAfter) {
  for (const bool damage : {false, true}) {
    ForeignTable foreign{[damage](shm::Header& header) {
      if (damage) {
        header.identity.created_at ^= 1;  // the checksum no longer fits
      } else {
        header.identity.format += 1;
        header.identity.checksum = shm::checksum_of(header.identity);
      }
    }};
    ASSERT_TRUE(foreign.user.has_value());
    const ShmStore::Options options = options_for(foreign.table);
    RecordingSink other;
    EXPECT_EQ(ShmStore::attach(options, other).error(), errno_code(damage ? EIO : EPROTO));
    if (!damage) {
      const std::string formats = ShmStore::formats(foreign.table);
      EXPECT_EQ(formats.rfind("format " + std::to_string(shm::kTableFormat + 1) + " (layout ", 0),
                0u)
          << formats;
      EXPECT_NE(formats.find("this latchfs has " + std::to_string(shm::kTableFormat) + " (layout "),
                std::string::npos);
    }
    // Gone without a word: the table stays behind, and the next mount replaces it.
    foreign.user.reset();
    auto again = ShmStore::attach(options, other);
    ASSERT_TRUE(again.ok()) << again.error().message();
    EXPECT_NE(::access(("/dev/shm/" + foreign.region).c_str(), F_OK), 0);
  }
}

// A header of another format may have all else at other places.
TEST(ShmTable, AnotherFormatIsKnownByItsNumberAlone) {
  const ForeignTable foreign{[](shm::Header& header) {
    header.identity.format += 1;
    header.ready.store(0);
    header.identity.region_bytes = 1;
  }};
  ASSERT_TRUE(foreign.user.has_value());
  RecordingSink other;
  EXPECT_EQ(ShmStore::attach(options_for(foreign.table), other).error(), errno_code(EPROTO));
}

TEST(ShmTable, ATableInUseWhoseNameWasRemovedIsNotDoubled) {
  const std::string table = unique_table();
  RecordingSink sink;
  auto first = make_store("shm", sink, table);
  ASSERT_NE(first, nullptr);
  ASSERT_EQ(::unlink(region_path(table).c_str()), 0);
  ShmStore::Options options;
  options.table = table;
  RecordingSink other;
  EXPECT_EQ(ShmStore::attach(options, other).error(), errno_code(ENOENT));
  EXPECT_FALSE(take(*first, request(*first, 1))) << "those who use it go on";
  first.reset();
  EXPECT_TRUE(ShmStore::attach(options, other).ok());
}

TEST(ShmTable, NamesThatCouldEscapeAreRefused) {
  RecordingSink sink;
  for (const char* name : {"", ".", "..", ".hidden", "a/b", "../x", "a b", "a\n"}) {
    ShmStore::Options options;
    options.table = name;
    EXPECT_EQ(ShmStore::attach(options, sink).error(), errno_code(EINVAL)) << name;
  }
}

// flock and byte-range owners of one file, their keys mixed.
TEST(ShmTable, WhoLeavesLeavesNoLockBehind) {
  const std::string table = unique_table();
  RecordingSink sink;
  RecordingSink other_sink;
  const auto store = make_store("shm", sink, table);
  ASSERT_NE(store, nullptr);
  {
    const auto other = make_store("shm", other_sink, table);
    ASSERT_NE(other, nullptr);
    for (std::uint64_t key = 1; key <= 6; ++key) {
      LockRequest r = request(*other, 1);
      const bool flock = key % 2 == 0;
      r.owner = {other->mount_id(), key, flock ? OwnerSpace::kFlock : OwnerSpace::kRange};
      r.kind = flock ? LockKind::kFlock : LockKind::kPosix;
      r.mode = LockMode::kShared;
      ASSERT_FALSE(take(*other, r));
    }
  }
  EXPECT_FALSE(take(*store, request(*store, 1)));
  const auto stats = store->stats();
  ASSERT_TRUE(stats.ok());
  EXPECT_EQ(stats->grants, 1u);
  EXPECT_EQ(stats->owners, 1u);
}

TEST(ShmTable, TwoMountsSeeGrantAndWakeEachOther) {
  const std::string table = unique_table();
  RecordingSink sink_a;
  RecordingSink sink_b;
  const auto a = make_store("shm", sink_a, table);
  const auto b = make_store("shm", sink_b, table);
  ASSERT_NE(a, nullptr);
  ASSERT_NE(b, nullptr);
  auto ra = request(*a, 1);
  auto rb = request(*b, 1);
  ASSERT_FALSE(take(*a, ra));
  for (std::uint64_t round = 1; round <= 200; ++round) {
    auto got = b->acquire(rb, OnConflict::kQueue, WaiterToken{round});
    ASSERT_TRUE(got.ok() && std::holds_alternative<Queued>(*got));
    ASSERT_TRUE(a->release(ra.file, ra.owner, ByteRange{}).ok());
    ASSERT_EQ(sink_b.await(round), 0);
    got = a->acquire(ra, OnConflict::kQueue, WaiterToken{round});
    ASSERT_TRUE(got.ok() && std::holds_alternative<Queued>(*got));
    ASSERT_TRUE(b->release(rb.file, rb.owner, ByteRange{}).ok());
    ASSERT_EQ(sink_a.await(round), 0);
  }
  // A deadlock across the two.
  auto other_a = request(*a, 2);
  other_a.owner = ra.owner;
  auto other_b = request(*b, 2);
  other_b.owner = rb.owner;
  ASSERT_FALSE(take(*b, other_b));
  ASSERT_TRUE(
      std::holds_alternative<Queued>(*b->acquire(rb, OnConflict::kQueue, WaiterToken{1001})));
  EXPECT_TRUE(std::holds_alternative<Deadlock>(
      *a->acquire(other_a, OnConflict::kQueue, WaiterToken{1002})));
  EXPECT_EQ(*a->verify(), "");
}

}  // namespace
}  // namespace latchfs::test
