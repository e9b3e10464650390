#include "fuse/lock_call.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <charconv>
#include <cstdio>
#include <optional>

#include "base/unique_fd.h"

namespace latchfs::fuse {
namespace {

// The numbers of fcntl among the system calls a process here can make: natively, and as a 32-bit
// program (fcntl and fcntl64 of i386).
bool is_fcntl(std::uint64_t nr) {
#if defined(__x86_64__)
  return nr == SYS_fcntl || nr == 55 || nr == 221;
#else
  return nr == SYS_fcntl;
#endif
}

// asm-generic/fcntl.h; the *64 ones are what 32-bit programs say to fcntl64.
constexpr std::uint64_t kOfdFirst = 36;  // F_OFD_GETLK .. F_OFD_SETLKW
constexpr std::uint64_t kOfdLast = 38;
constexpr std::uint64_t kPosixFirst = 5;  // F_GETLK .. F_SETLKW
constexpr std::uint64_t kPosixLast = 7;
constexpr std::uint64_t kPosix64First = 12;  // F_GETLK64 .. F_SETLKW64
constexpr std::uint64_t kPosix64Last = 14;

std::optional<std::uint64_t> next_number(std::string_view& text, int base) {
  while (!text.empty() && text.front() == ' ') text.remove_prefix(1);
  if (base == 16 && text.substr(0, 2) == "0x") text.remove_prefix(2);
  std::uint64_t value = 0;
  const auto [end, ec] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  if (ec != std::errc{}) return std::nullopt;
  text.remove_prefix(static_cast<std::size_t>(end - text.data()));
  return value;
}

// Bytes read of /proc/ID/NAME into buf; 0 if it cannot be.
std::size_t read_proc(pid_t id, const char* name, char* buf, std::size_t size) noexcept {
  std::array<char, 48> path{};
  std::snprintf(path.data(), path.size(), "/proc/%d/%s", id, name);
  const UniqueFd fd{::open(path.data(), O_RDONLY | O_CLOEXEC)};
  if (!fd) return 0;
  const ssize_t n = ::read(fd.get(), buf, size);
  return n < 0 ? 0 : static_cast<std::size_t>(n);
}

}  // namespace

LockKind lock_call_from(std::string_view text) noexcept {
  const auto nr = next_number(text, 10);
  if (!nr || !is_fcntl(*nr)) return LockKind::kFcntl;
  const auto fd = next_number(text, 16);
  const auto cmd = fd ? next_number(text, 16) : std::nullopt;
  if (!cmd) return LockKind::kFcntl;
  if (*cmd >= kOfdFirst && *cmd <= kOfdLast) return LockKind::kOfd;
  if ((*cmd >= kPosixFirst && *cmd <= kPosixLast) ||
      (*cmd >= kPosix64First && *cmd <= kPosix64Last)) {
    return LockKind::kPosix;
  }
  return LockKind::kFcntl;
}

LockKind lock_call_of(pid_t tid) noexcept {
  if (tid <= 0) return LockKind::kFcntl;
  // The caller is on its way to sleep on another CPU: "running" for some microseconds.
  for (int tries = 0; tries < 200; ++tries) {
    std::array<char, 256> text{};
    const std::size_t n = read_proc(tid, "syscall", text.data(), text.size());
    if (n == 0) return LockKind::kFcntl;
    const std::string_view is{text.data(), n};
    if (is.substr(0, 7) != "running") return lock_call_from(is);
    if (tries < 20) {
      ::sched_yield();
    } else {
      ::usleep(20);
    }
  }
  return LockKind::kFcntl;
}

std::array<char, 16> task_name(pid_t pid) noexcept {
  std::array<char, 16> name{};
  std::array<char, 32> text{};
  std::size_t n = read_proc(pid, "comm", text.data(), text.size());
  if (n != 0 && text[n - 1] == '\n') --n;
  for (std::size_t i = 0; i < n && i < name.size() - 1; ++i) name[i] = text[i];
  return name;
}

pid_t process_of(pid_t tid) noexcept {
  std::array<char, 512> text{};
  const std::size_t n = read_proc(tid, "status", text.data(), text.size());
  const std::string_view is{text.data(), n};
  constexpr std::string_view kField = "\nTgid:\t";
  const auto at = is.find(kField);
  if (at == std::string_view::npos) return tid;
  pid_t pid = tid;
  const char* from = is.data() + at + kField.size();
  std::from_chars(from, is.data() + is.size(), pid);
  return pid;
}

}  // namespace latchfs::fuse
