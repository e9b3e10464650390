#include "filelock/mark.h"

#include <fmt/core.h>
#include <sys/random.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <charconv>

#include "posix/credentials.h"
#include "posix/sys.h"

namespace latchfs::filelock {
namespace {

constexpr const char* kSecurity = "security.latchfs.filelock";
constexpr const char* kUser = "user.latchfs.filelock";
constexpr std::string_view kVersion = "1";
constexpr std::size_t kMostName = 255;
constexpr std::size_t kMostText = 512;  // the longest mark has 350 bytes

// The text up to the next space, which is taken too.
std::string_view next_word(std::string_view& rest) {
  const auto space = rest.find(' ');
  if (space == std::string_view::npos) return {};
  const std::string_view word = rest.substr(0, space);
  rest.remove_prefix(space + 1);
  return word;
}

// As fmt prints it: no sign but '-', no leading zeros.
template <class Number>
bool parse_number(std::string_view text, Number& number) {
  const auto [end, err] = std::from_chars(text.data(), text.data() + text.size(), number);
  return err == std::errc{} && end == text.data() + text.size() &&
         fmt::format("{}", number) == text;
}

}  // namespace

Result<LockId> LockId::fresh() {
  LockId id;
  if (::getrandom(id.bytes_.data(), id.bytes_.size(), 0) !=
      static_cast<ssize_t>(id.bytes_.size())) {
    return errno_code(EIO);
  }
  return id;
}

std::optional<LockId> LockId::parse(std::string_view text) noexcept {
  LockId id;
  if (text.size() != 2 * id.bytes_.size() ||
      text.find_first_not_of("0123456789abcdef") != std::string_view::npos) {
    return std::nullopt;
  }
  for (std::size_t i = 0; i < id.bytes_.size(); ++i) {
    std::from_chars(text.data() + 2 * i, text.data() + 2 * i + 2, id.bytes_[i], 16);
  }
  return id;
}

std::string LockId::text() const {
  std::string text;
  for (const std::uint8_t byte : bytes_) text += fmt::format("{:02x}", byte);
  return text;
}

bool is_name(std::string_view name) noexcept {
  return !name.empty() && name.size() <= kMostName && name != "." && name != ".." &&
         name.find('/') == std::string_view::npos && name.find('\0') == std::string_view::npos;
}

bool is_mark_name(std::string_view xattr) noexcept { return xattr == kSecurity || xattr == kUser; }

const char* mark_name() noexcept {
  static const bool root = ::geteuid() == 0;
  return root ? kSecurity : kUser;
}

std::string mark_text(const Mark& mark) {
  return fmt::format("{} {} {} {} {} {} {}", kVersion,
                     mark.kind == MarkKind::kLock ? "lock" : "side", mark.id.text(), mark.uid,
                     mark.locked_at_ns, mark.ino, mark.name);
}

Mark parse_mark(std::string_view text) {
  Mark damaged;
  damaged.kind = MarkKind::kDamaged;
  Mark mark;
  if (next_word(text) != kVersion) return damaged;
  const std::string_view kind = next_word(text);
  if (kind != "lock" && kind != "side") return damaged;
  mark.kind = kind == "lock" ? MarkKind::kLock : MarkKind::kSide;
  const auto id = LockId::parse(next_word(text));
  if (!id) return damaged;
  mark.id = *id;
  if (!parse_number(next_word(text), mark.uid)) return damaged;
  if (!parse_number(next_word(text), mark.locked_at_ns)) return damaged;
  if (!parse_number(next_word(text), mark.ino)) return damaged;
  if (!is_name(text)) return damaged;
  mark.name = text;
  return mark;
}

Result<std::optional<Mark>> read_mark(int fd) {
  std::array<char, kMostText> text;
  const ssize_t size =
      ::getxattr(posix::FdName{fd}.absolute(), mark_name(), text.data(), text.size());
  if (size >= 0) {
    return std::optional{parse_mark({text.data(), static_cast<std::size_t>(size)})};
  }
  switch (errno) {
    case ENODATA:
    case EOPNOTSUPP:
    case EACCES:
      return std::optional<Mark>{};
    case ERANGE: {
      Mark damaged;
      damaged.kind = MarkKind::kDamaged;
      return std::optional{damaged};
    }
    default:
      return last_errno();
  }
}

Result<void> write_mark(int fd, const Mark& mark) {
  const std::string text = mark_text(mark);
  return posix::done(::setxattr(posix::FdName{fd}.absolute(), mark_name(), text.data(), text.size(),
                                XATTR_CREATE));
}

Result<void> remove_mark(int fd) {
  return posix::done(::removexattr(posix::FdName{fd}.absolute(), mark_name()));
}

}  // namespace latchfs::filelock
