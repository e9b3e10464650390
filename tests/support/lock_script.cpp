#include "support/lock_script.h"

#include <sstream>
#include <utility>

#include "support/lock_proc.h"
#include "support/lock_table_view.h"

namespace latchfs::locktest {

std::string leftovers(const Ground& ground) {
  if (ground.native()) return {};
  const auto sample = [&ground] {
    std::vector<SleepingThread> threads;
    for (const pid_t daemon : ground.daemons) {
      const auto more = all_sleeping(daemon);
      if (!more) return std::vector<SleepingThread>{};
      threads.insert(threads.end(), more->begin(), more->end());
    }
    return threads;
  };
  const bool rests = poll_until([&sample] {
    const auto first = sample();
    return !first.empty() && first == sample();
  });
  if (!rests) return "daemons that do not come to rest";
  std::ostringstream out;
  for (const ListedLock& lock : mount_locks(ground.roots[0])) {
    out << " [lock of pid " << lock.pid << ' ' << lock.start << ' ' << lock.len << ']';
  }
  for (const ListedLock& wait : mount_waiters(ground.roots[0])) {
    out << " [waiter, pid " << wait.pid << ' ' << wait.start << ' ' << wait.len << ']';
  }
  return out.str();
}

Outcome aftermath(Ground& ground) {
  Outcome outcome;
  const std::string left = leftovers(ground);
  outcome.result = left.empty() ? "free" : "left behind:" + left;
  if (left.empty() || !ground.renew) return outcome;
  // The old mounts end first: it may be their table.
  const auto renew = ground.renew;
  ground.mounts.reset();
  ground = renew();
  return outcome;
}

std::vector<Outcome> run_script(Ground& ground, const std::vector<Step>& steps) {
  std::vector<Outcome> outcomes;
  {
    World world{ground};
    for (const Step& step : steps) {
      outcomes.push_back(world.run(step));
      if (outcomes.back().result == "HUNG") break;
    }
  }
  outcomes.push_back(aftermath(ground));
  return outcomes;
}

}  // namespace latchfs::locktest
