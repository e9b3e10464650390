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
  Comparison comparison;
  for (std::size_t i = 0; i < script.size(); ++i) {
    if (i >= native.size() || i >= mount.size()) return i;
    if (!comparison.agree(script[i], native[i], mount[i])) return i;
  }
  if (native.back() != mount.back()) return script.size();
  return std::nullopt;
}

Ground* Differential::first_run(std::uint64_t seed, unsigned steps, Difference& found) {
  Ground* culprit = nullptr;
  const auto differs = [&](Ground& ground, const std::string& where, const Outcome& native,
                           const Outcome& other) {
    culprit = &ground;
    found.first_seen = where + to_string(native) + ", but " + to_string(other);
  };
  {
    std::vector<std::unique_ptr<World>> worlds;
    for (const Ground& ground : grounds_) worlds.push_back(std::make_unique<World>(ground));
    std::vector<Comparison> comparisons(grounds_.size());
    RandomSteps random{seed};
    while (culprit == nullptr && found.script.size() < steps) {
      const Step step = random.next();
      const Outcome native = worlds[0]->run(step);
      random.observe(step, native, worlds[0]->entangled());
      found.script.push_back(step);
      found.native.push_back(native);
      ++tally_.steps;
      if (native.result == "waits") ++tally_.waits;
      for (std::size_t i = 1; i < worlds.size() && culprit == nullptr; ++i) {
        const Outcome other = worlds[i]->run(step);
        if (comparisons[i].agree(step, native, other)) continue;
        differs(grounds_[i],
                "step " + std::to_string(found.script.size()) + " `" + to_string(step) + "`: ",
                native, other);
      }
    }
  }
  found.native.push_back(aftermath(grounds_[0]));
  for (std::size_t i = 1; i < grounds_.size(); ++i) {
    const Outcome other = aftermath(grounds_[i]);
    if (culprit == nullptr && other != found.native.back()) {
      differs(grounds_[i], "when all was over: ", found.native.back(), other);
    }
  }
  return culprit;
}

std::optional<Difference> Differential::run(std::uint64_t seed, unsigned steps,
                                            std::chrono::seconds shorten) {
  ++tally_.sequences;
  Difference found;
  found.seed = seed;
  Ground* const culprit = first_run(seed, steps, found);
  if (culprit == nullptr) return std::nullopt;
  const ImpatientScope impatient;
  for (unsigned i = 0; i < kReruns; ++i) {
    if (differs(*culprit, found.script)) ++found.reproduced;
  }
  // What happens always needs less proof than what happens now and then.
  const unsigned reruns = found.reproduced == kReruns ? kReruns : 10 * kReruns;
  if (!oracle_is_sure(found.script, found.native, reruns)) {
    ++tally_.undetermined;
    if (std::getenv("LATCHFS_VERBOSE") != nullptr) {
      std::printf("undetermined, seed %llu: %s\n%s", static_cast<unsigned long long>(seed),
                  found.first_seen.c_str(), render_script(found.script, found.native).c_str());
    }
    return std::nullopt;
  }
  found.ground = culprit->name;
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
                                  const std::vector<Outcome>& native, unsigned reruns) {
  for (unsigned i = 0; i < reruns; ++i) {
    if (first_difference(script, native, run_script(grounds_[0], script))) return false;
  }
  return true;
}

// What only chance makes different is not what we are after: three runs of the oracle agree, and
// waiters are not entangled but for a moment.
bool Differential::differs(Ground& ground, const std::vector<Step>& script) {
  std::vector<Outcome> native;
  {
    World oracle{grounds_[0]};
    for (std::size_t i = 0; i < script.size(); ++i) {
      native.push_back(oracle.run(script[i]));
      const bool ends_a_wait = i + 1 < script.size() && script[i + 1].verb == Verb::kIntr;
      if (oracle.entangled() && !ends_a_wait) return false;
    }
  }
  native.push_back(aftermath(grounds_[0]));
  if (!first_difference(script, native, run_script(ground, script))) return false;
  return !first_difference(script, native, run_script(grounds_[0], script)) &&
         !first_difference(script, native, run_script(grounds_[0], script));
}

std::vector<Step> Differential::shortened(Ground& ground, std::vector<Step> script,
                                          std::chrono::seconds limit) {
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
  std::string out =
      "seed " + std::to_string(difference.seed) + ": " + difference.ground +
      " differs from the kernel's own locks, in " + std::to_string(difference.reproduced) + " of " +
      std::to_string(Differential::kReruns) + " reruns. First seen at " + difference.first_seen +
      "\nShortened script:\n" + render_script(difference.script, difference.native);
  const auto at = first_difference(difference.script, difference.native, difference.other);
  if (!at) return out + "(the shortened script did not differ when run once more)\n";
  const std::string given =
      *at < difference.other.size() ? to_string(difference.other[*at]) : "nothing";
  if (*at == difference.script.size()) return out + "when all is over: " + given + "\n";
  return out + "line " + std::to_string(*at + 1) + " `" + to_string(difference.script[*at]) +
         "` gave instead: " + given + "\n";
}

}  // namespace latchfs::locktest
