// Random lock scenarios that are worth running: it keeps an eye on who has what open and who
// waits, so that most steps meet others.
//
// Only sequences whose outcome the kernel determines are of use:
// - At most one request waits for an owner at a time (POSIX: the process; OFD, flock: the
//   description), since the later of two answers would overwrite the earlier, and which is later
//   is the scheduler's choice.
// - A flock is not converted while others wait for the file: flock(2) gives the old lock back
//   first, and whether those or the converter go on is again the scheduler's choice.
// - Waiters that are entangled (lock_table_view.h) are interrupted at once until none is. So are
//   those, unless nobody else waits, whose descriptor was closed meanwhile: what they are granted
//   the kernel takes away again a little later (fs/locks.c fcntl_setlk, "close/fcntl race").
// - Only the request that began to wait last is restarted: those behind it move up while it queues
//   anew.
#pragma once

#include <cstdint>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "support/lock_step.h"

namespace latchfs::locktest {

class RandomSteps {
 public:
  explicit RandomSteps(std::uint64_t seed);

  Step next();
  // What came of the step that next() gave, and whether waiters are entangled after it.
  void observe(const Step& step, const Outcome& outcome, bool entangled);

 private:
  struct Descriptor {
    unsigned description{};
    bool cloexec{};
    std::string file;
  };
  struct Wait {
    Kind kind{};
    unsigned description{};
    std::string file;
    unsigned since{};  // order of arrival
    bool closed{};
  };
  struct Process {
    std::map<char, Descriptor> slots;
    std::map<char, Wait> waits;
  };
  // What a sequence is mostly about.
  struct Profile {
    unsigned ofd_percent{};
    unsigned flock_percent{};
    unsigned wait_percent{};
    unsigned file_count{};
  };

  unsigned below(unsigned n) { return static_cast<unsigned>(rng_() % n); }
  bool percent(unsigned p) { return below(100) < p; }
  template <class Map>
  auto any_key(const Map& map);
  char pick_actor();
  char pick_slot(const Process& process);
  std::string pick_file();
  void pick_range(Step& step);
  bool may_wait(const Step& step, const Process& process) const;
  void make_open(Step& step);
  void make_lock(Step& step, Process& process);
  bool make_signal(Step& step);
  Step disentangle();
  [[nodiscard]] bool waits_without_descriptor() const;
  [[nodiscard]] bool waited_last(const Wait& wait) const;
  void close_slot(Process& process, char slot);
  bool converts_before_waiters(const Step& step, const Process& process) const;
  bool make_rare(Step& step, Process& process);
  [[nodiscard]] unsigned waits() const;
  void observe_lock(const Step& step, const Outcome& outcome, Process& process);

  std::mt19937_64 rng_;
  Profile profile_;
  std::map<char, Process> processes_;  // alive
  char next_actor_{'A'};
  std::map<unsigned, Mode> flocks_;  // held, by description
  unsigned next_description_{1};
  unsigned next_wait_{1};
  bool entangled_{};
  Step last_;
};

}  // namespace latchfs::locktest
