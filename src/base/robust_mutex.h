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
    kStuck,      // somebody has had it for kPatienceMs
  };
  static constexpr int kPatienceMs = 1000;

  // In place, before anybody else can see it. errno value, 0 if fine.
  int init() noexcept;
  // Waits kPatienceMs at most: whoever has it may be stopped, or nobody has it and the memory only
  // says so. Ask holder(), and again.
  Locked lock() noexcept;
  // kStuck: somebody holds it.
  Locked try_lock() noexcept;
  // What the kernel reads of it: the thread that has it (FUTEX_TID_MASK, its number in its own pid
  // namespace) and flags. It may change at any time.
  [[nodiscard]] std::uint32_t word() const noexcept;
  // For a word that names nobody who could have it: as the kernel does when a holder dies, unless
  // it has changed. The next to lock it finds kOwnerDied.
  void bury(std::uint32_t word) noexcept;
  // For kBroken: makes it a mutex again, held by whoever its word says.
  void repair() noexcept;
  void mark_consistent() noexcept { ::pthread_mutex_consistent(&mu_); }
  void unlock() noexcept { ::pthread_mutex_unlock(&mu_); }

 private:
  pthread_mutex_t mu_;
};

}  // namespace latchfs
