// What the victims of the single-stepping crash test do, one step at a time.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "crash/step_mount.h"
#include "store/shm/shm_store.h"

namespace latchfs::test {

// The victim's world. It is set up in the victim itself; another mount, the survivor, has joined
// before, unless the act wants to be alone.
struct Stage {
  std::string table;
  std::uint64_t survivor{};  // mount number; 0: none
  std::uint32_t survivor_slot{};
  std::unique_ptr<QuietMount> me;       // as most acts want it
  std::unique_ptr<LockService> custom;  // of acts that bring their own store
  TellTale told;
  std::unique_ptr<ShmStore> real;  // of acts on joining and leaving

  [[nodiscard]] LockService& store() { return custom != nullptr ? *custom : *me; }
};

enum class Outcome {
  // What survivors find is the state before or the state after, before any reaping too.
  kOldOrNew,
  // The same, and these two do not differ.
  kSame,
  // Done in several commits that may be seen one by one: each state is left for good, and when the
  // dead one has been reaped nothing tells how far it came.
  kInSteps,
  // Done in two commits, of which the first alone is another state too.
  kTwoSteps,
};

struct StepAct {
  std::string name;
  Outcome outcome{Outcome::kOldOrNew};
  bool survivor{true};
  // Joins as `me` before prepare().
  bool joins{true};
  bool (*prepare)(Stage&);
  void (*run)(Stage&);
  bool broken{};     // on purpose: one problem is enough
  bool only_full{};  // not in a sample: much the same as another one, and long
};

[[nodiscard]] const std::vector<StepAct>& step_acts();
// The same done by stores that are broken on purpose: not all that they store goes through the log.
[[nodiscard]] const std::vector<StepAct>& broken_acts();

}  // namespace latchfs::test
