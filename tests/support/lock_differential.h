// The same random steps in several worlds, compared with what the kernel's own locks do.
//
// A difference is only reported once it is sure to be one: the script is run again on the oracle,
// several times, and if the oracle does not agree with itself the kernel leaves that outcome to its
// scheduler (two requests that one unlock wakes race for the lock, unless one was queued behind the
// other). Such a sequence is dropped and counted: a share of them that grows is a failure too.
// What is sure is then made short, by leaving out steps as long as it still differs.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "support/lock_script.h"
#include "support/lock_step.h"

namespace latchfs::locktest {

struct Difference {
  std::uint64_t seed{};
  std::string ground;
  std::string first_seen;    // the step that differed, before shortening
  std::vector<Step> script;  // shortened
  std::vector<Outcome> native;
  std::vector<Outcome> other;
  unsigned reproduced{};  // of kReruns, before shortening
};

struct Tally {
  unsigned sequences{};
  unsigned steps{};
  unsigned waits{};         // requests that had to wait
  unsigned undetermined{};  // sequences the oracle gives no one answer for
};

class Differential {
 public:
  static constexpr unsigned kReruns = 6;

  // grounds[0] is the oracle.
  explicit Differential(std::vector<Ground> grounds) : grounds_{std::move(grounds)} {}

  // One sequence. shorten: how long to look for a shorter one.
  std::optional<Difference> run(std::uint64_t seed, unsigned steps,
                                std::chrono::seconds shorten = std::chrono::seconds{60});

  [[nodiscard]] const Tally& tally() const { return tally_; }

 private:
  // The ground that differed, if any.
  Ground* first_run(std::uint64_t seed, unsigned steps, Difference& found);
  bool oracle_is_sure(const std::vector<Step>& script, const std::vector<Outcome>& native,
                      unsigned reruns);
  bool differs(Ground& ground, const std::vector<Step>& script);
  std::vector<Step> shortened(Ground& ground, std::vector<Step> script, std::chrono::seconds limit);

  std::vector<Ground> grounds_;
  Tally tally_;
};

// The first step at which the mount's outcomes (run_script()'s) are not the kernel's; the number of
// steps if all are, but something was left behind.
[[nodiscard]] std::optional<std::size_t> first_difference(const std::vector<Step>& script,
                                                          const std::vector<Outcome>& native,
                                                          const std::vector<Outcome>& mount);

// What to read and what to paste into a scenario file.
[[nodiscard]] std::string report(const Difference& difference);

}  // namespace latchfs::locktest
