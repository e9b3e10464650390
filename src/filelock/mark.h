// The mark: an extended attribute on an inode that says it belongs to a filelock.
//
// The mark on the file is the truth: a file is locked iff it carries one of kind kLock. Its two
// side files carry one of kind kSide with the same id. Being on the inode it holds for all hard
// links, all mounts and wherever the tree is moved to.
//
// A daemon run by root keeps it in security.*, which only root (CAP_SYS_ADMIN) can change and which
// takes no right to read, so that a thread need not be the daemon to look at it; one run by a user,
// whose mount is for himself, in user.*.
#pragma once

#include <sys/types.h>

#include <array>
#include <compare>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "latchfs/result.h"

namespace latchfs::filelock {

// One filelock, for ever: 128 random bits.
class LockId {
 public:
  // Of no lock.
  LockId() = default;
  [[nodiscard]] static Result<LockId> fresh();
  // 32 lower-case hex digits, nothing else.
  [[nodiscard]] static std::optional<LockId> parse(std::string_view text) noexcept;
  [[nodiscard]] std::string text() const;
  auto operator<=>(const LockId&) const = default;

 private:
  std::array<std::uint8_t, 16> bytes_{};
};

enum class MarkKind : std::uint8_t {
  kLock,     // the file is locked
  kSide,     // a backup, metadata, or what is to become one
  kDamaged,  // there is one that says nothing: locked for all but admins; the rest of Mark is empty
};

struct Mark {
  MarkKind kind{};
  LockId id;
  uid_t uid{};  // who locked
  std::int64_t locked_at_ns{};
  std::uint64_t ino{};  // of the locked file when it was locked
  std::string name;     // of the locked file, likewise
};

// The mark of any descriptor's file, O_PATH ones too; nothing if there is none. One system call,
// whoever the thread is acting as. EACCES counts as none: only a daemon that is not root can meet
// it, at a file it may not read.
[[nodiscard]] Result<std::optional<Mark>> read_mark(int fd);

// Names under which marks are kept, by whatever daemon: to be hidden from users and refused to
// them.
[[nodiscard]] bool is_mark_name(std::string_view xattr) noexcept;
// The one this daemon uses.
[[nodiscard]] const char* mark_name() noexcept;

// EEXIST if there is one. Changes nothing of the file but its ctime.
Result<void> write_mark(int fd, const Mark& mark);
// ENODATA if there is none.
Result<void> remove_mark(int fd);

// The value of the attribute. parse_mark() gives kDamaged for what mark_text() does not make.
[[nodiscard]] std::string mark_text(const Mark& mark);
[[nodiscard]] Mark parse_mark(std::string_view text);

// A single component that can be a file's name: not empty, ".", "..", with '/' or NUL, or over 255.
[[nodiscard]] bool is_name(std::string_view name) noexcept;

}  // namespace latchfs::filelock
