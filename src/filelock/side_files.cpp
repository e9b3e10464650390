#include "filelock/side_files.h"

#include <fcntl.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "posix/sys.h"

namespace latchfs::filelock {
namespace {

constexpr std::string_view kBackup = ".asp-bak";
constexpr std::string_view kMetadata = ".asp-lck";
constexpr std::size_t kMostName = 255;
constexpr std::size_t kAdded = 1 + kBackup.size();

// Of a crash of ours, for the file that has the inode number in the mark and no lock now: so the
// lock that this one belonged to is nowhere in force. A mark in user.* proves nothing alone.
bool is_left_over(const Side& found, const Mark& wanted) {
  if (found.state != SideState::kOurs && found.state != SideState::kOtherLock) return false;
  if (::geteuid() != 0 && found.attr.st_uid != ::geteuid()) return false;
  return found.mark->ino == wanted.ino && found.mark->name == wanted.name;
}

}  // namespace

Outcome<SideNames> side_names(std::string_view name) {
  if (name.size() + kAdded > kMostName) {
    return refused(ENAMETOOLONG,
                   fmt::format("its name has {} bytes: more than {} leave no room for "
                               "the names of the backup and the metadata beside it",
                               name.size(), kMostName - kAdded));
  }
  if (!is_name(name)) return refused(EINVAL, "that is no file name");
  return SideNames{fmt::format(".{}{}", name, kBackup), fmt::format(".{}{}", name, kMetadata)};
}

bool is_side_name(std::string_view name) noexcept {
  return name.size() > kAdded && name.front() == '.' &&
         (name.ends_with(kBackup) || name.ends_with(kMetadata));
}

bool is_reserved_name(std::string_view name) noexcept {
  constexpr std::string_view kEnd = ".tmp";
  return is_side_name(name) || (name.rfind(".latchfs-", 0) == 0 && name.size() >= kEnd.size() &&
                                name.substr(name.size() - kEnd.size()) == kEnd);
}

std::string temporary_name(const LockId& id) { return fmt::format(".latchfs-{}.tmp", id.text()); }

Result<Side> look_at_side(int dir, const std::string& name, const LockId& id) {
  Side side;
  auto fd = posix::opened(::openat(dir, name.c_str(), O_PATH | O_NOFOLLOW | O_CLOEXEC));
  if (!fd && fd.error() == errno_code(ENOENT)) return side;
  if (!fd) return fd.error();
  side.fd = std::move(*fd);
  const auto st = posix::stat_of(side.fd.get());
  if (!st) return st.error();
  side.attr = *st;
  side.state = SideState::kForeign;
  if (!S_ISREG(st->st_mode)) return side;
  auto mark = read_mark(side.fd.get());
  if (!mark) return mark.error();
  side.mark = std::move(*mark);
  if (side.mark && side.mark->kind == MarkKind::kSide) {
    side.state = side.mark->id == id ? SideState::kOurs : SideState::kOtherLock;
  }
  return side;
}

// There is no unlinking by descriptor. Who could put another file there in between may write to
// the directory, so he can unlink what he likes there anyway.
Result<void> unlink_side(int dir, const std::string& name, const Side& side) {
  struct stat now {};
  if (::fstatat(dir, name.c_str(), &now, AT_SYMLINK_NOFOLLOW) != 0) {
    return errno == ENOENT ? Result<void>{} : last_errno();
  }
  if (posix::file_id(now) != posix::file_id(side.attr)) return errno_code(ESTALE);
  if (::unlinkat(dir, name.c_str(), 0) != 0 && errno != ENOENT) return last_errno();
  return {};
}

Result<void> remove_side(int dir, const std::string& name, const LockId& id) {
  const auto side = look_at_side(dir, name, id);
  if (!side) return side.error();
  if (side->state != SideState::kOurs) return {};
  return unlink_side(dir, name, *side);
}

Outcome<UniqueFd> make_nameless(int dir, const Mark& side_mark) {
  UniqueFd fd{::openat(dir, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, S_IRUSR | S_IWUSR)};
  if (!fd) {
    if (errno == EOPNOTSUPP || errno == EISDIR) {
      return refused(EOPNOTSUPP, "its file system has no nameless files (O_TMPFILE)");
    }
    return failed(last_errno(), "no file can be made in its directory");
  }
  // The directory's default ACL would let in others than the file's.
  ::fremovexattr(fd.get(), "system.posix_acl_access");
  if (auto r = posix::done(::fchmod(fd.get(), S_IRUSR | S_IWUSR)); !r) {
    return failed(r.error(), "a new file's mode cannot be set");
  }
  if (auto r = write_mark(fd.get(), side_mark); !r) {
    if (r.error() == errno_code(EOPNOTSUPP)) {
      return refused(EOPNOTSUPP, "its file system keeps no extended attributes");
    }
    return failed(r.error(), "a new file cannot be marked");
  }
  return fd;
}

Outcome<void> make_way(int dir, const std::string& name, const Mark& side_mark) {
  const auto found = look_at_side(dir, name, side_mark.id);
  if (!found) return failed(found.error(), in_quotes(name) + " cannot be looked at");
  if (found->state == SideState::kMissing) return {};
  if (!is_left_over(*found, side_mark)) {
    return refused(
        EBUSY, fmt::format("{} is in the way: {}", in_quotes(name),
                           found->state == SideState::kForeign ? "it is not of a filelock"
                                                               : "it is of another file's lock"));
  }
  if (auto r = unlink_side(dir, name, *found); !r) {
    return failed(r.error(), "the left-over " + in_quotes(name) + " cannot be removed");
  }
  return {};
}

Outcome<void> give_name(int fd, int dir, const std::string& name, const Mark& side_mark) {
  constexpr int kTries = 3;
  for (int attempt = 0; attempt < kTries; ++attempt) {
    if (::linkat(posix::self_fds(), posix::FdName{fd}.c_str(), dir, name.c_str(),
                 AT_SYMLINK_FOLLOW) == 0) {
      return {};
    }
    if (errno != EEXIST) return failed(last_errno(), in_quotes(name) + " cannot be made");
    if (auto r = make_way(dir, name, side_mark); !r) return r;
  }
  return refused(EBUSY, in_quotes(name) + " is in the way");
}

Result<UniqueFd> reopen(int fd, int flags) {
  const posix::FdName name{fd};
  const int all = flags | O_CLOEXEC | O_NOCTTY | O_NONBLOCK;
  auto opened = posix::opened(::openat(posix::self_fds(), name.c_str(), all | O_NOATIME));
  if (opened || opened.error() != errno_code(EPERM)) return opened;
  return posix::opened(::openat(posix::self_fds(), name.c_str(), all));
}

Result<void> sync_inode(int fd) {
  auto open = reopen(fd, O_RDONLY);
  if (!open && open.error() == errno_code(EACCES)) open = reopen(fd, O_WRONLY);
  if (!open) return open.error();
  return posix::done(::fsync(open->get()));
}

}  // namespace latchfs::filelock
