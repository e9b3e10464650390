// What /proc tells about sleeping threads: how the lock tests know, without guessing by the clock,
// that a world has come to rest.
//
// The argument: take two samples of all threads that matter. In both each of them sleeps, and none
// has gone to sleep once more in between (voluntary_ctxt_switches is unchanged). Then there was an
// instant between the samples at which all slept together. A wake-up makes its target runnable
// before the waker's call returns, so at that instant nothing was on its way, and nothing will
// happen until somebody from outside acts.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <optional>
#include <vector>

namespace latchfs::locktest {

// How long anything may take before a test calls it hung. Not a time to wait, a time to give up.
// LATCHFS_HUNG_SECONDS overrides.
[[nodiscard]] std::chrono::seconds hung_after();

struct SleepingThread {
  pid_t tid{};
  long switches{};  // times it went to sleep of its own will
  bool operator==(const SleepingThread&) const = default;
};

// The thread, if it sleeps. A stopped thread counts as sleeping.
[[nodiscard]] std::optional<SleepingThread> sleeping(pid_t pid, pid_t tid);
// Sleeps inside fcntl(2) or flock(2).
[[nodiscard]] bool in_lock_call(pid_t pid, pid_t tid);
// All threads of the process, if every one of them sleeps. A process that is gone has none.
[[nodiscard]] std::optional<std::vector<SleepingThread>> all_sleeping(pid_t pid);

// Ids of the process's threads; empty if it is gone.
[[nodiscard]] std::vector<pid_t> threads_of(pid_t pid);
// A "Name: value kB" line of /proc/PID/status; -1 if absent.
[[nodiscard]] long status_value(pid_t pid, const char* name);

// Calls done() until it is true; false if that took longer than hung_after().
template <class Done>
[[nodiscard]] bool poll_until(Done&& done);

namespace detail {
void poll_pause();
}

template <class Done>
bool poll_until(Done&& done) {
  const auto deadline = std::chrono::steady_clock::now() + hung_after();
  while (!done()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    detail::poll_pause();
  }
  return true;
}

}  // namespace latchfs::locktest
