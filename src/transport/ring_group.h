// The workers of one queue, that is of one CPU.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "base/mutex.h"
#include "transport/ring_worker.h"

namespace latchfs::transport {

class RingGroup {
 public:
  // most: workers. elsewhere: has somebody else call a function soon; not a
  // worker, whose rights may be somebody's.
  RingGroup(RingShared& shared, std::uint16_t queue, unsigned most,
            std::function<void(std::function<void()>)> elsewhere)
      : queue_{queue}, most_{most}, shared_{shared}, elsewhere_{std::move(elsewhere)} {}

  [[nodiscard]] std::uint16_t queue() const noexcept { return queue_; }
  // Ties the calling thread to the queue's CPU, so that a request needs no wake-up of another one.
  // False where it may not run there, or the CPU is off: then it runs where it can.
  [[nodiscard]] bool stay_on_cpu() const noexcept;

  // The first worker; made() hears what came of its ring, on its thread.
  // ENOMEM: no entry for it.
  [[nodiscard]] Result<void> begin(std::function<void(Result<void>)> made) EXCLUDES(mu_);
  // Has it register its entry; done() hears what came of it.
  void enlist(std::function<void(Result<void>)> done) EXCLUDES(mu_);

  // Gives an answered entry of this queue to a worker.
  void give(RingEntry& answered) noexcept EXCLUDES(mu_);

  // Entries beyond one for each worker are kept here, out of the kernel's hands, until more
  // requests wait.
  void keep(RingEntry& entry) noexcept EXCLUDES(mu_);
  // One of them, null if there are none.
  [[nodiscard]] RingEntry* take_kept() noexcept EXCLUDES(mu_);
  // What the kernel has of a worker's beyond one, while it waits.
  void count_surplus(int change) noexcept {
    if (change != 0) surplus_.fetch_add(change);
  }
  [[nodiscard]] bool has_surplus() const noexcept { return surplus_.load() > 0; }

  // What a worker says of itself: it waits for requests; it has one.
  void ready() noexcept { ready_.fetch_add(1); }
  void busy(bool has_request) noexcept EXCLUDES(mu_) {
    if (ready_.fetch_sub(1) == 1 && has_request) grow();
  }
  // A new entry came to the kernel, which takes nothing from the queue for it: said before ready().
  void registered() noexcept { registered_.fetch_add(1); }
  // So requests may be queued although entries are free, until a commit that came after all that
  // registered() counts up to now found the queue empty.
  [[nodiscard]] std::uint64_t registrations() const noexcept { return registered_.load(); }
  [[nodiscard]] bool may_be_queued() const noexcept { return registered_.load() > drained_.load(); }
  void drained(std::uint64_t registrations) noexcept;
  // What grow() asked for is done: the entry is registered, or could not be had.
  void arrived() noexcept { pending_.fetch_sub(1); }
  // Has the kernel send a request to this queue that can be committed, about a regular file that it
  // knows (0: does nothing). The calling thread is one of this queue's.
  void kick(std::uint64_t node) noexcept;
  // A regular file that the kernel knew a moment ago, 0: none yet.
  void note_file(std::uint64_t node) noexcept { file_.store(node, std::memory_order_relaxed); }
  [[nodiscard]] std::uint64_t file() const noexcept {
    return file_.load(std::memory_order_relaxed);
  }
  // A worker without an entry wants to rest. False: it should not, nobody else is ready; nor about
  // to be, if that will do.
  [[nodiscard]] bool rest(RingWorker& worker, bool coming_will_do) noexcept EXCLUDES(mu_);
  void rests_no_more(RingWorker& worker) noexcept EXCLUDES(mu_);

  // Has each worker call done() when it is not handling a request; returns how many will.
  [[nodiscard]] std::size_t ask(const std::function<void()>& done) noexcept EXCLUDES(mu_);
  // Ends all workers and waits for them. No give() may follow.
  void stop() noexcept EXCLUDES(mu_);

 private:
  void grow() noexcept EXCLUDES(mu_);
  // One more worker, which takes over an answered entry, or takes one more (null).
  void add(RingEntry* answered) noexcept EXCLUDES(mu_);
  // One of those that rest, who rests no more; null if none does.
  [[nodiscard]] RingWorker* take_resting() noexcept REQUIRES(mu_);
  [[nodiscard]] RingWorker& least_busy() noexcept REQUIRES(mu_);

  const std::uint16_t queue_;
  const unsigned most_;
  RingShared& shared_;
  const std::function<void(std::function<void()>)> elsewhere_;
  RingEntry* first_{};  // the first worker's, had before the kernel counts on it
  std::atomic<int> ready_{0};
  std::atomic<int> pending_{0};  // entries that grow() has asked for
  std::atomic<std::uint64_t> registered_{0};
  std::atomic<std::uint64_t> drained_{0};  // as many of them
  std::atomic<std::uint64_t> file_{0};
  std::atomic<int> surplus_{0};

  Mutex mu_;  // before the workers' mailboxes, and what elsewhere_ takes
  std::vector<std::unique_ptr<RingWorker>> workers_ GUARDED_BY(mu_);
  std::vector<RingWorker*> resting_ GUARDED_BY(mu_);
  std::vector<RingEntry*> kept_ GUARDED_BY(mu_);
  unsigned coming_ GUARDED_BY(mu_){0};  // asked of elsewhere_
  unsigned turn_ GUARDED_BY(mu_){0};
};

}  // namespace latchfs::transport
