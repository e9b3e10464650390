// Things to do outside, some of them later: on a few threads of their own, so that a client that
// does not answer holds up nobody but himself.
//
// Peers take turns, a call each. Who has not answered quickly the last time, or was never called,
// shares half of the threads and half of the places with his like: so however many addresses there
// are where nobody answers, the other half is there for those that do.
#pragma once

#include <cstdint>
#include <functional>
#include <list>
#include <map>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "base/mutex.h"

namespace latchfs::nlm {

// Any thread.
class Outcalls {
 public:
  struct Options {
    unsigned threads{8};
    std::size_t most{65'536};              // waiting, of all peers
    std::size_t most_of_one{65'536};       // and of one
    std::int64_t quick_ns{1'000'000'000};  // who answers within that is quick
  };
  explicit Outcalls(Options options);
  // What has not begun is dropped; waits for what has.
  ~Outcalls();
  Outcalls(const Outcalls&) = delete;
  Outcalls& operator=(const Outcalls&) = delete;

  // Runs `fn`, which must not throw, at at_ns (CLOCK_MONOTONIC; 0: now) or later, never two of one
  // `peer` at once. It may ask for more. False: there are too many, or it is the end.
  bool at(std::int64_t at_ns, const std::string& peer, std::function<void()> fn) EXCLUDES(mu_);

  // No more from here on; waits for what runs. The destructor does the same.
  void stop() noexcept EXCLUDES(mu_);

 private:
  struct Peer;
  struct Job {
    Peer* peer{};
    std::function<void()> fn;
  };
  using Jobs = std::multimap<std::int64_t, Job>;  // by when
  struct Peer {
    const std::string* name{};
    std::size_t jobs{};  // not begun
    Jobs due;
    std::list<Peer*> place;  // itself, while it is in no queue
    bool running{};
    bool quick{};  // the last time
    [[nodiscard]] bool idle() const { return jobs == 0 && !running; }
  };
  using Queue = std::list<Peer*>;

  void loop() noexcept EXCLUDES(mu_);
  void queue_due_locked(std::int64_t now) noexcept REQUIRES(mu_);
  void queue_locked(Peer& peer) noexcept REQUIRES(mu_);
  // Whose turn it is; nobody: nullptr.
  Peer* next_locked() noexcept REQUIRES(mu_);
  // It has nothing to do: remembered if it was quick.
  void rest_locked(const Peer& peer) noexcept REQUIRES(mu_);

  const Options options_;
  const unsigned most_slow_;  // threads
  Mutex mu_;                  // leaf
  CondVar changed_;
  std::unordered_map<std::string, Peer> peers_ GUARDED_BY(mu_);
  Jobs later_ GUARDED_BY(mu_);
  std::size_t jobs_ GUARDED_BY(mu_){0};  // not begun
  std::size_t idle_ GUARDED_BY(mu_){0};  // peers
  // Those with something due that do not run.
  Queue quick_ GUARDED_BY(mu_);
  Queue slow_ GUARDED_BY(mu_);
  unsigned slow_running_ GUARDED_BY(mu_){0};
  bool stopping_ GUARDED_BY(mu_){false};
  std::vector<std::thread> threads_;
};

}  // namespace latchfs::nlm
