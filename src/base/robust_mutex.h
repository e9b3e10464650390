// A pthread mutex that lives in shared memory and outlives any process that holds it.
//
// Boost 1.74's interprocess_mutex stays locked for ever when its holder dies (docs/adr/0002).
// Lock it only from threads made by pthread_create or the process's main thread: glibc finds a dead
// holder by its thread id.
#pragma once

#include <pthread.h>

#include <cstdint>

namespace latchfs {

class RobustMutex {
 public:
  enum class Locked : std::uint8_t {
    kClean,
    kOwnerDied,  // what it guards may be half-changed: repair, then mark_consistent()
    kBroken,     // an owner that died was never repaired, or the memory is not a mutex
  };

  // In place, before anybody else can see it. errno value, 0 if fine.
  int init() noexcept;
  Locked lock() noexcept;
  // kBroken also for "somebody holds it": for checks only.
  bool try_lock(Locked& how) noexcept;
  void mark_consistent() noexcept { ::pthread_mutex_consistent(&mu_); }
  void unlock() noexcept { ::pthread_mutex_unlock(&mu_); }

 private:
  pthread_mutex_t mu_;
};

}  // namespace latchfs
