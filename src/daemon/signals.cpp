#include "daemon/signals.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <csignal>
#include <utility>

namespace latchfs::daemon {
namespace {

sigset_t stop_set() noexcept {
  sigset_t set;
  ::sigemptyset(&set);
  for (const int sig : {SIGTERM, SIGINT, SIGHUP}) ::sigaddset(&set, sig);
  return set;
}

void serve(int signals, int quit, const std::function<void(int)>& on_stop) {
  for (;;) {
    std::array<pollfd, 2> fds{{{signals, POLLIN, 0}, {quit, POLLIN, 0}}};
    if (TEMP_FAILURE_RETRY(::poll(fds.data(), fds.size(), -1)) < 0 || fds[1].revents != 0) return;
    signalfd_siginfo info{};
    if (TEMP_FAILURE_RETRY(::read(signals, &info, sizeof info)) != sizeof info) continue;
    on_stop(static_cast<int>(info.ssi_signo));
  }
}

}  // namespace

void block_stop_signals() noexcept {
  const sigset_t set = stop_set();
  ::pthread_sigmask(SIG_BLOCK, &set, nullptr);
}

bool wait_unless_stopped(std::chrono::milliseconds time) noexcept {
  const sigset_t set = stop_set();
  const auto until = std::chrono::steady_clock::now() + time;
  for (;;) {
    const auto left = until - std::chrono::steady_clock::now();
    if (left <= left.zero()) return true;
    const auto ns = std::chrono::duration_cast<std::chrono::nanoseconds>(left).count();
    const timespec rest{ns / 1'000'000'000, ns % 1'000'000'000};
    if (::sigtimedwait(&set, nullptr, &rest) > 0) return false;
  }
}

Result<StopSignals> StopSignals::watch(std::function<void(int)> on_stop) {
  const sigset_t set = stop_set();
  UniqueFd signals{::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK)};
  if (!signals) return last_errno();
  UniqueFd quit{::eventfd(0, EFD_CLOEXEC)};
  if (!quit) return last_errno();
  try {
    return StopSignals{std::move(signals), std::move(quit), std::move(on_stop)};
  } catch (const std::system_error& e) {
    return e.code();
  }
}

StopSignals::StopSignals(UniqueFd signals, UniqueFd quit, std::function<void(int)> on_stop)
    : signals_{std::move(signals)},
      quit_{std::move(quit)},
      thread_{[s = signals_.get(), q = quit_.get(), f = std::move(on_stop)] { serve(s, q, f); }} {}

StopSignals::~StopSignals() {
  if (!thread_.joinable()) return;  // moved from
  const std::uint64_t one = 1;
  // An eventfd takes 2^64-2 writes before it blocks or fails.
  [[maybe_unused]] const ssize_t n = ::write(quit_.get(), &one, sizeof one);
  thread_.join();
}

}  // namespace latchfs::daemon
