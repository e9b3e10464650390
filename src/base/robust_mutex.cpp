#include "base/robust_mutex.h"

#include <cerrno>

namespace latchfs {
namespace {

RobustMutex::Locked classify(int err) noexcept {
  switch (err) {
    case 0:
      return RobustMutex::Locked::kClean;
    case EOWNERDEAD:
      return RobustMutex::Locked::kOwnerDied;
    default:
      return RobustMutex::Locked::kBroken;
  }
}

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

RobustMutex::Locked RobustMutex::lock() noexcept { return classify(::pthread_mutex_lock(&mu_)); }

bool RobustMutex::try_lock(Locked& how) noexcept {
  const int err = ::pthread_mutex_trylock(&mu_);
  how = classify(err);
  return how != Locked::kBroken;
}

}  // namespace latchfs
