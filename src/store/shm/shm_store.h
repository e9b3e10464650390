// The lock table in shared memory, as one mount sees it.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/mutex.h"
#include "base/unique_fd.h"
#include "store/client_names.h"
#include "store/shm/registry.h"
#include "store/shm/shm_backend.h"
#include "store/table_service.h"

namespace latchfs {

class ShmStore final : public TableService<shm::ShmBackend>, public ChangeGate {
 public:
  struct Options {
    std::string table;                            // [A-Za-z0-9._-]{1,64}
    std::uint64_t table_max{1ULL << 30};          // bytes; what the first mount says holds
    std::uint64_t max_locks_per_user{1'000'000};  // 0: no limit; uid 0 has none
    // How long this mount's kernel may believe what it was told, ms, while it is alone.
    std::uint32_t believes_ms{};
    std::string source, mountpoint;  // for `status`; cut at 255 bytes
    // Holds locks for others and changes no files itself: does not make the mounts shared().
    bool is_service{};
  };

  // Joins the table, or makes it. Reaps what dead mounts left in it. EINVAL (name, size), EPERM
  // (its directory is not ours alone), EPROTO (in use in another format: formats()), EIO (in use
  // and damaged, and nobody mends it within three seconds), ENOENT (in use, but its memory was
  // taken out of /dev/shm), ENOSPC, EUSERS (256 mounts already). The sink must outlive the store.
  static Result<std::unique_ptr<ShmStore>> attach(const Options& options, GrantSink& sink);

  // The table's format and ours, for a message.
  static std::string formats(const std::string& table);

  // Gives up all of this mount's locks; the last one to leave removes the table.
  ~ShmStore() override;
  ShmStore(const ShmStore&) = delete;
  ShmStore& operator=(const ShmStore&) = delete;

  // How long the kernels of the mounts that were here before may still believe what they were told
  // when they were alone, ms since this one joined. Until then nothing may be changed through it.
  [[nodiscard]] std::uint32_t others_believe_ms() const noexcept { return others_believe_ms_; }

  // False: somebody may have, or wait for, something on the file. Takes no mutex: a few
  // nanoseconds.
  [[nodiscard]] bool nothing_on(FileId file) const noexcept { return backend_.nothing_on(file); }

  Result<TableStats> stats() override { return backend_.stats(); }

  Result<std::uint32_t> enter_client(const RemoteClient& client) override {
    return clients_.enter(mount_id(), client);
  }
  void leave_client(std::uint32_t number) noexcept override { clients_.leave(number); }
  [[nodiscard]] std::optional<RemoteClient> client_of(const Grant& grant) const override {
    return clients_.table().find(grant.holder.client, grant.owner.mount);
  }

  // ---- ChangeGate ----
  ChangeTicket begin_change(const Change& change) noexcept override {
    return {changes().begin(backend_.slot(), mount_id(), change) + std::uint64_t{1}};
  }
  void end_change(ChangeTicket ticket) noexcept override {
    if (ticket.raw != 0) {
      changes().end(backend_.slot(), static_cast<std::uint32_t>(ticket.raw - 1));
    }
  }
  [[nodiscard]] std::uint64_t filelock_version(FileId file) const noexcept override {
    return std::uint64_t{changes().version(file)} + 1;
  }
  [[nodiscard]] std::uint64_t filelock_changes() const noexcept override {
    return changes().ended.load(std::memory_order_acquire);
  }
  Result<ChangeTicket> begin_transition(FileId file, std::uint32_t uid) override {
    const auto place = changes().begin_transition(mount_id(), file, uid);
    if (!place) return errno_code(ENOBUFS);
    return ChangeTicket{*place + std::uint64_t{1}};
  }
  void end_transition(ChangeTicket ticket) noexcept override {
    if (ticket.raw != 0) changes().end_transition(static_cast<std::uint32_t>(ticket.raw - 1));
  }
  [[nodiscard]] std::optional<std::uint32_t> transition_on(FileId file) const noexcept override {
    return changes().transition_on(file);
  }
  ChangeTicket enter_storer(FileId file, const Storer& who) noexcept override {
    const auto place = changes().enter_storer(backend_.slot(), mount_id(), file, who);
    return {place ? *place + std::uint64_t{1} : kBeyond};
  }
  void leave_storer(ChangeTicket ticket) noexcept override {
    if (ticket.raw == 0) return;
    const auto place = static_cast<std::uint32_t>(ticket.raw - 1);
    changes().leave_storer(backend_.slot(),
                           ticket.raw == kBeyond ? std::nullopt : std::optional{place});
  }
  [[nodiscard]] Result<std::vector<Storer>> storers(FileId file) const override {
    return changes().storers_of(file);
  }
  std::vector<Change> wait_for_changes(FileId file, std::int64_t deadline) override {
    return changes().wait(file, deadline);
  }
  [[nodiscard]] bool shared() const noexcept override {
    return backend_.region().header().mount_count.load(std::memory_order_acquire) > 1;
  }

 private:
  ShmStore(std::unique_ptr<shm::Region> region, shm::Registry registry, const Options& options,
           GrantSink& sink);

  // The ticket of a storer that there was no room for.
  static constexpr std::uint64_t kBeyond = ~std::uint64_t{0};
  [[nodiscard]] shm::ChangeTable& changes() const { return backend_.region().changes(); }

  Result<void> join();
  void start_threads();
  void stop_threads();
  void doorbell_loop();
  void watch_loop();
  // Reaps every registered mount that is dead. True if there was one and its slot is free now.
  bool reap_the_dead(bool registry_locked);
  void check_after_reaping();
  void describe(shm::MountSlot& slot) const;
  void tell_of_losses();
  void look_after_the_table();
  std::vector<UniqueFd> peers_alive();
  void keep_the_name();
  // False: a table in use has it.
  Result<bool> take_the_name();

  shm::Registry registry_;
  // The watcher's, and the destructor's after it: keep_the_name().
  std::optional<shm::Registry> stand_in_;
  std::uint32_t others_believe_ms_{};
  std::uint64_t last_reaped_{};  // the watcher's, and join()'s before it
  bool name_lost_{};             // and said so
  const Options options_;
  ClientNames clients_;
  std::int64_t started_at_{};
  std::array<std::uint32_t, shm::kShardCount> losses_seen_{};  // the doorbell thread's
  Verification verification_;                                  // the watcher's
  std::string region_name_;
  std::atomic<bool> stopping_{false};
  UniqueFd poke_;  // eventfd: the set of mounts changed, or stop
  std::thread doorbell_thread_, watch_thread_;
};

}  // namespace latchfs
