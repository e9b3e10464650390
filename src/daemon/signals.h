// SIGTERM, SIGINT and SIGHUP as a call on an ordinary thread, where locks and memory may be used.
#pragma once

#include <chrono>
#include <functional>
#include <thread>

#include "base/unique_fd.h"
#include "latchfs/result.h"

namespace latchfs::daemon {

// Blocks the three in the calling thread and in all threads it starts from now on. Call first.
void block_stop_signals() noexcept;

// Waits, no longer than until one of the three comes: then false. Precondition: they are blocked.
[[nodiscard]] bool wait_unless_stopped(std::chrono::milliseconds time) noexcept;

class StopSignals {
 public:
  // on_stop is called once for each that comes, with its number, until destruction.
  // Precondition: block_stop_signals() in this thread, and no thread started before it.
  [[nodiscard]] static Result<StopSignals> watch(std::function<void(int)> on_stop);
  StopSignals(StopSignals&&) = default;
  StopSignals& operator=(StopSignals&&) = delete;
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;
  ~StopSignals();

 private:
  StopSignals(UniqueFd signals, UniqueFd quit, std::function<void(int)> on_stop);
  UniqueFd signals_;  // signalfd
  UniqueFd quit_;     // eventfd: the destructor was called
  std::thread thread_;
};

}  // namespace latchfs::daemon
