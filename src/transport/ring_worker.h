// A thread that serves requests of one CPU from a ring of its own.
//
// It holds one entry as a rule, so no request is ever given to a thread that is busy while another
// is idle. A request that its handler parks keeps its entry; the worker then takes a new one, or
// rests in its group's reserve until a parked request is answered, whose entry it takes over.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <thread>
#include <vector>

#include "base/mutex.h"
#include "base/unique_fd.h"
#include "transport/ring.h"
#include "transport/ring_entry.h"

struct fuse_in_header;

namespace latchfs::transport {

class RingGroup;

// What the workers of a session share.
struct RingShared {
  // Handles one message: fuse_in_header with its number in place of the unique, arguments, data.
  // Called by the worker; the message may be written to.
  std::function<void(char* message, std::size_t size)> handle;
  // The handler of this entry's request is done, its answer was not given. Called before the
  // entry's kLeft is set, and unpark() if the answer came in between.
  std::function<void(RingEntry&, const fuse_in_header&)> park;
  std::function<void(RingEntry&)> unpark;
  const int device;
  RingEntries& entries;
  std::atomic<bool> quiet{false};  // handle no further request, commit only
  // Uniques of the requests that workers ask for: beyond all of the kernel's, and even like those.
  std::atomic<std::uint64_t> next_kick{1ULL << 62};
};

class RingWorker {
 public:
  RingWorker(RingShared& shared, RingGroup& group) : shared_{shared}, group_{group} {}
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

  // Where the request that the calling thread is handling wants its answer's bytes, if it came by
  // a ring; they may overlap the request's own data.
  [[nodiscard]] static std::span<char> answer_space() noexcept;

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
  // What a message is handed over in; null: the entry makes no sense.
  [[nodiscard]] std::span<char> assemble(RingEntry& entry, fuse_in_header header) noexcept;
  void register_new(Ring& ring);
  void register_entry(Ring& ring, RingEntry& entry);
  void enlisted(const Result<void>& result);
  void kick(std::uint64_t node);
  void answer(Ring& ring, RingEntry& entry, int error);
  void commit(Ring& ring, RingEntry& entry);

  RingShared& shared_;
  RingGroup& group_;
  UniqueFd mail_;
  std::thread thread_;
  std::atomic<bool> waits_{false};

  Mutex mu_;  // leaf
  std::vector<Letter> letters_ GUARDED_BY(mu_);

  // The thread's own.
  unsigned in_kernel_{0};  // entries that wait for a request
  bool committed_{false};  // since it last submitted
  bool stopping_{false};
  std::vector<Letter> reading_;
  std::function<void(Result<void>)> enlisted_;  // waits to hear of the entry being registered
  std::vector<std::uint64_t> small_;  // messages that are copied are put together here, aligned
};

}  // namespace latchfs::transport
