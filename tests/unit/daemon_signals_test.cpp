#include <gtest/gtest.h>
#include <unistd.h>

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

TEST(StopSignals, EndsWithoutASignal) {
  block_stop_signals();
  const auto watch = StopSignals::watch([](int) { ADD_FAILURE(); });
  EXPECT_TRUE(watch.ok());
}

}  // namespace
}  // namespace latchfs::daemon
