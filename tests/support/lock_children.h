// Children of a test, memory they share, and the lock calls they make: for the tests in which real
// processes contend, die and are killed on a mount.
#pragma once

#include <sys/mman.h>
#include <sys/types.h>

#include <functional>
#include <new>
#include <optional>
#include <string>
#include <type_traits>

#include "base/unique_fd.h"

namespace latchfs::locktest {

// One forked process. Killed and reaped when it goes out of scope. The test that makes it must
// have no threads of its own.
class Child {
 public:
  Child() = default;
  // body's result is the exit status.
  explicit Child(const std::function<int()>& body);
  Child(Child&& o) noexcept;
  Child& operator=(Child&& o) noexcept;
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;
  ~Child();

  [[nodiscard]] pid_t pid() const { return pid_; }
  void signal(int number) const;
  // SIGKILL, and waits for the end. False: it does not die.
  [[nodiscard]] bool kill();
  // waitpid's status, once it has ended; nothing if that takes for ever (hung_after()).
  [[nodiscard]] std::optional<int> wait();
  // Without waiting.
  [[nodiscard]] bool ended();

 private:
  pid_t pid_{-1};
  UniqueFd pidfd_;
  std::optional<int> status_;
};

// Whether wait() says "exited with 0".
[[nodiscard]] bool exited_well(std::optional<int> status);

// A T in memory that children share. Zero at first; T's members are atomics or plain data.
template <class T>
class Shared {
 public:
  Shared() {
    void* const at =
        ::mmap(nullptr, sizeof(T), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) throw std::bad_alloc{};
    value_ = new (at) T{};
  }
  ~Shared() { ::munmap(value_, sizeof(T)); }
  Shared(const Shared&) = delete;
  Shared& operator=(const Shared&) = delete;
  T* operator->() const { return value_; }
  T& operator*() const { return *value_; }

 private:
  T* value_;
};

enum class LockType : int { kPosix, kOfd, kFlock };
[[nodiscard]] const char* name_of(LockType type);

// One lock call on [start, start + len) (flock: on all), 0 or an errno.
[[nodiscard]] int lock_now(int fd, LockType type, bool exclusive, off_t start = 0, off_t len = 0);
[[nodiscard]] int lock_waiting(int fd, LockType type, bool exclusive, off_t start = 0,
                               off_t len = 0);
[[nodiscard]] int unlock(int fd, LockType type, off_t start = 0, off_t len = 0);

// For reading and writing; made if it is not there. Throws std::runtime_error.
[[nodiscard]] UniqueFd open_file(const std::string& path);

// Signal handlers that do nothing: SIGUSR1 interrupts calls, SIGUSR2 restarts them.
void handle_user_signals();

// Nothing is locked and nobody waits on the mount any more, or what still is after hung_after().
[[nodiscard]] std::string table_left(const std::string& mount);
// What the control tree's `status` says, as JSON text.
[[nodiscard]] std::string status_text(const std::string& mount);
// A number of it, by JSON pointer: "/counts/waiters".
[[nodiscard]] long status_number(const std::string& mount, const char* pointer);

}  // namespace latchfs::locktest
