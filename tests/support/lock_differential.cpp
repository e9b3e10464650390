#include "support/lock_differential.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>

#include "support/lock_compare.h"
#include "support/lock_random.h"

namespace latchfs::locktest {
namespace {

// While shortening, every candidate may hang: give up on each sooner.
class ImpatientScope {
 public:
  ImpatientScope() {
    if (const char* before = std::getenv(kName)) before_ = before;
    ::setenv(kName, "5", 1);
  }
  ~ImpatientScope() {
    if (before_) {
      ::setenv(kName, before_->c_str(), 1);
    } else {
      ::unsetenv(kName);
    }
  }
  ImpatientScope(const ImpatientScope&) = delete;
  ImpatientScope& operator=(const ImpatientScope&) = delete;

 private:
  static constexpr const char* kName = "LATCHFS_HUNG_SECONDS";
  std::optional<std::string> before_;
};

std::vector<Step> without(const std::vector<Step>& script, std::size_t at, std::size_t count) {
  std::vector<Step> rest{script.begin(), script.begin() + static_cast<std::ptrdiff_t>(at)};
  const std::size_t end = std::min(at + count, script.size());
  rest.insert(rest.end(), script.begin() + static_cast<std::ptrdiff_t>(end), script.end());
  return rest;
}

}  // namespace

std::optional<std::size_t> first_difference(const std::vector<Step>& script,
                                            const std::vector<Outcome>& native,
                                            const std::vector<Outcome>& mount) {
  for (std::size_t i = 0; i < script.size(); ++i) {
    if (i >= native.size() || i >= mount.size()) return i;
    if (!agree(script[i], native[i], mount[i])) return i;
  }
  return std::nullopt;
}

std::optional<Difference> Differential::run(std::uint64_t seed, unsigned steps,
                                            std::chrono::seconds shorten) {
  ++tally_.sequences;
  Difference found;
  found.seed = seed;
  const Ground* culprit = nullptr;
  {
    std::vector<std::unique_ptr<World>> worlds;
    for (const Ground& ground : grounds_) worlds.push_back(std::make_unique<World>(ground));
    RandomSteps random{seed};
    while (culprit == nullptr && found.script.size() < steps) {
      const Step step = random.next();
      const Outcome native = worlds[0]->run(step);
      random.observe(step, native);
      found.script.push_back(step);
      found.native.push_back(native);
      ++tally_.steps;
      if (native.result == "waits") ++tally_.waits;
      for (std::size_t i = 1; i < worlds.size() && culprit == nullptr; ++i) {
        if (!agree(step, native, worlds[i]->run(step))) culprit = &grounds_[i];
      }
    }
  }
  if (culprit == nullptr) return std::nullopt;
  if (!oracle_is_sure(found.script, found.native)) {
    ++tally_.undetermined;
    if (std::getenv("LATCHFS_VERBOSE") != nullptr) {
      std::printf("undetermined, seed %llu:\n%s", static_cast<unsigned long long>(seed),
                  render_script(found.script, found.native).c_str());
    }
    return std::nullopt;
  }
  found.ground = culprit->name;
  const ImpatientScope impatient;
  for (unsigned i = 0; i < kReruns; ++i) {
    if (differs(*culprit, found.script)) ++found.reproduced;
  }
  found.script = shortened(*culprit, found.script, shorten);
  // Of what happens by chance, show a run in which it did.
  for (unsigned i = 0; i < 5 * kReruns; ++i) {
    found.native = run_script(grounds_[0], found.script);
    found.other = run_script(*culprit, found.script);
    if (first_difference(found.script, found.native, found.other)) break;
  }
  return found;
}

bool Differential::oracle_is_sure(const std::vector<Step>& script,
                                  const std::vector<Outcome>& native) const {
  for (unsigned i = 0; i < kReruns; ++i) {
    if (run_script(grounds_[0], script) != native) return false;
  }
  return true;
}

// Twice on the oracle: what only chance makes different is not what we are after.
bool Differential::differs(const Ground& ground, const std::vector<Step>& script) const {
  const std::vector<Outcome> native = run_script(grounds_[0], script);
  if (!first_difference(script, native, run_script(ground, script))) return false;
  return run_script(grounds_[0], script) == native && run_script(grounds_[0], script) == native;
}

std::vector<Step> Differential::shortened(const Ground& ground, std::vector<Step> script,
                                          std::chrono::seconds limit) const {
  const auto deadline = std::chrono::steady_clock::now() + limit;
  for (std::size_t chunk = script.size() / 2; chunk > 0;) {
    bool shorter = false;
    for (std::size_t at = 0; at < script.size();) {
      if (std::chrono::steady_clock::now() > deadline) return script;
      std::vector<Step> candidate = without(script, at, chunk);
      if (differs(ground, candidate)) {
        script = std::move(candidate);
        shorter = true;
      } else {
        at += chunk;
      }
    }
    if (!shorter || chunk > 1) chunk /= 2;
  }
  return script;
}

std::string report(const Difference& difference) {
  std::string out = "seed " + std::to_string(difference.seed) + ": " + difference.ground +
                    " differs from the kernel's own locks, in " +
                    std::to_string(difference.reproduced) + " of " +
                    std::to_string(Differential::kReruns) + " reruns. Shortened script:\n" +
                    render_script(difference.script, difference.native);
  const auto at = first_difference(difference.script, difference.native, difference.other);
  if (!at) return out + "(the shortened script did not differ when run once more)\n";
  const std::string given =
      *at < difference.other.size() ? to_string(difference.other[*at]) : "nothing";
  return out + "line " + std::to_string(*at + 1) + " `" + to_string(difference.script[*at]) +
         "` gave instead: " + given + "\n";
}

}  // namespace latchfs::locktest
