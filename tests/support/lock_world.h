// A world: a few files, and processes (tests/support/lock_agent.cpp) that lock them as the steps of
// a scenario say. The same steps run in a world on a native directory and in one on a mount must
// have the same outcomes.
//
// Time does not enter. After each step the world is brought to rest (lock_proc.h): every request
// still open sleeps inside its lock call and the mount's daemons are idle; so "waits" means that it
// waits for good, and all that a step set free is in its outcome. The one exception is on purpose:
// a step that leaves nobody waiting is not followed by a rest, so the next one meets whatever the
// mount does late (RELEASE comes after close(2) has returned). For LockService::kClosingWindowNs a
// daemon hides that it comes late; where it takes longer, on busy processors, what is in the way is
// asked for once more at rest.
//
// Worlds are not thread-safe. What the machine refuses (no process to be had) throws
// std::runtime_error; a request that never ends gives the result "HUNG", after which the world is
// of no more use.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/unique_fd.h"
#include "support/lock_step.h"
#include "support/lock_table_view.h"

namespace latchfs::locktest {

// Where worlds can be made.
struct Ground {
  std::string name;
  // Directories that show the same files, one for each mount: processes spread over them, a child
  // stays in its parent's (POSIX locks taken through two mounts have two owners).
  std::vector<std::string> roots;
  std::vector<pid_t> daemons;  // all that serve them; none: native
  std::string mutation;        // LATCHFS_AGENT_MUTATION of its agents
  // Mounts: keeps them, and makes a ground like this one anew when it was left unclean.
  std::shared_ptr<void> mounts;
  std::function<Ground()> renew;

  [[nodiscard]] bool native() const { return daemons.empty(); }
};

class World {
 public:
  // With files of its own, in a new directory below the roots, removed at the end.
  explicit World(const Ground& ground);
  ~World();
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  Outcome run(const Step& step);
  // Native only: requests wait of which the kernel may serve either first
  // (kernel_waiters_entangled()).
  [[nodiscard]] bool entangled() const;

 private:
  struct Pending {
    unsigned id{};
    pid_t tid{};
    unsigned arrival{};  // order in which waits began
    Kind kind{};
    std::string result;  // empty while it waits
  };
  struct Agent {
    UniqueFd ctl;
    UniqueFd pidfd;
    pid_t pid{};
    std::size_t root{};
    bool alive{true};
    bool slot_d_used{};
    std::map<char, Pending> pending;  // by slot
  };
  struct Message {
    unsigned id{};
    bool started{};  // value is the thread
    long value{};
    int err{};
    std::string extra;
  };

  Agent& spawn(char name);
  Agent* find(char name);
  std::string dispatch(const Step& step, Agent& agent, Outcome& outcome);
  std::string lock(const Step& step, Agent& agent, Outcome& outcome);
  std::string begin_wait(const Step& step, Agent& agent, const std::string& command);
  std::string get_lock(const Step& step, Agent& agent, Outcome& outcome);
  std::string open(const Step& step, Agent& agent);
  std::string fork(const Step& step, Agent& agent);
  std::string exec(Agent& agent);
  std::string end(Agent& agent, bool by_kill);
  std::string signal(const Step& step, Agent& agent);
  std::string list(const Step& step, Outcome& outcome);
  void open_default_slot(const Step& step, Agent& agent);
  void refresh_sizes() const;
  std::string simple(Agent& agent, const std::string& verb_and_args, const char* done);
  std::string lock_now(Agent& agent, const std::string& verb_and_args, const char* done);
  void note_release(const Step& step);
  [[nodiscard]] bool release_is_late(std::int64_t by) const;

  unsigned send(Agent& agent, const std::string& verb_and_args, int pass_fd = -1);
  Message await(Agent& agent, unsigned id);
  static bool receive(Agent& agent, bool wait, Message& message);
  static void note(Agent& agent, const Message& message);
  void drain();
  void settle();
  [[nodiscard]] std::optional<std::vector<struct SleepingThread>> sample() const;
  [[nodiscard]] bool anyone_waits() const;
  [[nodiscard]] unsigned arrival(const ListedLock& asked) const;
  void collect(const Step& step, Outcome& outcome);
  [[nodiscard]] std::string letter_of(pid_t pid) const;
  [[nodiscard]] std::string path(std::size_t root, const std::string& file) const;

  Ground ground_;
  std::string dir_;  // name below the roots
  bool listable_{true};
  std::map<char, std::unique_ptr<Agent>> agents_;
  std::size_t next_root_{};
  unsigned next_id_{1};
  unsigned arrivals_{};
  // Before the first step since the last rest of which daemons may not have heard all.
  std::optional<std::int64_t> releasing_since_;
};

}  // namespace latchfs::locktest
