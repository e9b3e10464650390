// A process is killed at every single store to the shared table, in turn, in the middle of each
// kind of change; the survivor must find exactly the old or the new state, every invariant intact,
// and nobody left waiting.
//
// The victim is this program again (--victim), with the fault point "shm.store" armed. What it
// changes is the survivor's own: its locks broken, its waiters granted. So that what is left can be
// told from what reaping the victim takes away.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <csignal>
#include <cstring>
#include <functional>
#include <thread>

#include "base/fault_point.h"
#include "base/log.h"
#include "crash/step_mount.h"
#include "support/store_fixture.h"

namespace latchfs::test {
namespace {

constexpr FileId kFile{1, 100};
constexpr std::uint64_t kEof = ByteRange::kEof;

LockRequest request(LockService& store, std::uint64_t key, std::uint64_t begin, std::uint64_t end,
                    LockMode mode, FileId file = kFile) {
  LockRequest r;
  r.file = file;
  r.owner = {store.mount_id(), key, OwnerSpace::kRange};
  r.range = *ByteRange::from_half_open(begin, end);
  r.mode = mode;
  r.kind = LockKind::kPosix;
  r.holder.uid = 1000;
  r.holder.pid = 1;
  return r;
}

bool take(LockService& store, const LockRequest& r, OnConflict on = OnConflict::kRefuse,
          std::uint64_t token = 0) {
  const auto got = store.acquire(r, on, WaiterToken{token});
  return got.ok() && !std::holds_alternative<Deadlock>(*got) &&
         (on == OnConflict::kQueue || std::holds_alternative<Granted>(*got));
}

// What the victim does, by name. `survivor`: the survivor's mount number.
using Act = std::function<void(LockService&, std::uint64_t survivor)>;
const std::map<std::string, Act>& acts() {
  static const std::map<std::string, Act> all = {
      {"split",  // part of one lock is broken: two pieces stay, a waiter is granted
       [](LockService& s, std::uint64_t m) {
         (void)s.break_range(kFile, {m, 1, OwnerSpace::kRange}, *ByteRange::from_half_open(10, 20),
                             true);
       }},
      {"wide",  // very many grants go in one request, in several steps
       [](LockService& s, std::uint64_t m) {
         (void)s.break_range(kFile, {m, 2, OwnerSpace::kRange}, ByteRange{}, false);
       }},
      {"crowd",  // one lock goes and forty waiters are granted
       [](LockService& s, std::uint64_t m) {
         (void)s.break_range(kFile, {m, 3, OwnerSpace::kRange}, ByteRange{}, false);
       }},
      {"own",  // the victim's own: lock, merge, split, upgrade, downgrade, unlock
       [](LockService& s, std::uint64_t) {
         const FileId f{1, 7};
         (void)take(s, request(s, 50, 0, 10, LockMode::kShared, f));
         (void)take(s, request(s, 50, 10, 20, LockMode::kShared, f));
         (void)take(s, request(s, 50, 5, 15, LockMode::kExclusive, f));
         (void)take(s, request(s, 50, 0, kEof, LockMode::kShared, f));
         (void)s.release(f, {s.mount_id(), 50, OwnerSpace::kRange},
                         *ByteRange::from_half_open(3, 4));
         (void)s.drop_owner(f, {s.mount_id(), 50, OwnerSpace::kRange});
       }},
      {"wait",  // the victim queues behind the survivor, cancels, queues again
       [](LockService& s, std::uint64_t) {
         (void)take(s, request(s, 60, 0, 30, LockMode::kExclusive), OnConflict::kQueue, 1);
         (void)s.cancel(kFile, WaiterToken{1});
         (void)take(s, request(s, 61, 0, 30, LockMode::kExclusive), OnConflict::kQueue, 2);
       }},
      {"grow",  // new memory for many files
       [](LockService& s, std::uint64_t) {
         for (std::uint64_t i = 0; i < 2; ++i) {
           (void)take(s, request(s, 70, 0, 1, LockMode::kExclusive, {2, i * 64}));
         }
       }},
  };
  return all;
}

class SilentSink final : public GrantSink {
  void granted(WaiterToken) noexcept override {}
  void refused(WaiterToken, int) noexcept override {}
};

int victim(char** argv) {
  if (!log::open("stderr", log::Level::kError)) return 3;
  ShmStore::Options options;
  options.table = argv[0];
  SilentSink sink;
  auto store = ShmStore::attach(options, sink);
  if (!store) return 3;
  arm_faults(argv[2]);
  acts().at(argv[1])(**store, std::stoull(argv[3]));
  arm_faults("");
  return 0;
}

// 0: ran to its end; 1: killed; 2: something else.
int run_victim(const std::string& table, const std::string& act, const std::string& fault,
               std::uint64_t survivor) {
  const std::string number = std::to_string(survivor);
  const pid_t pid = ::fork();
  if (pid == 0) {
    ::execl("/proc/self/exe", "victim", "--victim", table.c_str(), act.c_str(), fault.c_str(),
            number.c_str(), nullptr);
    ::_exit(127);
  }
  int status = 0;
  if (::waitpid(pid, &status, 0) != pid) return 2;
  if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) return 1;
  return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : 2;
}

std::vector<std::string> listed(LockService& store, std::uint64_t mount) {
  std::vector<std::string> out;
  ListQuery query;
  query.limit = 256;
  for (;;) {
    const auto page = store.list(query);
    if (!page.ok()) return {"list: " + page.error().message()};
    for (const Grant& g : page->grants) {
      if (g.owner.mount != mount) continue;
      out.push_back(std::to_string(g.file.ino) + " " + to_string(g.owner) + " " +
                    std::to_string(g.range.begin()) + "-" + std::to_string(g.range.end()) +
                    (g.mode == LockMode::kExclusive ? " EX" : " SH"));
    }
    if (!page->next) break;
    query.after = *page->next;
  }
  std::sort(out.begin(), out.end());
  return out;
}

class ShmStoreCrash : public ::testing::TestWithParam<const char*> {
 protected:
  // A survivor with locks and waiters of its own, always the same.
  struct Survivor {
    explicit Survivor(const std::string& table) : store{make_store("shm", sink, table)} {}
    void fill() {
      ASSERT_NE(store, nullptr);
      ASSERT_TRUE(take(*store, request(*store, 1, 0, 30, LockMode::kExclusive)));
      ASSERT_TRUE(
          take(*store, request(*store, 9, 12, 14, LockMode::kExclusive), OnConflict::kQueue, 900));
      for (std::uint64_t i = 0; i < 60; ++i) {
        const std::uint64_t at = 1000 + i * 2;
        ASSERT_TRUE(take(*store, request(*store, 2, at, at + 1, LockMode::kExclusive)));
      }
      ASSERT_TRUE(take(*store, request(*store, 3, 5000, 5100, LockMode::kExclusive)));
      for (std::uint64_t i = 0; i < 40; ++i) {
        ASSERT_TRUE(take(*store, request(*store, 100 + i, 5000, 5100, LockMode::kShared),
                         OnConflict::kQueue, 1000 + i));
      }
    }
    RecordingSink sink;
    std::unique_ptr<LockService> store;
  };

  static void await_alone(LockService& store) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds{60};
    for (;;) {
      const auto stats = store.stats();
      ASSERT_TRUE(stats.ok());
      if (stats->mounts.size() == 1) return;
      ASSERT_LT(std::chrono::steady_clock::now(), deadline) << "a dead mount was never reaped";
      std::this_thread::sleep_for(std::chrono::milliseconds{1});
    }
  }
};

TEST_P(ShmStoreCrash, OldOrNewAtEveryStore) {
  const std::string act = GetParam();
  // Every one with LATCHFS_CRASH_STRIDE=1 (scripts/crash-test); a sample in CI.
  const char* stride_text = std::getenv("LATCHFS_CRASH_STRIDE");
  const int stride = stride_text != nullptr ? std::max(1, std::atoi(stride_text)) : 23;

  std::vector<std::string> before;
  std::vector<std::string> after;
  {
    Survivor s{unique_table()};
    s.fill();
    before = listed(*s.store, s.store->mount_id());
  }
  int points = 0;
  bool finished = false;
  // A random phase: other points on each run.
  const int phase = stride == 1 ? 1 : 1 + static_cast<int>(std::random_device{}() % stride);
  for (int at = phase; !finished; at += stride) {
    SCOPED_TRACE(act + " killed at store " + std::to_string(at));
    const std::string table = unique_table();
    Survivor s{table};
    s.fill();
    const std::uint64_t me = s.store->mount_id();
    const auto old_state = listed(*s.store, me);
    const int how = run_victim(table, act, "shm.store=kill@" + std::to_string(at), me);
    ASSERT_NE(how, 2);
    finished = how == 0;
    ++points;
    const auto wrong = s.store->verify();
    ASSERT_TRUE(wrong.ok());
    ASSERT_EQ(*wrong, "");
    await_alone(*s.store);
    const auto state = listed(*s.store, me);
    // The undisturbed outcome, for comparison.
    Survivor twin{unique_table()};
    twin.fill();
    acts().at(act)(*twin.store, twin.store->mount_id());
    auto new_state = listed(*twin.store, twin.store->mount_id());
    if (act == "own" || act == "wait" || act == "grow") new_state = old_state;
    const std::string mine = to_string(OwnerId{me, 0, {}}).substr(0, 16);
    const std::string theirs = to_string(OwnerId{twin.store->mount_id(), 0, {}}).substr(0, 16);
    for (auto& line : new_state) {
      const auto where = line.find(theirs);
      if (where != std::string::npos) line.replace(where, 16, mine);
    }
    std::sort(new_state.begin(), new_state.end());
    ASSERT_TRUE(state == old_state || state == new_state)
        << "neither the old nor the new state: " << ::testing::PrintToString(state);
    if (state == new_state && act == "split") {
      ASSERT_EQ(s.sink.await(900), 0);
    }
    if (state == new_state && act == "crowd") {
      for (std::uint64_t i = 0; i < 40; ++i) ASSERT_EQ(s.sink.await(1000 + i), 0);
    }
    if (state == old_state && act == "split") {
      ASSERT_FALSE(s.sink.outcome(900));
    }
    // It still works: everything can be given back, and then there is nothing left.
    for (std::uint64_t key = 1; key < 200; ++key) {
      // (A fence goes with its description only.)
      ASSERT_TRUE(s.store->drop_if_through(kFile, {me, key, OwnerSpace::kRange}, 0).ok());
    }
    ASSERT_TRUE(listed(*s.store, me).empty());
    const auto stats = s.store->stats();
    ASSERT_TRUE(stats.ok());
    ASSERT_EQ(stats->waiters, 0u);
    ASSERT_EQ(stats->owners, 0u);
    ASSERT_EQ(stats->files, 0u);
    ASSERT_EQ(stats->bytes_used, 0u);
  }
  RecordProperty("crash_points", points);
  std::printf("crash points: stores_of_%s 0 instructions %d points %d recovered 0 failures\n",
              act.c_str(), points, points);
}

INSTANTIATE_TEST_SUITE_P(Acts, ShmStoreCrash,
                         ::testing::Values("split", "wide", "crowd", "own", "wait", "grow"),
                         [](const auto& a) { return std::string{a.param}; });

TEST(ShmStoreDeath, TheLastToDieLeavesNothingBehind) {
  const std::string table = unique_table();
  EXPECT_EQ(run_victim(table, "grow", "shm.store=kill@30", 0), 1);
  RecordingSink sink;
  const auto store = make_store("shm", sink, table);  // the next mount reaps
  ASSERT_NE(store, nullptr);
  const auto stats = store->stats();
  ASSERT_TRUE(stats.ok());
  EXPECT_EQ(stats->grants, 0u);
  EXPECT_EQ(stats->mounts.size(), 1u);
}

// More than the undo log has room for: they were granted and their daemon, stopped, fetched none.
TEST(ShmStoreDeath, ThousandsThatWereGrantedAndNeverFetchedGoWithTheirDaemon) {
  constexpr std::uint64_t kReaders = 3500;
  const std::string table = unique_table();
  std::array<int, 2> go{};
  ASSERT_EQ(::pipe2(go.data(), O_CLOEXEC), 0);
  const pid_t pid = ::fork();
  if (pid == 0) {
    ::close(go[1]);
    SilentSink sink;
    const auto store = make_store("shm", sink, table);
    char byte = 0;
    if (store == nullptr || ::read(go[0], &byte, 1) != 1) ::_exit(3);
    for (std::uint64_t i = 1; i <= kReaders; ++i) {
      if (!take(*store, request(*store, i, 0, 10, LockMode::kShared), OnConflict::kQueue, i)) {
        ::_exit(4);
      }
    }
    ::raise(SIGSTOP);
    ::_exit(5);
  }
  ::close(go[0]);
  RecordingSink sink;
  const auto store = make_store("shm", sink, table);
  ASSERT_NE(store, nullptr);
  ASSERT_TRUE(take(*store, request(*store, 1, 0, 10, LockMode::kExclusive)));
  ASSERT_EQ(::write(go[1], "x", 1), 1);
  ::close(go[1]);
  int status = 0;
  ASSERT_EQ(::waitpid(pid, &status, WUNTRACED), pid);
  ASSERT_TRUE(WIFSTOPPED(status)) << status;
  ASSERT_TRUE(store->drop_owner(kFile, {store->mount_id(), 1, OwnerSpace::kRange}).ok());
  EXPECT_EQ(store->stats()->grants, kReaders);
  EXPECT_EQ(store->stats()->waiters, 0u);
  ASSERT_EQ(::kill(pid, SIGKILL), 0);
  ASSERT_EQ(::waitpid(pid, &status, 0), pid);
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds{60};
  while (store->stats()->mounts.size() != 1 && std::chrono::steady_clock::now() < until) {
    std::this_thread::sleep_for(std::chrono::milliseconds{2});
  }
  const auto stats = store->stats();
  ASSERT_TRUE(stats.ok());
  EXPECT_EQ(stats->mounts.size(), 1u);
  EXPECT_EQ(stats->grants, 0u);
  EXPECT_EQ(stats->bytes_used, 0u) << "records of the ready ones, too";
  EXPECT_EQ(*store->verify(), "");
}

// Only figures were asked for, and what the dead one had begun to grant was completed by that.
TEST(ShmStoreDeath, WhoeverRepairsTellsWhomItGrants) {
  constexpr std::uint64_t kReaders = 14;
  const std::string table = unique_table();
  TellTale told;
  const auto mount = join_quietly(table, told);
  ASSERT_NE(mount, nullptr);
  const pid_t pid = ::fork();
  if (pid == 0) {
    TellTale ignored;
    const auto dying = join_quietly(table, ignored);
    const auto voice = speak_for<shm::ShmBackend>(table, ignored, mount->slot(), mount->mount_id());
    if (dying == nullptr || voice == nullptr) ::_exit(3);
    if (!take(*dying, request(*dying, 1, 0, 30, LockMode::kExclusive))) ::_exit(4);
    for (std::uint64_t i = 1; i <= kReaders; ++i) {
      if (!take(*voice, request(*voice, i, 0, 30, LockMode::kShared), OnConflict::kQueue, i)) {
        ::_exit(5);
      }
    }
    arm_faults("shm.committed=kill@1");
    (void)dying->drop_owner(kFile, {dying->mount_id(), 1, OwnerSpace::kRange});
    ::_exit(6);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(pid, &status, 0), pid);
  ASSERT_TRUE(WIFSIGNALED(status)) << status;
  const auto stats = mount->stats();
  ASSERT_TRUE(stats.ok());
  EXPECT_EQ(stats->waiters, 0u);
  mount->collect_ready();
  EXPECT_EQ(told.told().size(), kReaders);
  mount->reap_mount(mount->mount_id());
}

// To take a mutex from its holder would be worse than to wait.
TEST(ShmStoreDeath, WhoCannotBeLookedUpMayBeInside) {
  const std::string table = unique_table();
  TellTale told;
  const auto mount = join_quietly(table, told);
  ASSERT_NE(mount, nullptr);
  constexpr std::uint32_t kNobody = 0x3ffffff0;
  const auto self = static_cast<std::uint32_t>(::getpid());
  EXPECT_TRUE(mount->backend().could_hold(kNobody)) << "it is not known who has the table";
  mount->backend().mapped_as(shm::Registry::open(table)->region_name());
  EXPECT_TRUE(mount->backend().could_hold(self));
  EXPECT_FALSE(mount->backend().could_hold(kNobody));
  EXPECT_FALSE(mount->backend().could_hold(0));
  mount->region().header().mounts[mount->slot()].pid = 0;  // else it need not look further
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
  const rlimit none{0, before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &none), 0);
  const bool living = mount->backend().could_hold(self);
  const bool nobody = mount->backend().could_hold(kNobody);
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
  EXPECT_TRUE(living) << "no descriptor to look it up with";
  EXPECT_FALSE(nobody) << "that takes none";
}

TEST(ShmStoreDeath, DyingWhileMakingTheTableIsHarmless) {
  const std::string table = unique_table();
  ::setenv("LATCHFS_FAULT", "shm.create=kill@1", 1);
  EXPECT_EQ(run_victim(table, "own", "", 0), 1);
  ::unsetenv("LATCHFS_FAULT");
  RecordingSink sink;
  EXPECT_NE(make_store("shm", sink, table), nullptr);
}

}  // namespace
}  // namespace latchfs::test

int main(int argc, char** argv) {
  if (argc >= 6 && std::strcmp(argv[1], "--victim") == 0) return latchfs::test::victim(argv + 2);
  // Each death is a warning or two: thousands of lines.
  if (!latchfs::log::open("stderr", latchfs::log::Level::kError)) return 1;
  ::testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
