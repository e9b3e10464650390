// One side of the differential test: a directory with the mounts m0 (and m1) in it, and a process
// for every actor, chrooted there, that carries out what it is told.
#pragma once

#include <sys/types.h>

#include <array>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "base/unique_fd.h"
#include "support/fs_exec.h"
#include "support/fs_op.h"

namespace latchfs::fsdiff {

// Who acts. 0 root; 1-3 ordinary users of different groups; 4 a user with some capabilities of
// root's; 5 uid 0 without any.
struct Identity {
  uid_t uid{};
  gid_t gid{};
  std::vector<gid_t> groups;
  std::uint64_t capabilities{};
};
[[nodiscard]] const Identity& identity(int actor);
// Gives the calling process that identity. Aborts the process when it cannot.
void become(const Identity& who);

// The calling process, which is root, acts as somebody else as long as the object lives; what it
// starts then is nobody but him.
class ActingAs {
 public:
  explicit ActingAs(const Identity& who);
  ~ActingAs();
  ActingAs(const ActingAs&) = delete;
  ActingAs& operator=(const ActingAs&) = delete;

 private:
  std::vector<gid_t> groups_;
};

// Which step a timestamp was made in. Steps are kept apart by a tick of the kernel's coarse clock,
// so "this time was set by step 17" is exact and can be compared between worlds.
class StepClock {
 public:
  // Waits until timestamps made from now on differ from all before.
  static std::int64_t wait_for_tick(std::int64_t later_than);
  void begin(std::int64_t coarse_now) { spans_.emplace_back(coarse_now, 0); }
  std::int64_t end();
  // "step 17", or "seconds.nanoseconds" of a time that no step made.
  [[nodiscard]] std::string name(const timespec& time) const;

 private:
  std::vector<std::pair<std::int64_t, std::int64_t>> spans_;
};

class World {
 public:
  World(std::string root, Sabotage sabotage);
  ~World();
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  [[nodiscard]] const std::string& root() const { return root_; }
  [[nodiscard]] StepClock& clock() { return clock_; }
  // Throws std::runtime_error when the actor's process died or gave no answer in two minutes.
  Outcome run(const Op& op);
  // Ends the actors: all they had open is closed.
  void dismiss();

 private:
  struct Actor {
    pid_t pid{};
    UniqueFd line;
  };
  void hire(int actor, Sabotage sabotage);

  std::string root_;
  std::array<Actor, kActors> actors_;
  StepClock clock_;
};

}  // namespace latchfs::fsdiff
