// FUSE over io_uring: all rings of a session, one queue a CPU.
//
// Requests come to the worker of the caller's CPU and are handled there. What is answered within
// its handler goes back by that ring; what is parked and answered later, by any thread, is given
// to a worker of the same CPU. FORGET and INTERRUPT still come by /dev/fuse.
#pragma once

#include <sys/uio.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <thread>
#include <unordered_map>
#include <vector>

#include "base/mutex.h"
#include "latchfs/result.h"
#include "transport/ring_entry.h"
#include "transport/ring_group.h"

namespace latchfs::transport {

class Rings {
 public:
  struct Config {
    int device{-1};           // the session's
    std::size_t payload{};    // bytes: the most that one message carries
    unsigned most_workers{};  // a CPU
    // Handles a message (see RingShared); an INTERRUPT too, on any thread.
    std::function<void(char* message, std::size_t size)> handle;
  };

  // Makes a worker and a ring for each CPU that the machine may have. Before INIT is answered: if
  // this fails, io_uring must not be asked for. EPERM (kernel.io_uring_disabled; the daemon may not
  // run on every CPU), ENOSYS, EMFILE, …
  [[nodiscard]] static Result<std::unique_ptr<Rings>> create(Config config);
  ~Rings();
  Rings(const Rings&) = delete;
  Rings& operator=(const Rings&) = delete;

  // After INIT was answered: registers them. Until then the kernel holds all other requests. On
  // failure the kernel goes on with /dev/fuse, as was asked of it never.
  [[nodiscard]] Result<void> start();

  // The answer to a request by its number, as writev(2): any thread, once. -1 with ENOENT if it
  // was answered before.
  ssize_t answer(std::uint64_t number, const iovec* parts, int count) noexcept;

  // An INTERRUPT came for a request of the kernel's unique: the number to tell libfuse, if the
  // request is parked. Else it is kept, and delivered if the request is parked later.
  [[nodiscard]] std::optional<std::uint64_t> interrupted(std::uint64_t unique) noexcept
      EXCLUDES(mu_);

  // From when this returns no handler runs nor will. Answers still go out.
  void quiesce() noexcept;
  // Ends all threads; answers given before are out. None may follow.
  void stop() noexcept EXCLUDES(mu_);

 private:
  struct Parked {
    std::uint64_t number{};
    std::uint32_t pid{};  // of the thread that asked
  };
  // Somebody whose interrupt the kernel may have lost is looked at this often.
  struct Watched {
    std::uint64_t unique{};
    std::int64_t due_ns{};
  };
  static constexpr std::array<std::int64_t, 4> kLooks{5'000'000, 100'000'000, 1'000'000'000,
                                                      10'000'000'000};
  explicit Rings(Config config);
  [[nodiscard]] Result<void> make_groups();
  void park(RingEntry& entry, const fuse_in_header& header) EXCLUDES(mu_);
  void unpark(RingEntry& entry) EXCLUDES(mu_);
  void deliver(std::uint64_t number) noexcept;
  // By the keeper, soon.
  void have_done(std::function<void()> order) noexcept EXCLUDES(mu_);
  void keep() EXCLUDES(mu_);
  // Something to do (or an empty function), somebody to look at, or nothing more ever.
  [[nodiscard]] std::optional<std::function<void()>> next_order(std::vector<Parked>& look_at)
      EXCLUDES(mu_);

  const Config config_;
  RingEntries entries_;
  RingShared shared_;
  std::vector<std::unique_ptr<RingGroup>> groups_;  // by queue
  std::thread keeper_;  // makes threads, and looks after those whose interrupt was lost

  Mutex mu_;  // after a group's; leaf
  CondVar changed_;
  bool stopping_ GUARDED_BY(mu_){false};
  std::deque<std::function<void()>> orders_ GUARDED_BY(mu_);
  std::unordered_map<std::uint64_t, Parked> parked_ GUARDED_BY(mu_);  // by the kernel's unique
  std::array<std::deque<Watched>, kLooks.size()> watched_ GUARDED_BY(mu_);
  std::deque<std::uint64_t> early_ GUARDED_BY(mu_);  // interrupts of what is not parked (yet)
};

}  // namespace latchfs::transport
