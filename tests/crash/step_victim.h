// A process that is executed one instruction at a time, and that can be left dead at any of them.
//
// x86-64 only. (On arm64 a single step between load-exclusive and store-exclusive makes the store
// fail: no mutex would ever be taken.)
#pragma once

#include <sys/types.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>

namespace latchfs::test {

// The kernel's view of the robust mutexes a thread holds, is taking or is giving back
// (struct robust_list_head): with the shared memory, all that its death leaves of it.
struct RobustHead {
  std::uintptr_t first{};  // the head's own address: none
  std::intptr_t futex_offset{};
  std::uintptr_t pending{};
  bool operator==(const RobustHead&) const = default;
};

class Victim {
 public:
  // Forks. The child prepares, then stops before the first instruction of the act. Fork with no
  // other thread running and no other child. failed() if it could not. Threads that the act starts
  // do not run: what is seen is the act's own doing.
  Victim(const std::function<bool()>& prepare, const std::function<void()>& act);
  ~Victim();
  Victim(const Victim&) = delete;
  Victim& operator=(const Victim&) = delete;

  [[nodiscard]] bool failed() const { return failed_; }
  // One instruction (of a repeated string instruction: one repetition). False: the act is over.
  bool step();
  // The rest of the act at once. False: it did not come to its end.
  bool run_through();
  // SIGKILL, where it is; returns when it is gone.
  void kill();

  // After the last step: where it is, what the instruction was, what it holds.
  [[nodiscard]] std::uintptr_t at() const { return rip_; }
  [[nodiscard]] bool was_syscall() const { return was_syscall_; }
  // False: it surely stored nothing, but perhaps on its own stack.
  [[nodiscard]] bool may_have_stored() const { return may_have_stored_; }
  [[nodiscard]] const RobustHead& robust() const { return robust_; }
  [[nodiscard]] bool holds_robust() const {
    return robust_.first != robust_at_ || robust_.pending != 0;
  }
  [[nodiscard]] pid_t pid() const { return pid_; }

  // Lets a process die of SIGKILL with this one's robust mutexes, as they are in `copy`, a copy of
  // the shared memory in which this one has them: the kernel then marks in the copy what it would
  // mark in the original. mutexes: offsets of all that there are. False: it could not.
  [[nodiscard]] bool die_in(int copy, std::size_t bytes, const std::size_t* mutexes,
                            std::size_t mutex_count) const;

 private:
  void look();
  // Where this process has the memory that its robust mutexes are in; 0 unknown.
  [[nodiscard]] std::uintptr_t shared_at(std::size_t bytes) const;

  pid_t pid_{-1};
  bool failed_{};
  bool was_syscall_{};
  bool may_have_stored_{};
  std::array<std::uint8_t, 4> next_{};  // the beginning of the instruction to come
  std::uintptr_t rip_{};
  std::uintptr_t robust_at_{};
  RobustHead robust_;
};

}  // namespace latchfs::test
