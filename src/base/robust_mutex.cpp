#include "base/robust_mutex.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <ctime>

namespace latchfs {
namespace {

RobustMutex::Locked classify(int err) noexcept {
  switch (err) {
    case 0:
      return RobustMutex::Locked::kClean;
    case EOWNERDEAD:
      return RobustMutex::Locked::kOwnerDied;
    case EBUSY:
    case ETIMEDOUT:
      return RobustMutex::Locked::kStuck;
    default:
      return RobustMutex::Locked::kBroken;
  }
}

// glibc's own, as its ABI has it: what pthread_mutex_init() makes of the attributes below.
constexpr int kKind = 16 | 128;  // PTHREAD_MUTEX_ROBUST_NORMAL_NP, process-shared

}  // namespace

int RobustMutex::init() noexcept {
  pthread_mutexattr_t attr;
  if (const int err = ::pthread_mutexattr_init(&attr)) return err;
  int err = ::pthread_mutexattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
  if (err == 0) err = ::pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST);
  if (err == 0) err = ::pthread_mutex_init(&mu_, &attr);
  ::pthread_mutexattr_destroy(&attr);
  return err;
}

RobustMutex::Locked RobustMutex::lock() noexcept {
  if (const Locked how = try_lock(); how != Locked::kStuck) return how;
#ifdef __SANITIZE_THREAD__
  // TSan knows nothing of pthread_mutex_clocklock, and of pthread_mutex_timedlock not that a dead
  // holder's mutex is had too.
  constexpr useconds_t kStepUs = 50;
  for (int waited = 0; waited < kPatienceMs * 1000; waited += kStepUs) {
    if (const Locked how = try_lock(); how != Locked::kStuck) return how;
    ::usleep(kStepUs);
  }
  return Locked::kStuck;
#else
  constexpr long kSecond = 1'000'000'000;
  timespec until{};
  ::clock_gettime(CLOCK_MONOTONIC, &until);
  until.tv_sec += kPatienceMs / 1000;
  until.tv_nsec += kPatienceMs % 1000 * 1'000'000L;
  if (until.tv_nsec >= kSecond) {
    until.tv_nsec -= kSecond;
    ++until.tv_sec;
  }
  return classify(::pthread_mutex_clocklock(&mu_, CLOCK_MONOTONIC, &until));
#endif
}

// By another kind it would be no robust mutex any more, and lock all the same.
RobustMutex::Locked RobustMutex::try_lock() noexcept {
  if (__atomic_load_n(&mu_.__data.__kind, __ATOMIC_RELAXED) != kKind) return Locked::kBroken;
  return classify(::pthread_mutex_trylock(&mu_));
}

std::uint32_t RobustMutex::word() const noexcept {
  return static_cast<std::uint32_t>(__atomic_load_n(&mu_.__data.__lock, __ATOMIC_RELAXED));
}

void RobustMutex::bury(std::uint32_t word) noexcept {
  auto expected = static_cast<int>(word);
  const auto dead = static_cast<int>((word & FUTEX_WAITERS) | FUTEX_OWNER_DIED);
  if (!__atomic_compare_exchange_n(&mu_.__data.__lock, &expected, dead, false, __ATOMIC_ACQ_REL,
                                   __ATOMIC_RELAXED)) {
    return;
  }
  ::syscall(SYS_futex, &mu_.__data.__lock, FUTEX_WAKE, 1, nullptr, nullptr, 0);
}

void RobustMutex::repair() noexcept {
  __atomic_store_n(&mu_.__data.__owner, 0, __ATOMIC_RELAXED);
  __atomic_store_n(&mu_.__data.__kind, kKind, __ATOMIC_RELEASE);
}

}  // namespace latchfs
