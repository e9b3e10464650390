// Small helpers over system calls: errno becomes Result, and descriptors of this process get names
// that path calls can use.
#pragma once

#include <sys/stat.h>

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <system_error>

#include "base/unique_fd.h"
#include "latchfs/result.h"
#include "latchfs/types.h"

namespace latchfs::posix {

// -1 and errno, or a value.
[[nodiscard]] inline Result<long> checked(long value) {
  if (value < 0) return last_errno();
  return value;
}
[[nodiscard]] inline Result<void> done(long value) {
  if (value < 0) return last_errno();
  return {};
}
[[nodiscard]] inline Result<UniqueFd> opened(int fd) {
  if (fd < 0) return last_errno();
  return UniqueFd{fd};
}

// Whether it says that something cannot be had just now (descriptors, memory), and nothing of what
// was asked for.
[[nodiscard]] bool is_for_now(std::error_code error) noexcept;

// fstat that also takes O_PATH descriptors.
[[nodiscard]] Result<struct stat> stat_of(int fd);

// Set-user-ID and set-group-ID, which go when somebody writes. False too if that cannot be told.
inline constexpr mode_t kSetId = S_ISUID | S_ISGID;
[[nodiscard]] bool has_set_id(int fd) noexcept;

// Where a symbolic link of /proc to a file leads: an absolute path. Nothing: it cannot be told.
[[nodiscard]] std::optional<std::string> link_text(const char* path);

// What only statx(2) tells, beside what fstatat(2) does.
struct FullStat {
  struct stat attr {};
  std::int64_t birth{};       // nanoseconds since the epoch; 0: not told
  bool may_be_a_mount{true};  // false: not the root of a mount
};
// flags: AT_*. "" and AT_EMPTY_PATH for a descriptor's own file.
[[nodiscard]] Result<FullStat> full_stat_of(int dir, const char* name, int flags);

// Whether an ordinary descriptor's file is on a file system that this kernel alone keeps: what one
// process sees there is what everybody sees, and its times are of this machine's clock.
[[nodiscard]] bool is_local(int fd) noexcept;

[[nodiscard]] inline FileId file_id(const struct stat& st) {
  return FileId{static_cast<std::uint64_t>(st.st_dev), static_cast<std::uint64_t>(st.st_ino)};
}

// Reaches the file behind a descriptor (O_PATH ones too) by a name, for the calls that have no
// descriptor form: openat(self_fds(), FdName{fd}.c_str(), ...). Symlinks are not followed further:
// the name leads to the very file. Any thread of the process may use it whatever its fsuid is
// (proc_fd_permission() and ptrace_may_access() let a thread group see itself).
class FdName {
 public:
  explicit FdName(int fd) noexcept;
  // Relative to self_fds().
  [[nodiscard]] const char* c_str() const noexcept { return text_.data() + kPrefix; }
  // "/proc/self/fd/N", where the call takes no directory descriptor.
  [[nodiscard]] const char* absolute() const noexcept { return text_.data(); }

 private:
  static constexpr std::size_t kPrefix = 14;  // "/proc/self/fd/"
  std::array<char, kPrefix + 12> text_;
};

// An O_PATH descriptor of /proc/self/fd, opened on first use and again after a fork; -1 and errno
// where /proc is not mounted.
[[nodiscard]] int self_fds() noexcept;

}  // namespace latchfs::posix
