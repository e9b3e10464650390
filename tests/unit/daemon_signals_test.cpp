#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <future>

#include "daemon/signals.h"

namespace latchfs::daemon {
namespace {

TEST(StopSignals, CallsBackOnAThreadOfItsOwn) {
  block_stop_signals();
  std::promise<int> got;
  {
    const auto watch = StopSignals::watch([&](int sig) { got.set_value(sig); });
    ASSERT_TRUE(watch.ok());
    ::kill(::getpid(), SIGTERM);
    EXPECT_EQ(got.get_future().get(), SIGTERM);
  }
}

TEST(StopSignals, WaitingEndsWithASignal) {
  block_stop_signals();
  EXPECT_TRUE(wait_unless_stopped(std::chrono::milliseconds{1}));
  ::kill(::getpid(), SIGINT);
  // Without the signal the test's own limit would end it.
  EXPECT_FALSE(wait_unless_stopped(std::chrono::hours{1}));
}

TEST(StopSignals, EndsWithoutASignal) {
  block_stop_signals();
  const auto watch = StopSignals::watch([](int) { ADD_FAILURE(); });
  EXPECT_TRUE(watch.ok());
}

}  // namespace
}  // namespace latchfs::daemon
