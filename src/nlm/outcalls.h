// Things to do outside, some of them later: on a few threads of their own, so that a client that
// does not answer holds up nobody but himself.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "base/mutex.h"

namespace latchfs::nlm {

// Any thread.
class Outcalls {
 public:
  // most: as many may be waiting.
  Outcalls(unsigned threads, std::size_t most);
  // What has not begun is dropped; waits for what has.
  ~Outcalls();
  Outcalls(const Outcalls&) = delete;
  Outcalls& operator=(const Outcalls&) = delete;

  // Runs `fn`, which must not throw, at at_ns (CLOCK_MONOTONIC; 0: now) or later, never two of one
  // `peer` ("": of nobody) at once. It may ask for more. False: there are too many, or it is the
  // end.
  bool at(std::int64_t at_ns, std::string peer, std::function<void()> fn) EXCLUDES(mu_);

  // No more from here on; waits for what runs. The destructor does the same.
  void stop() noexcept EXCLUDES(mu_);

 private:
  struct Job {
    std::string peer;
    std::function<void()> fn;
  };
  void loop() noexcept EXCLUDES(mu_);

  const std::size_t most_;
  Mutex mu_;  // leaf
  CondVar changed_;
  std::multimap<std::int64_t, Job> due_ GUARDED_BY(mu_);
  std::multimap<std::string, Job> behind_ GUARDED_BY(mu_);  // due, but another of the peer runs
  std::set<std::string> busy_ GUARDED_BY(mu_);
  bool stopping_ GUARDED_BY(mu_){false};
  std::vector<std::thread> threads_;
};

}  // namespace latchfs::nlm
