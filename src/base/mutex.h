// std::mutex with the annotations clang's thread-safety analysis needs.
// For one process only; what lies in shared memory uses RobustMutex.
#pragma once

#include <condition_variable>
#include <mutex>

#include "base/annotations.h"

namespace latchfs {

class CAPABILITY("mutex") Mutex {
 public:
  void lock() ACQUIRE() { mu_.lock(); }
  void unlock() RELEASE() { mu_.unlock(); }
  bool try_lock() TRY_ACQUIRE(true) { return mu_.try_lock(); }

 private:
  std::mutex mu_;
};

class SCOPED_CAPABILITY MutexLock {
 public:
  explicit MutexLock(Mutex& mu) ACQUIRE(mu) : mu_{mu} { mu_.lock(); }
  ~MutexLock() RELEASE() { mu_.unlock(); }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

 private:
  Mutex& mu_;
};

// Condition variable over Mutex. wait() takes the Mutex that the caller holds.
class CondVar {
 public:
  void wait(Mutex& mu) REQUIRES(mu) { cv_.wait(mu); }
  template <class Duration>
  std::cv_status wait_for(Mutex& mu, Duration d) REQUIRES(mu) {
    return cv_.wait_for(mu, d);
  }
  void notify_all() { cv_.notify_all(); }
  void notify_one() { cv_.notify_one(); }

 private:
  std::condition_variable_any cv_;
};

}  // namespace latchfs
