#include "posix/sys.h"

#include <fcntl.h>
#include <pthread.h>
#include <unistd.h>

#include <atomic>
#include <charconv>
#include <cstring>

namespace latchfs::posix {
namespace {

std::atomic<int> g_self_fds{-1};

// The child of a fork has descriptors of its own; the directory still names the parent's.
void forget_after_fork() {
  const int old = g_self_fds.exchange(-1);
  if (old >= 0) ::close(old);
}

}  // namespace

Result<struct stat> stat_of(int fd) {
  struct stat st {};
  if (::fstatat(fd, "", &st, AT_EMPTY_PATH) < 0) return last_errno();
  return st;
}

FdName::FdName(int fd) noexcept : text_{} {
  std::memcpy(text_.data(), "/proc/self/fd/", kPrefix);
  // 11 characters hold every int; the rest stays NUL.
  std::to_chars(text_.data() + kPrefix, text_.data() + text_.size() - 1, fd);
}

int self_fds() noexcept {
  const int known = g_self_fds.load(std::memory_order_acquire);
  if (known >= 0) return known;
  [[maybe_unused]] static const int registered =
      ::pthread_atfork(nullptr, nullptr, forget_after_fork);
  const int fresh = ::open("/proc/self/fd", O_PATH | O_DIRECTORY | O_CLOEXEC);
  if (fresh < 0) return -1;
  int expected = -1;
  if (g_self_fds.compare_exchange_strong(expected, fresh)) return fresh;
  ::close(fresh);
  return expected;
}

}  // namespace latchfs::posix
