// What a WaitWorld is made of.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "latchfs/types.h"

namespace latchfs::test {

// Planted by a test to see that it would be found.
enum class Bug : std::uint8_t {
  kNone,
  kDropsEarlyGrant,      // the lot forgets what is granted before it parks
  kDropsEarlyInterrupt,  // or what is interrupted before
  kCancelAlwaysWins,     // the store says "cancelled" of what was granted
  kDoesNotRing,          // other daemons are not told
  kReaperDoesNotRing,    // nor by who reaps a daemon that granted and died
  kReaperDoesNotAsk,     // who reaps does not look for deadlocks
  kForgetsBlindly,       // a shard's ready bit is cleared without a look at the shard
  kSeenTooLate,          // the doorbell is reset after the ready ones were collected
  kNewestFirst,          // waiters are served last come, first served
  kSearchesNothing,      // no deadlock is found
};

struct Op {
  enum class What : std::uint8_t {
    kLock,
    kUnlock,
    kClose,
    kAwait,  // goes on when the table has so many grants and waiters: fewer orders, chosen ones
  };
  What what{};
  std::uint64_t file{1};
  LockMode mode{LockMode::kExclusive};
  LockKind kind{LockKind::kOfd};
  std::uint64_t begin{0}, end{10};
  std::uint64_t grants{}, waiters{};
};

// One process: its calls one after the other. After EINTR or EDEADLK it locks no more, but gives
// back.
struct Process {
  int mount{};
  std::vector<Op> ops;
  int interrupted{-1};  // which of its calls a signal hits, at any time from its beginning on
  int after{-1};        // begins when that process's first lock was answered
  int owner_of{-1};     // a thread of that process: the same owner
};

struct Scenario {
  std::string name;
  int mounts{1};
  std::uint32_t shards{1};
  std::vector<Process> processes;
  int killed{-1};                 // the mount whose daemon dies, at any time; mount 0 reaps it
  std::uint64_t killed_beside{};  // not before so many wait
  bool all_reap{};                // all others reap it, not mount 0 alone
};

}  // namespace latchfs::test
