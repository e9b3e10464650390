#include "crash/step_victim.h"

#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <string>

namespace latchfs::test {
namespace {

// Its address is where the act ends.
[[gnu::noinline]] void act_is_over() { asm volatile("" ::: "memory"); }

[[noreturn]] void be_victim(const std::function<bool()>& prepare,
                            const std::function<void()>& act) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (!prepare()) ::_exit(3);
  if (::ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) != 0) ::_exit(4);
  std::raise(SIGSTOP);
  act();
  act_is_over();
  std::raise(SIGSTOP);
  ::_exit(0);
}

// Whether an instruction may store elsewhere than on the stack. Knows the most frequent ones that
// do not (Intel SDM vol. 2, appendix A): looking at all shared memory after each takes the most
// time.
bool may_store(const std::array<std::uint8_t, 4>& code) {
  const std::size_t at = (code[0] & 0xf0) == 0x40 ? 1 : 0;  // REX
  const std::uint8_t op = code[at];
  const bool two = op == 0x0f;
  const std::uint8_t modrm = code[at + (two ? 2 : 1)];
  const bool to_register = (modrm & 0xc0) == 0xc0;
  const int extension = modrm >> 3 & 7;
  if (two) {
    const std::uint8_t second = code[at + 1];
    const int row = second >> 4;
    if (row == 0x4 || row == 0x8) return false;  // cmov, jcc
    if (row == 0x9) return !to_register;         // setcc
    switch (second) {
      case 0x10:
      case 0x28:
      case 0x6f:
      case 0x57:
      case 0x1f:
      case 0xaf:
      case 0xb6:
      case 0xb7:
      case 0xbe:
      case 0xbf:  // loads, nop, imul, movzx, movsx
        return false;
      default:
        return true;
    }
  }
  if (op < 0x40) {                   // add or adc sbb and sub xor cmp
    if ((op & 7) >= 6) return true;  // prefixes and what is not there
    if (op >= 0x38) return false;    // cmp
    return (op & 7) < 2 && !to_register;
  }
  if (op >= 0x50 && op <= 0x5f) return false;  // push, pop
  if (op >= 0x70 && op <= 0x7f) return false;  // jcc
  if (op >= 0xb8 && op <= 0xbf) return false;  // mov of a constant
  switch (op) {
    case 0x63:
    case 0x84:
    case 0x85:
    case 0x8a:
    case 0x8b:
    case 0x8d:
    case 0x90:
    case 0xa8:
    case 0xa9:
    case 0xc3:
    case 0xe8:
    case 0xe9:
    case 0xeb:
      return false;  // movsxd, test, loads, lea, nop, ret, call, jmp
    case 0x80:
    case 0x81:
    case 0x83:
      return !to_register && extension != 7;  // 7: cmp
    case 0x88:
    case 0x89:
    case 0xc0:
    case 0xc1:
    case 0xc6:
    case 0xc7:
    case 0xd0:
    case 0xd1:
    case 0xd2:
    case 0xd3:
      return !to_register;
    case 0xf6:
    case 0xf7:
      return !to_register && extension > 1;  // test
    case 0xff:
      return !to_register && extension < 2;  // inc, dec; else call, jmp, push
    default:
      return true;
  }
}

// Waits until it stops; the signal, 0 if it is gone.
int stopped_by(pid_t pid) {
  int status = 0;
  pid_t got = 0;
  do {
    got = ::waitpid(pid, &status, __WALL);
  } while (got < 0 && errno == EINTR);
  return got == pid && WIFSTOPPED(status) ? WSTOPSIG(status) : 0;
}

}  // namespace

Victim::Victim(const std::function<bool()>& prepare, const std::function<void()>& act) {
  std::fflush(nullptr);
  pid_ = ::fork();
  if (pid_ == 0) be_victim(prepare, act);
  failed_ =
      pid_ < 0 || stopped_by(pid_) != SIGSTOP ||
      ::ptrace(PTRACE_SETOPTIONS, pid_, nullptr, PTRACE_O_EXITKILL | PTRACE_O_TRACECLONE) != 0;
  std::size_t size = 0;
  void* head = nullptr;
  if (failed_ || ::syscall(SYS_get_robust_list, pid_, &head, &size) != 0 ||
      size != sizeof(RobustHead)) {
    failed_ = true;
    return;
  }
  robust_at_ = reinterpret_cast<std::uintptr_t>(head);
  look();
}

Victim::~Victim() { kill(); }

void Victim::kill() {
  if (pid_ <= 0) return;
  ::kill(pid_, SIGKILL);
  // Its frozen threads first: it is not gone before they are. (Nobody else is waited for now.)
  int status = 0;
  pid_t gone = 0;
  do {
    gone = ::waitpid(-1, &status, __WALL);
  } while (gone > 0 && (gone != pid_ || WIFSTOPPED(status)));
  pid_ = -1;
}

void Victim::look() {
  errno = 0;
  rip_ = static_cast<std::uintptr_t>(
      ::ptrace(PTRACE_PEEKUSER, pid_, offsetof(user_regs_struct, rip), nullptr));
  iovec to[2] = {{next_.data(), next_.size()}, {&robust_, sizeof robust_}};
  iovec from[2] = {{reinterpret_cast<void*>(rip_), next_.size()},
                   {reinterpret_cast<void*>(robust_at_), sizeof robust_}};
  if (errno != 0 || ::process_vm_readv(pid_, to, 2, from, 2, 0) !=
                        static_cast<ssize_t>(next_.size() + sizeof robust_)) {
    failed_ = true;
  }
}

bool Victim::step() {
  if (failed_ || rip_ == reinterpret_cast<std::uintptr_t>(&act_is_over)) return false;
  was_syscall_ = next_[0] == 0x0f && next_[1] == 0x05;
  may_have_stored_ = may_store(next_);
  if (::ptrace(PTRACE_SINGLESTEP, pid_, nullptr, nullptr) != 0 || stopped_by(pid_) != SIGTRAP) {
    failed_ = true;
    return false;
  }
  look();
  return !failed_;
}

bool Victim::run_through() {
  if (failed_) return false;
  // (It stops with SIGTRAP for each thread that it starts.)
  int why = SIGTRAP;
  while (why == SIGTRAP && ::ptrace(PTRACE_CONT, pid_, nullptr, nullptr) == 0)
    why = stopped_by(pid_);
  failed_ = why != SIGSTOP;
  return !failed_;
}

std::uintptr_t Victim::shared_at(std::size_t bytes) const {
  const std::uintptr_t inside = robust_.pending != 0 ? robust_.pending : robust_.first;
  std::ifstream maps{"/proc/" + std::to_string(pid_) + "/maps"};
  for (std::string line; std::getline(maps, line);) {
    std::uintptr_t begin = 0;
    std::uintptr_t end = 0;
    if (std::sscanf(line.c_str(), "%lx-%lx", &begin, &end) == 2 && begin <= inside &&
        inside < end) {
      return end - begin == bytes ? begin : 0;
    }
  }
  return 0;
}

bool Victim::die_in(int copy, std::size_t bytes, const std::size_t* mutexes,
                    std::size_t mutex_count) const {
  const std::uintptr_t base = shared_at(bytes);
  if (base == 0) return false;
  const pid_t corpse = ::fork();
  if (corpse == 0) {
    // At the same address, so that the list's links are right. Nothing that this process needs is
    // there: the victim, a fork of the same one, found it free.
    void* map = ::mmap(reinterpret_cast<void*>(base), bytes, PROT_READ | PROT_WRITE,
                       MAP_SHARED | MAP_FIXED, copy, 0);
    void* head = nullptr;
    std::size_t size = 0;
    if (map == MAP_FAILED || ::syscall(SYS_get_robust_list, 0, &head, &size) != 0 ||
        reinterpret_cast<std::uintptr_t>(head) != robust_at_) {
      ::_exit(1);
    }
    const auto self = static_cast<std::uint32_t>(::syscall(SYS_gettid));
    for (std::size_t i = 0; i < mutex_count; ++i) {
      auto& word = *reinterpret_cast<std::atomic<std::uint32_t>*>(base + mutexes[i]);
      const std::uint32_t is = word.load();
      if ((is & FUTEX_TID_MASK) == static_cast<std::uint32_t>(pid_)) {
        word.store((is & ~FUTEX_TID_MASK) | self);
      }
    }
    std::memcpy(head, &robust_, sizeof robust_);
    ::kill(::getpid(), SIGKILL);
    ::_exit(1);
  }
  int status = 0;
  return corpse > 0 && ::waitpid(corpse, &status, 0) == corpse && WIFSIGNALED(status) &&
         WTERMSIG(status) == SIGKILL;
}

}  // namespace latchfs::test
