// Random lock scenarios that are worth running: it keeps an eye on who has what open and who
// waits, so that most steps meet others.
//
// Only sequences whose outcome the kernel determines are of use. So at most one request waits for
// an owner at a time (POSIX: the process; OFD, flock: the description), since the later of two
// answers would overwrite the earlier, and which is later is the scheduler's choice. What is left
// to chance beyond that is found out by running the oracle again (lock_differential.h).
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
  // What came of the step that next() gave.
  void observe(const Step& step, const Outcome& outcome);

 private:
  struct Descriptor {
    unsigned description{};
    bool cloexec{};
  };
  struct Wait {
    Kind kind{};
    unsigned description{};
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
  bool make_rare(Step& step, Process& process);
  [[nodiscard]] unsigned waits() const;
  void observe_lock(const Step& step, const Outcome& outcome, Process& process);

  std::mt19937_64 rng_;
  Profile profile_;
  std::map<char, Process> processes_;  // alive
  char next_actor_{'A'};
  unsigned next_description_{1};
};

}  // namespace latchfs::locktest
