#include "model/explore.h"

#include <memory>
#include <unordered_map>
#include <vector>

#include "base/log.h"
#include "model/wait_world.h"

namespace latchfs::test {
namespace {

class Explorer {
 public:
  Explorer(const Scenario& scenario, Bug bug, bool prune)
      : scenario_{scenario}, bug_{bug}, prune_{prune} {}

  Explored run() {
    out_.interleavings = from(replay());
    if (out_.wrong.empty()) return out_;
    path_.clear();
    auto world = replay();
    for (const int task : bad_path_) {
      out_.wrong += "\n  " + world->describe(task);
      world->step(task);
    }
    return out_;
  }

 private:
  std::unique_ptr<WaitWorld> replay() {
    auto world = std::make_unique<WaitWorld>(scenario_, bug_);
    for (const int task : path_) world->step(task, true);
    out_.steps += path_.size();
    return world;
  }

  // How many complete interleavings go on from here.
  double from(std::unique_ptr<WaitWorld> world) {
    if (!world->wrong().empty()) return failed(*world);
    const std::uint64_t here = world->hash();
    if (prune_) {
      const auto [known, fresh] = met_.try_emplace(here, 0);
      if (!fresh) return known->second;
    }
    ++out_.states;
    const std::vector<int> next = world->enabled();
    if (next.empty()) {
      world->check_end();
      if (!world->wrong().empty()) return failed(*world);
      out_.answers.insert(world->answers());
      return met_[here] = 1;
    }
    double all = 0;
    for (const int task : next) {
      if (!out_.wrong.empty()) return 0;
      auto then = world ? std::move(world) : replay();
      path_.push_back(task);
      then->step(task);
      ++out_.steps;
      all += from(std::move(then));
      path_.pop_back();
    }
    return met_[here] = all;
  }

  double failed(const WaitWorld& world) {
    out_.wrong = world.wrong() + "; answers: " + world.answers() + "; in this order:";
    bad_path_ = path_;
    return 0;
  }

  const Scenario& scenario_;
  const Bug bug_;
  const bool prune_;
  std::vector<int> path_, bad_path_;
  std::unordered_map<std::uint64_t, double> met_;
  Explored out_;
};

}  // namespace

Explored explore(const Scenario& scenario, Bug bug, bool prune) {
  // Worlds end in the middle of what they do, and say so.
  (void)log::open("/dev/null", log::Level::kError);
  Explored out = Explorer{scenario, bug, prune}.run();
  (void)log::open("stderr", log::Level::kInfo);
  return out;
}

}  // namespace latchfs::test
