// A thread of control that runs only when it is told to: real code, interleaved as a test decides.
//
// All fibers of a process run on one thread. What must not be held over pause(): a mutex that
// another fiber takes. Address and thread sanitizer are told of each switch.
#pragma once

#include <ucontext.h>

#include <cstddef>
#include <functional>
#include <memory>

namespace latchfs::test {

class Fiber {
 public:
  // Starts nothing yet. Stacks are used again: what is given back must have finished.
  static std::unique_ptr<Fiber> get(std::function<void()> job);
  static void give_back(std::unique_ptr<Fiber> fiber);

  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Runs the job until it pauses or has finished.
  void resume();
  [[nodiscard]] bool finished() const { return !job_; }

  // In a job: back to who resumed it.
  static void pause();

 private:
  Fiber();
  static void main_loop();
  void switch_out();
  [[nodiscard]] void* stack() const;

  std::function<void()> job_;
  ucontext_t context_{}, resumer_{};
  void* stack_{};  // its guard first
  // The sanitizers' own, not used without them.
  struct Sanitizers {
    void* fake_stack{};
    const void* resumer_stack{};
    std::size_t resumer_stack_bytes{};
    void* fiber{};
    void* resumer{};
  };
  Sanitizers their_;
};

}  // namespace latchfs::test
