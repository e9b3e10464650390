// A small machine for wait_model_test: mounts that share one lock table, processes that lock, wait,
// are interrupted, and daemons that die, one atomic step at a time in the order a test chooses.
//
// Real: lock::LockTable, TableService (acquire, deliver, deadlock search, cancel, collect_ready,
// reap_mount) and ParkingLot, each mount with its own. They run in fibers that pause
// - before each hold of a shard or of all: what is done in one is atomic, as the mutex makes it
// and,
//   for deaths, the undo log (tests/crash/shm_step_test.cpp executes those one instruction at a
//   time);
// - in TableService::deliver, so between commit and doorbell, doorbell and sink, two sink calls;
// - in ParkingLot wherever it has let go of its mutex and goes on: before parking, before
// cancelling
//   in the store, before finishing.
//
// Modelled after store/shm, in the same order of loads and stores: ready_shards and doorbells
// (ShmBackend::outside, forget_ready), ShmStore::doorbell_loop, ShmStore::reap_the_dead. The edge
// (fuse/lock_edge.cpp) is a script: open, acquire, close and answer or park. Clocks stand still.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "fuse/parking_lot.h"
#include "model/fiber.h"
#include "model/scenario.h"
#include "model/table_view.h"
#include "store/table_service.h"

namespace latchfs::test {

class WaitWorld {
 public:
  WaitWorld(const Scenario& scenario, Bug bug);
  ~WaitWorld();
  WaitWorld(const WaitWorld&) = delete;
  WaitWorld& operator=(const WaitWorld&) = delete;

  // Who could go on now, by number, in a fixed order.
  [[nodiscard]] std::vector<int> enabled() const;
  // checked: it was taken from this very state before, and nothing was wrong.
  void step(int task, bool checked = false);
  // "" or the first thing that was wrong.
  [[nodiscard]] const std::string& wrong() const { return wrong_; }
  // Nobody can go on: is everything as it should be?
  void check_end();
  // Equal for states that go on alike.
  [[nodiscard]] std::uint64_t hash() const;
  // Where a task stands, for people.
  [[nodiscard]] std::string describe(int task) const;
  // What each request was answered: "granted", EINTR, EDEADLK, none.
  [[nodiscard]] std::string answers() const;

 private:
  static constexpr std::uint32_t kMostShards = 2;
  static constexpr int kUnanswered = -1;

  struct Shard {
    HeapArena arena;
    lock::TableRoot root{};
  };
  using Shards = std::array<Shard, kMostShards>;

  // One mount's way into the table; what TableService asks of a store.
  class Backend {
   public:
    using Arena = HeapArena;
    using Table = lock::LockTable<HeapArena>;

    Backend(WaitWorld& world, int mount, GrantSink& sink)
        : world_{world}, mount_{mount}, sink_{sink} {}

    [[nodiscard]] std::uint32_t shard_count() const { return world_.scenario_.shards; }
    [[nodiscard]] std::uint32_t shard_of(FileId id) const {
      return static_cast<std::uint32_t>(id.ino % shard_count());
    }
    [[nodiscard]] std::uint64_t mount_id() const { return static_cast<std::uint64_t>(mount_) + 1; }
    [[nodiscard]] GrantSink& sink() const { return sink_; }
    static bool user_may_take(std::uint32_t) { return true; }
    static void note_user_full(std::uint32_t) {}
    // (Operations beside the table: tests/crash/shm_ops_test.cpp.)
    static bool begin_outside(const LockService::OpRequest&) { return false; }
    static bool end_outside(OwnerId) { return false; }
    static void forget_operations(std::uint64_t) {}
    static std::optional<std::uint64_t> list_changes(std::optional<FileId>, std::uint64_t,
                                                     std::uint32_t, std::vector<Grant>&) {
      return std::nullopt;
    }
    static void note_verified(const std::string&) {}
    static std::string check_store(std::uint32_t, std::uint64_t) { return ""; }
    static void empty(std::uint32_t, const std::string&, std::uint32_t) {}
    static std::uint32_t losses(std::uint32_t) { return 0; }
    [[nodiscard]] bool has_ready(std::uint32_t i) const {
      return (world_.ready_shards_ >> i & 1) != 0;
    }
    [[nodiscard]] std::uint32_t range_waiters(std::uint32_t i) const {
      return world_.bug_ == Bug::kSearchesNothing ? 0 : world_.shards_->at(i).root.range_waiters;
    }
    template <class Fn>
    std::error_code locked(std::uint32_t i, lock::Effects& fx, Fn&& fn);
    template <class Fn>
    std::error_code all_locked(std::uint32_t i, lock::Effects& fx, Fn&& fn);
    void outside(const lock::Effects& fx);

   private:
    [[nodiscard]] Table table(std::uint32_t i, lock::Effects& fx) const {
      Shard& shard = world_.shards_->at(i);
      return Table{shard.arena, shard.root, fx, mount_id()};
    }
    WaitWorld& world_;
    int mount_;
    GrantSink& sink_;
  };

  class Store final : public TableService<Backend> {
   public:
    Store(WaitWorld& world, int mount, GrantSink& sink)
        : TableService{world, mount, sink}, world_{world} {}
    using TableService::collect_ready;
    using TableService::reap_mount;
    Cancelled cancel(FileId file, WaiterToken token) override {
      const Cancelled done = TableService::cancel(file, token);
      return world_.bug_ == Bug::kCancelAlwaysWins ? Cancelled::kCancelled : done;
    }
    Result<TableStats> stats() override { return TableStats{}; }
    // ShmBackend::forget_ready().
    void forget_ready(std::uint32_t i);

   private:
    WaitWorld& world_;
  };

  // Between a store and its lot: where a step ends.
  class Sink final : public GrantSink {
   public:
    Sink(WaitWorld& world, int mount) : world_{world}, mount_{mount} {}
    void granted(WaiterToken token) noexcept override { tell(token, 0); }
    void refused(WaiterToken token, int err) noexcept override { tell(token, err); }

   private:
    void tell(WaiterToken token, int err) noexcept;
    WaitWorld& world_;
    int mount_;
  };

  struct Mount {
    Mount(WaitWorld& world, int number) : sink{world, number}, store{world, number, sink} {
      lot.serve(store);
    }
    fuse::ParkingLot lot;
    Sink sink;
    Store store;
    bool alive{true};
    bool rung{false};  // doorbell != seen
  };

  // A thread of a daemon or, with mount -1, what comes from elsewhere.
  struct Task {
    int mount{};
    std::string name;
    bool must_end{};
    std::unique_ptr<Fiber> fiber;
    const char* at{"start"};
    std::function<bool()> ready;  // what it waits for
    bool moved{};                 // since it last paused it did what others can see
    bool tells{};                 // its last step in the table is to be told of
    std::uint64_t trace{};        // what it has learnt in this call
    std::uint64_t since{};        // what it has done since its last step in the table
    std::uint64_t in_hand{};      // the token it is in the lot with
    int request{-1};
  };

  struct Request {
    int process{};
    Op op;
    std::uint64_t token{};
    int answer{kUnanswered};
    bool begun{};
    std::string lot;  // what happened to it in the lot
  };

  // What a process may count on.
  struct Holding {
    int process{};
    std::uint64_t file{};
    std::optional<LockMode> mode;
    int asking{-1};  // the request under way
    bool giving_back{};
  };

  void add_task(int mount, std::string name, bool must_end, std::function<void()> job);
  void run_process(int process);
  void run_interrupt(int request);
  void run_doorbell(int mount);
  void run_reaper(int mount, int dead);

  static void on_fault(const char* name) noexcept;
  // The current task may be overtaken here. touches: it goes on with something others can see.
  void point(const char* at, bool touches = true);
  void wait_until(const char* at, std::function<bool()> ready, bool touches);
  void after_step(std::uint32_t shard, const SeenTable& before, const lock::Effects& fx);
  void check_step(std::uint32_t shard, const SeenTable& before, const SeenTable& now,
                  const lock::Effects& fx);
  void answered(int request, int err);
  void check_holdings(const SeenTable& now);
  void check_order(const SeenTable& before, const SeenTable& now, const lock::Effects& fx);
  void serve_newest_first(std::uint32_t shard);
  void fail(const std::string& what) {
    if (wrong_.empty()) wrong_ = what;
  }

  static std::unique_ptr<Shards>& spare();
  static std::unique_ptr<Shards> get_shards();
  void give_back(std::unique_ptr<Shards> shards);

  // Are there so many in the table?
  [[nodiscard]] bool there(std::uint64_t grants, std::uint64_t waiters) const;
  [[nodiscard]] SeenTable look() const;
  [[nodiscard]] int request_of(std::uint64_t token) const;
  [[nodiscard]] OwnerId owner(int process) const;
  [[nodiscard]] LockRequest as_request(int process, const Op& op) const;
  Holding& holding(int process, std::uint64_t file);

  const Scenario& scenario_;
  const Bug bug_;
  std::unique_ptr<Shards> shards_;
  std::uint64_t ready_shards_{};
  std::vector<std::unique_ptr<Mount>> mounts_;
  std::vector<std::unique_ptr<Task>> tasks_;
  std::vector<Request> requests_;
  std::vector<Holding> holdings_;
  std::vector<std::uint64_t> arrived_;  // tokens in the order they were queued
  Task* current_{};
  bool draining_{};
  bool checked_{};
  bool reaping_{}, reaped_{};
  std::string wrong_;
};

template <class Fn>
std::error_code WaitWorld::Backend::locked(std::uint32_t i, lock::Effects& fx, Fn&& fn) {
  world_.point("shard");
  if (world_.draining_) return errno_code(ECANCELED);
  const SeenTable before = world_.checked_ ? SeenTable{} : world_.look();
  fx.clear();
  fx.now = fx.mono = 1;
  Table target = table(i, fx);
  fn(target);
  if (world_.bug_ == Bug::kReaperDoesNotAsk && world_.reaping_) fx.recheck.clear();
  if (!fx.ring.empty() && world_.shards_->at(i).root.ready != 0) {
    fx.ready_shards |= std::uint64_t{1} << i;
  }
  world_.after_step(i, before, fx);
  return {};
}

template <class Fn>
std::error_code WaitWorld::Backend::all_locked(std::uint32_t i, lock::Effects& fx, Fn&& fn) {
  return locked(i, fx, [&](Table& target) {
    fn(target, [&](std::uint32_t other) { return table(other, fx); });
  });
}

}  // namespace latchfs::test
