#include "support/lock_random.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <iterator>
#include <limits>

namespace latchfs::locktest {
namespace {

constexpr std::size_t kFewest = 3;
constexpr std::size_t kMost = 6;
constexpr unsigned kMostWaits = 5;
constexpr std::int64_t kMax = std::numeric_limits<std::int64_t>::max();

}  // namespace

RandomSteps::RandomSteps(std::uint64_t seed) : rng_{seed} {
  static constexpr std::array<Profile, 6> kProfiles{{
      {0, 0, 55, 1},    // POSIX on one file
      {0, 0, 65, 3},    // POSIX on several: deadlocks
      {100, 0, 55, 1},  // OFD
      {45, 0, 60, 2},   // POSIX against OFD
      {0, 100, 55, 2},  // flock
      {30, 30, 55, 3},  // all
  }};
  profile_ = kProfiles[below(kProfiles.size())];
}

template <class Map>
auto RandomSteps::any_key(const Map& map) {
  auto at = map.begin();
  std::advance(at, below(static_cast<unsigned>(map.size())));
  return at->first;
}

unsigned RandomSteps::waits() const {
  unsigned n = 0;
  for (const auto& [name, process] : processes_) n += static_cast<unsigned>(process.waits.size());
  return n;
}

char RandomSteps::pick_actor() {
  const bool more = processes_.size() < kFewest || (processes_.size() < kMost && percent(3));
  if ((more && next_actor_ <= 'Z') || processes_.empty()) {
    processes_[next_actor_] = {};
    return next_actor_++;
  }
  return any_key(processes_);
}

char RandomSteps::pick_slot(const Process& process) {
  if (process.slots.empty() || percent(2)) return static_cast<char>('a' + below(3));
  return any_key(process.slots);
}

std::string RandomSteps::pick_file() {
  if (percent(12)) return "h0";
  return "f" + std::to_string(below(profile_.file_count));
}

void RandomSteps::pick_range(Step& step) {
  const unsigned dice = below(100);
  step.start = below(8);
  step.len = 1 + below(6);
  if (dice < 6) {
    step.start = 0;
    step.len = 0;
  } else if (dice < 12) {
    step.len = 0;
  } else if (dice < 18) {
    step.len = -step.len;  // EINVAL where it begins below 0
  } else if (dice < 24) {
    step.whence = percent(50) ? SEEK_CUR : SEEK_END;
    step.start = static_cast<std::int64_t>(below(30)) - 22;
  } else if (dice < 30) {
    static constexpr std::array<std::int64_t, 6> kStarts{kMax, kMax - 1,     kMax - 7,
                                                         -1,   kMax / 2 + 1, 5};
    static constexpr std::array<std::int64_t, 9> kLens{
        0, 1, 2, 7, 8, -1, -9, kMax, std::numeric_limits<std::int64_t>::min()};
    step.start = kStarts[below(kStarts.size())];
    step.len = kLens[below(kLens.size())];
  }
}

void RandomSteps::make_open(Step& step) {
  step.verb = Verb::kOpen;
  step.slot = static_cast<char>('a' + below(3));
  step.file = pick_file();
  step.flags = percent(90) ? "rw" : percent(50) ? "r" : percent(80) ? "w" : "r,path";
  if (percent(10)) step.flags += ",cloexec";
}

// One waiting request for an owner, and one for a slot.
bool RandomSteps::may_wait(const Step& step, const Process& process) const {
  if (process.waits.count(step.slot) != 0 || waits() >= kMostWaits) return false;
  const auto slot = process.slots.find(step.slot);
  if (slot == process.slots.end()) return true;  // EBADF
  if (step.kind == Kind::kPosix) {
    return std::none_of(process.waits.begin(), process.waits.end(),
                        [](const auto& w) { return w.second.kind == Kind::kPosix; });
  }
  for (const auto& [name, other] : processes_) {
    for (const auto& [other_slot, wait] : other.waits) {
      if (wait.kind == step.kind && wait.description == slot->second.description) return false;
    }
  }
  return true;
}

bool RandomSteps::converts_before_waiters(const Step& step, const Process& process) const {
  if (step.kind != Kind::kFlock || step.mode == Mode::kUnlock) return false;
  const auto slot = process.slots.find(step.slot);
  if (slot == process.slots.end()) return false;
  const unsigned description = slot->second.description;
  const auto held = flocks_.find(description);
  const bool converts = held != flocks_.end() && held->second != step.mode;
  for (const auto& [name, other] : processes_) {
    for (const auto& [other_slot, wait] : other.waits) {
      if (wait.kind != Kind::kFlock || wait.file != slot->second.file) continue;
      // A lock taken beside one's own wait is converted when that is granted.
      if (converts || wait.description == description) return true;
    }
  }
  return false;
}

void RandomSteps::make_lock(Step& step, Process& process) {
  const unsigned dice = below(100);
  step.kind = dice < profile_.ofd_percent                            ? Kind::kOfd
              : dice < profile_.ofd_percent + profile_.flock_percent ? Kind::kFlock
                                                                     : Kind::kPosix;
  step.slot = pick_slot(process);
  if (step.kind != Kind::kFlock) pick_range(step);
  // The more wait, the more is given back.
  const unsigned unlock_percent = 12 + 7 * waits();
  if (percent(unlock_percent)) {
    step.verb = Verb::kLock;
    step.mode = Mode::kUnlock;
    return;
  }
  step.mode = percent(55) ? Mode::kExclusive : Mode::kShared;
  if (step.kind != Kind::kFlock && percent(15)) {
    step.verb = Verb::kGet;
    if (step.kind == Kind::kOfd && percent(20)) step.mode = Mode::kUnlock;
    return;
  }
  step.verb = Verb::kLock;
  step.wait = percent(profile_.wait_percent) && may_wait(step, process);
  if (converts_before_waiters(step, process)) {
    step.mode = Mode::kUnlock;
    step.wait = false;
  }
}

bool RandomSteps::make_signal(Step& step) {
  for (const auto& [name, process] : processes_) {
    if (process.waits.empty() || percent(50)) continue;
    step.actor = name;
    step.slot = any_key(process.waits);
    const bool restart = waited_last(process.waits.at(step.slot)) && percent(60);
    step.verb = restart ? Verb::kRestart : Verb::kIntr;
    return true;
  }
  return false;
}

bool RandomSteps::waited_last(const Wait& wait) const {
  for (const auto& [name, process] : processes_) {
    for (const auto& [slot, other] : process.waits) {
      if (other.since > wait.since) return false;
    }
  }
  return true;
}

bool RandomSteps::waits_without_descriptor() const {
  if (waits() < 2) return false;
  return std::any_of(processes_.begin(), processes_.end(), [](const auto& process) {
    const auto& waits = process.second.waits;
    return std::any_of(waits.begin(), waits.end(), [](const auto& w) { return w.second.closed; });
  });
}

// Ends a wait: the one that began last, or any.
Step RandomSteps::disentangle() {
  Step step;
  step.verb = Verb::kIntr;
  step.actor = last_.actor;
  step.slot = last_.slot;
  const auto process = processes_.find(last_.actor);
  if (process != processes_.end() && process->second.waits.count(last_.slot) != 0) return step;
  for (const auto& [name, other] : processes_) {
    for (const auto& [slot, wait] : other.waits) {
      step.actor = name;
      step.slot = slot;
      if (wait.closed || percent(30)) return step;
    }
  }
  return step;
}

// What is done less often than locking. False: lock instead.
bool RandomSteps::make_rare(Step& step, Process& process) {
  const unsigned dice = below(100);
  if (dice < 6) {
    make_open(step);
  } else if (dice < 9) {
    step.verb = Verb::kDup;
    step.slot = pick_slot(process);
    step.other = static_cast<char>('a' + below(3));
  } else if (dice < 13) {
    step.verb = Verb::kClose;
    step.slot = pick_slot(process);
  } else if (dice < 18) {
    return make_signal(step);
  } else if (dice < 20) {
    if (next_actor_ > 'Z' || processes_.size() >= kMost) return false;
    step.verb = Verb::kFork;
    step.other = next_actor_;
  } else if (dice < 21) {
    step.verb = Verb::kExec;
  } else if (dice < 23) {
    step.verb = percent(60) ? Verb::kKill : Verb::kExit;
  } else if (dice < 25) {
    step.verb = percent(50) ? Verb::kSeek : Verb::kTrunc;
    step.slot = pick_slot(process);
    step.start = below(25);
  } else if (dice < 29) {
    step.verb = Verb::kList;
    step.file = "f" + std::to_string(below(profile_.file_count));
  } else {
    return false;
  }
  // Closing a descriptor whose request waits: granted after that, the kernel takes the lock back
  // without telling FUSE, and only RELEASE, which a forked process's copy delays, does
  // (docs/compatibility.md). Scenarios have the case of a descriptor of one process.
  const char closed = step.verb == Verb::kDup ? step.other : step.slot;
  const bool closes =
      step.verb == Verb::kClose || step.verb == Verb::kOpen || step.verb == Verb::kDup;
  return !closes || process.waits.count(closed) == 0;
}

Step RandomSteps::next() {
  if (entangled_) return disentangle();
  Step step;
  step.actor = pick_actor();
  Process& process = processes_[step.actor];
  if (process.slots.empty() && percent(95)) {
    make_open(step);
  } else if (!make_rare(step, process)) {
    make_lock(step, process);
  }
  return step;
}

void RandomSteps::observe_lock(const Step& step, const Outcome& outcome, Process& process) {
  const auto slot = process.slots.find(step.slot);
  if (slot == process.slots.end()) return;
  const unsigned description = slot->second.description;
  if (outcome.result == "waits") {
    process.waits[step.slot] = {step.kind, description, slot->second.file, next_wait_++, false};
  }
  if (step.kind != Kind::kFlock) return;
  flocks_.erase(description);  // a conversion that is refused has lost the old lock
  if (outcome.result == "granted") flocks_[description] = step.mode;
  // When a wait ends well, the lock is held in the mode that was asked for: assume it now.
  if (outcome.result == "waits") flocks_[description] = step.mode;
}

void RandomSteps::close_slot(Process& process, char slot) {
  process.slots.erase(slot);
  const auto wait = process.waits.find(slot);
  if (wait != process.waits.end()) wait->second.closed = true;
}

void RandomSteps::observe(const Step& step, const Outcome& outcome, bool entangled) {
  last_ = step;
  Process& process = processes_[step.actor];
  const bool ok = outcome.result == "ok";
  switch (step.verb) {
    case Verb::kOpen:
      if (ok) {
        const bool cloexec = step.flags.find("cloexec") != std::string::npos;
        close_slot(process, step.slot);
        const std::string file = step.file == "h0" ? "f0" : step.file;
        process.slots[step.slot] = {next_description_++, cloexec, file};
      }
      break;
    case Verb::kDup:
      if (ok && step.other != step.slot) {
        close_slot(process, step.other);
        process.slots[step.other] = process.slots[step.slot];
        process.slots[step.other].cloexec = false;
      }
      break;
    case Verb::kClose:
      close_slot(process, step.slot);
      break;
    case Verb::kLock:
      observe_lock(step, outcome, process);
      break;
    case Verb::kFork:
      if (ok) {
        processes_[step.other].slots = process.slots;
        next_actor_ = static_cast<char>(std::max<int>(next_actor_, step.other + 1));
      }
      break;
    case Verb::kExec:
      process.waits.clear();
      std::erase_if(process.slots, [](const auto& slot) { return slot.second.cloexec; });
      break;
    case Verb::kExit:
    case Verb::kKill:
      processes_.erase(step.actor);
      break;
    default:
      break;
  }
  for (const Completion& c : outcome.completed) {
    const auto at = processes_.find(c.actor);
    if (at != processes_.end()) at->second.waits.erase(c.slot);
  }
  // Restarted, it waits at the end of the queue.
  if (step.verb == Verb::kRestart && processes_.count(step.actor) != 0) {
    const auto wait = processes_[step.actor].waits.find(step.slot);
    if (wait != processes_[step.actor].waits.end()) wait->second.since = next_wait_++;
  }
  entangled_ = entangled || waits_without_descriptor();
}

}  // namespace latchfs::locktest
