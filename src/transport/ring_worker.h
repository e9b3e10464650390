// A thread that serves requests of one CPU from a ring of its own.
//
// It holds one entry as a rule, so no request is ever given to a thread that is busy while another
// is idle. A request that its handler parks keeps its entry; the worker then takes a new one, or
// rests in its group's reserve until a parked request is answered, whose entry it takes over.
//
// When it has got a second one in that way, it takes it out of the kernel's hands again.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "base/mutex.h"
#include "base/unique_fd.h"
#include "transport/ring.h"
#include "transport/ring_entry.h"
#include "transport/ring_handler.h"

namespace latchfs::transport {

class RingWorker {
 public:
  RingWorker(RingShared& shared, RingGroup& group)
      : shared_{shared}, group_{group}, handler_{shared, group} {}
  ~RingWorker();
  RingWorker(const RingWorker&) = delete;
  RingWorker& operator=(const RingWorker&) = delete;

  // Starts the thread, which makes its ring and then calls made(what came of it), and waits for
  // mail. EAGAIN (no more threads), EMFILE.
  [[nodiscard]] Result<void> start(std::function<void(Result<void>)> made);
  void join() {
    if (thread_.joinable()) thread_.join();
  }

  // Mail: any thread, any time between start() and join(); done in order. They throw nothing:
  // without memory for a letter the process is over.
  // Register the session's first entry of this queue; done() hears what came of it.
  void enlist(RingEntry& entry, std::function<void(Result<void>)> done) noexcept;
  void take_entry() noexcept;                     // a new one, of its own
  void take_over(RingEntry& answered) noexcept;   // commit it, and serve it
  void ask(std::function<void()> done) noexcept;  // calls done()
  void stop() noexcept;                           // end the thread

  // Whether it waits for a request or for mail: a hint.
  [[nodiscard]] bool waits() const noexcept { return waits_.load(std::memory_order_relaxed); }

 private:
  struct Letter {
    enum class What : std::uint8_t { kEnlist, kEntry, kCommit, kAsk, kStop } what;
    RingEntry* entry{};
    std::function<void(Result<void>)> done;
  };

  void post(Letter letter) noexcept EXCLUDES(mu_);
  void run(const std::function<void(Result<void>)>& made);
  void serve(Ring& ring);
  void read_mail(Ring& ring) EXCLUDES(mu_);
  void completed(Ring& ring, const Ring::Completion& completion);
  void handle(Ring& ring, RingEntry& entry);
  // Whether it is a new one, for which the kernel takes nothing from its queue.
  bool one_more(Ring& ring);
  [[nodiscard]] bool rest(bool coming_will_do);
  void register_entry(Ring& ring, RingEntry& entry);
  void enlisted(const Result<void>& result);
  void kicked(Ring& ring, RingEntry& entry, std::uint64_t node);
  void commit(Ring& ring, RingEntry& entry);

  RingShared& shared_;
  RingGroup& group_;
  UniqueFd mail_;
  std::thread thread_;
  std::atomic<bool> waits_{false};

  Mutex mu_;  // leaf
  std::vector<Letter> letters_ GUARDED_BY(mu_);

  // The thread's own.
  RingHandler handler_;
  unsigned in_kernel_{0};  // entries that wait for a request
  bool committed_{false};  // since it last submitted
  bool answered_{false};   // and that was an answer
  bool rests_{false};      // and nothing came for it since
  bool stopping_{false};
  std::vector<Letter> reading_;
  std::function<void(Result<void>)> enlisted_;  // waits to hear of the entry being registered
};

}  // namespace latchfs::transport
