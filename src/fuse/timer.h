// Runs small things at a later time, on one thread of its own, in order of their time.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <thread>

#include "base/mutex.h"

namespace latchfs::fuse {

class Timer {
 public:
  Timer();
  // Things still due are dropped.
  ~Timer();
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;

  // at_ns: CLOCK_MONOTONIC. fn must not throw; it may schedule again. Throws bad_alloc.
  void at(std::int64_t at_ns, std::function<void()> fn) EXCLUDES(mu_);

 private:
  void loop() EXCLUDES(mu_);

  Mutex mu_;
  CondVar changed_;
  std::multimap<std::int64_t, std::function<void()>> due_ GUARDED_BY(mu_);
  bool stopping_ GUARDED_BY(mu_){false};
  std::thread thread_;
};

}  // namespace latchfs::fuse
