#include "model/fiber.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#define LATCHFS_ASAN 1
#elif defined(__SANITIZE_THREAD__)
#define LATCHFS_TSAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define LATCHFS_ASAN 1
#elif __has_feature(thread_sanitizer)
#define LATCHFS_TSAN 1
#endif
#endif

// As declared in sanitizer/common_interface_defs.h and sanitizer/tsan_interface.h.
#ifdef LATCHFS_ASAN
extern "C" {
void __sanitizer_start_switch_fiber(void** fake_stack_save, const void* bottom, std::size_t size);
void __sanitizer_finish_switch_fiber(void* fake_stack_save, const void** bottom_old,
                                     std::size_t* size_old);
}
#endif
#ifdef LATCHFS_TSAN
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
}
#endif

namespace latchfs::test {
namespace {

// (Address sanitizer clears what it knows of a whole stack at each switch.)
constexpr std::size_t kStackBytes = 128 * 1024;
constexpr std::size_t kGuardBytes = 64 * 1024;  // the largest page there is

Fiber* g_current = nullptr;
std::vector<std::unique_ptr<Fiber>>& idle() {
  static std::vector<std::unique_ptr<Fiber>> all;
  return all;
}

}  // namespace

Fiber::Fiber()
    : stack_{::mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0)} {
  if (stack_ == MAP_FAILED || ::mprotect(stack_, kGuardBytes, PROT_NONE) != 0 ||
      ::getcontext(&context_) != 0) {
    std::perror("a fiber");
    std::abort();
  }
  // It grows down, towards the guard.
  context_.uc_stack.ss_sp = stack();
  context_.uc_stack.ss_size = kStackBytes;
  context_.uc_link = nullptr;
  ::makecontext(&context_, &Fiber::main_loop, 0);
#ifdef LATCHFS_TSAN
  their_.fiber = __tsan_create_fiber(0);
#endif
}

void* Fiber::stack() const { return static_cast<std::byte*>(stack_) + kGuardBytes; }

Fiber::~Fiber() { ::munmap(stack_, kGuardBytes + kStackBytes); }

std::unique_ptr<Fiber> Fiber::get(std::function<void()> job) {
  std::unique_ptr<Fiber> fiber;
  if (idle().empty()) {
    fiber.reset(new Fiber{});
  } else {
    fiber = std::move(idle().back());
    idle().pop_back();
  }
  fiber->job_ = std::move(job);
  return fiber;
}

void Fiber::give_back(std::unique_ptr<Fiber> fiber) {
  if (!fiber->finished()) std::abort();
  idle().push_back(std::move(fiber));
}

void Fiber::main_loop() {
#ifdef LATCHFS_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &g_current->their_.resumer_stack,
                                  &g_current->their_.resumer_stack_bytes);
#endif
  for (;;) {
    g_current->job_();
    g_current->job_ = nullptr;
    g_current->switch_out();
  }
}

void Fiber::resume() {
  g_current = this;
#ifdef LATCHFS_ASAN
  void* mine = nullptr;
  __sanitizer_start_switch_fiber(&mine, stack(), kStackBytes);
#endif
#ifdef LATCHFS_TSAN
  their_.resumer = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(their_.fiber, 0);
#endif
  ::swapcontext(&resumer_, &context_);
#ifdef LATCHFS_ASAN
  __sanitizer_finish_switch_fiber(mine, nullptr, nullptr);
#endif
  g_current = nullptr;
}

void Fiber::switch_out() {
#ifdef LATCHFS_ASAN
  __sanitizer_start_switch_fiber(&their_.fake_stack, their_.resumer_stack,
                                 their_.resumer_stack_bytes);
#endif
#ifdef LATCHFS_TSAN
  __tsan_switch_to_fiber(their_.resumer, 0);
#endif
  ::swapcontext(&context_, &resumer_);
#ifdef LATCHFS_ASAN
  __sanitizer_finish_switch_fiber(their_.fake_stack, &their_.resumer_stack,
                                  &their_.resumer_stack_bytes);
#endif
}

void Fiber::pause() { g_current->switch_out(); }

}  // namespace latchfs::test
