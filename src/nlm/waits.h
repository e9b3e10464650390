// The ends of waits, on their way from the store to the desk.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <list>
#include <optional>
#include <unordered_map>

#include "base/mutex.h"
#include "latchfs/lock_service.h"

namespace latchfs::nlm {

// Any thread. The store calls in while whoever called the store holds a mutex of a file: what is
// told is kept here for next(), which a thread that holds nothing waits in.
class Waits final : public GrantSink {
 public:
  struct Event {
    WaiterToken token;
    int err{};  // 0: granted; EIO: the table was damaged, the wait is over
  };

  // Before the store hears of the wait. Throws bad_alloc.
  WaiterToken open(FileId file) EXCLUDES(mu_);
  // Nobody asks for it any more: what the store still says of it is dropped.
  void close(WaiterToken token) noexcept EXCLUDES(mu_);
  // How it ended, as in Event; waits for that. Nothing if the store has not said it by then.
  [[nodiscard]] std::optional<int> outcome(WaiterToken token, std::chrono::milliseconds patience)
      EXCLUDES(mu_);

  // The next end of a wait. Nothing after stop().
  [[nodiscard]] std::optional<Event> next() EXCLUDES(mu_);
  void stop() noexcept EXCLUDES(mu_);

  void granted(WaiterToken token) noexcept override { over(token, 0); }
  void refused(WaiterToken token, int err) noexcept override { over(token, err); }
  void lost(const std::function<bool(FileId)>& concerns) noexcept override EXCLUDES(mu_);

 private:
  struct Wait {
    FileId file;
    std::optional<int> err;
    // In quiet_ or ended_: a node that is there already, as the store's word must not need memory.
    std::list<std::uint64_t>::iterator node;
    bool in_ended{};
  };
  void over(WaiterToken token, int err) noexcept EXCLUDES(mu_);

  Mutex mu_;  // leaf
  CondVar changed_;
  std::uint64_t next_ GUARDED_BY(mu_){1};
  std::unordered_map<std::uint64_t, Wait> waits_ GUARDED_BY(mu_);
  std::list<std::uint64_t> quiet_ GUARDED_BY(mu_);  // nothing to tell of them
  std::list<std::uint64_t> ended_ GUARDED_BY(mu_);  // to be told by next(), in this order
  bool stopping_ GUARDED_BY(mu_){false};
};

}  // namespace latchfs::nlm
