#include "store/memory/memory_store.h"

#include <atomic>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/mutex.h"
#include "store/client_names.h"
#include "store/memory/heap_arena.h"
#include "store/table_service.h"

namespace latchfs {
namespace {

class MemoryBackend {
 public:
  using Arena = HeapArena;
  using Table = lock::LockTable<HeapArena>;

  MemoryBackend(GrantSink& sink, std::uint32_t shards) : sink_{sink}, shards_(shards) {}

  [[nodiscard]] std::uint32_t shard_count() const {
    return static_cast<std::uint32_t>(shards_.size());
  }
  [[nodiscard]] std::uint32_t shard_of(FileId id) const {
    return static_cast<std::uint32_t>((id.ino * 0x9E3779B97F4A7C15ULL >> 32) % shards_.size());
  }
  [[nodiscard]] static std::uint64_t mount_id() { return 1; }
  [[nodiscard]] GrantSink& sink() const { return sink_; }
  [[nodiscard]] static bool user_may_take(std::uint32_t) { return true; }
  static void note_user_full(std::uint32_t) {}
  [[nodiscard]] static std::string check_store(std::uint32_t, std::uint64_t) { return ""; }
  // (Nobody else writes to a heap; what is wrong with it is a bug, to be seen.)
  static void empty(std::uint32_t, const std::string&, std::uint32_t) {}
  [[nodiscard]] static std::uint32_t losses(std::uint32_t) { return 0; }
  [[nodiscard]] static bool has_ready(std::uint32_t) { return false; }
  // Read with every shard locked.
  [[nodiscard]] std::uint32_t range_waiters(std::uint32_t i) const {
    return shards_[i].root.range_waiters;
  }

  // Nobody but this process has to know of an operation.
  static bool begin_outside(const LockService::OpRequest&) { return false; }
  static bool end_outside(OwnerId) { return false; }
  static void forget_operations(std::uint64_t) {}
  static std::optional<std::uint64_t> list_changes(std::optional<FileId>, std::uint64_t,
                                                   std::uint32_t, std::vector<Grant>&) {
    return std::nullopt;
  }

  template <class Fn>
  std::error_code locked(std::uint32_t i, lock::Effects& fx, Fn&& fn) {
    const std::lock_guard hold{mu_};
    begin(fx);
    Table table{shards_[i].arena, shards_[i].root, fx, mount_id()};
    fn(table);
    return {};
  }

  template <class Fn>
  std::error_code all_locked(std::uint32_t target, lock::Effects& fx, Fn&& fn) {
    const std::lock_guard hold{mu_};
    begin(fx);
    Table table{shards_[target].arena, shards_[target].root, fx, mount_id()};
    fn(table, [&](std::uint32_t i) {
      return Table{shards_[i].arena, shards_[i].root, fx, mount_id()};
    });
    return {};
  }

  void outside(const lock::Effects& fx) {
    if (fx.changed) changed_at_.store(realtime_ns(), std::memory_order_relaxed);
  }
  void note_verified(const std::string& result) {
    const std::lock_guard hold{mu_};
    last_verify_ = result;
  }
  TableStats stats() {
    const std::lock_guard hold{mu_};
    TableStats out;
    out.table = "memory";
    for (const auto& shard : shards_) {
      out.files += shard.root.file_count;
      out.grants += shard.root.grant_count;
      out.owners += shard.root.owner_count;
      out.waiters += shard.root.waiter_count;
    }
    out.changed_at_ns = changed_at_.load(std::memory_order_relaxed);
    out.last_verify = last_verify_;
    return out;
  }

 private:
  struct Shard {
    HeapArena arena;
    lock::TableRoot root{};
  };

  static void begin(lock::Effects& fx) {
    fx.clear();
    fx.now = realtime_ns();
    fx.mono = monotonic_ns();
  }

  GrantSink& sink_;
  std::mutex mu_;
  std::vector<Shard> shards_;
  std::string last_verify_;
  std::atomic<std::int64_t> changed_at_{realtime_ns()};
};

class MemoryStore final : public TableService<MemoryBackend> {
 public:
  MemoryStore(GrantSink& sink, std::uint32_t shards) : TableService{sink, shards} {}
  Result<TableStats> stats() override { return backend_.stats(); }

  Result<std::uint32_t> enter_client(const RemoteClient& client) override {
    return clients_.enter(mount_id(), client);
  }
  void leave_client(std::uint32_t number) noexcept override { clients_.leave(number); }
  [[nodiscard]] std::optional<RemoteClient> client_of(const Grant& grant) const override {
    return table_->find(grant.holder.client, grant.owner.mount);
  }

 private:
  std::unique_ptr<ClientTable> table_{std::make_unique<ClientTable>()};
  ClientNames clients_{*table_};
};

}  // namespace

std::unique_ptr<LockService> make_memory_store(GrantSink& sink, std::uint32_t shards) {
  return std::make_unique<MemoryStore>(sink, shards == 0 ? 1 : shards);
}

}  // namespace latchfs
