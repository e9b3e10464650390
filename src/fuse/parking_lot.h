// Requests that wait in the lock table: parked here without a thread, each answered exactly once.
//
// A request's life: open() before the store hears of it (so that a grant or an interrupt that is
// faster than the store's own answer finds it), then either close() - it did not have to wait, the
// caller answers - or park(). After park() the first of grant, refusal, interrupt and deadline
// takes it out and finishes it. An interrupt must win against the store (cancel) to count.
//
// Lock order: the registry of lots, then mu_, which is a leaf; no store call, reply or completion
// runs under either.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <unordered_map>
#include <vector>

#include "base/mutex.h"
#include "latchfs/lock_service.h"

namespace latchfs::fuse {

class ParkingLot final : public GrantSink {
 public:
  // err 0: granted. Else EINTR, EAGAIN (deadline), EDEADLK, ENOLCK, EIO (lost). Called once, from
  // any thread, holding nothing; must not throw.
  using Completion = std::function<void(int err)>;

  ParkingLot();
  ~ParkingLot() override;
  ParkingLot(const ParkingLot&) = delete;
  ParkingLot& operator=(const ParkingLot&) = delete;

  // Once, before the first request: the store whose sink this is.
  void serve(LockService& locks) { locks_ = &locks; }

  // Throws bad_alloc, having changed nothing.
  WaiterToken open(FileId file, Completion done) EXCLUDES(mu_);

  // It did not wait: the completion will not run. The store must not know the token.
  void close(WaiterToken token) EXCLUDES(mu_);

  // The store answered Queued. What happened meanwhile takes effect now; the completion may run in
  // this very call.
  void park(WaiterToken token) noexcept EXCLUDES(mu_);

  // The request's process does not want to wait any more (signal or kill). err: what to answer.
  // Too late is fine: then the grant stands.
  void interrupt(WaiterToken token, int err) noexcept EXCLUDES(mu_);

  // The same for whichever lot of this process the token is of; a token that is over is ignored.
  // For libfuse's interrupt callback, whose argument must outlive its request.
  static void interrupt_any(WaiterToken token, int err) noexcept;

  // Ends all waits with err and returns when the last completion has run.
  void drain(int err) noexcept EXCLUDES(mu_);

  void granted(WaiterToken token) noexcept override { over(token, 0); }
  void refused(WaiterToken token, int err) noexcept override { over(token, err); }
  void lost(const std::function<bool(FileId)>& concerns) noexcept override EXCLUDES(mu_);

  [[nodiscard]] std::size_t size() EXCLUDES(mu_);

 private:
  struct Entry {
    FileId file;
    Completion done;
    bool parked{};
    std::optional<int> result;     // told by the store before park()
    std::optional<int> interrupt;  // asked for before park()
    bool lost{};                   // likewise
  };

  void over(WaiterToken token, int err) noexcept EXCLUDES(mu_);
  void cancel_in_store(WaiterToken token, FileId file, int err) noexcept EXCLUDES(mu_);
  void end_lost(WaiterToken token, FileId file) noexcept EXCLUDES(mu_);
  // Takes the entry out and runs its completion; nothing if it is gone.
  void finish(WaiterToken token, int err) noexcept EXCLUDES(mu_);

  LockService* locks_{};
  Mutex mu_;
  CondVar emptied_;
  int finishing_ GUARDED_BY(mu_){0};  // completions that are running
  std::unordered_map<std::uint64_t, Entry> entries_ GUARDED_BY(mu_);
};

}  // namespace latchfs::fuse
