#include "posix/sys.h"

#include <fcntl.h>
#include <limits.h>
#include <linux/magic.h>
#include <pthread.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <cstring>

namespace latchfs::posix {
namespace {

std::atomic<int> g_self_fds{-1};

// The child of a fork has descriptors of its own; the directory still names the parent's.
void forget_after_fork() {
  const int old = g_self_fds.exchange(-1);
  if (old >= 0) ::close(old);
}

struct timespec timespec_of(const struct statx_timestamp& at) {
  struct timespec ts {};
  ts.tv_sec = at.tv_sec;
  ts.tv_nsec = at.tv_nsec;
  return ts;
}

}  // namespace

Result<struct stat> stat_of(int fd) {
  struct stat st {};
  if (::fstatat(fd, "", &st, AT_EMPTY_PATH) < 0) return last_errno();
  return st;
}

bool is_for_now(std::error_code error) noexcept {
  constexpr std::array<int, 5> kForNow{EMFILE, ENFILE, ENOMEM, EINTR, EAGAIN};
  return std::find(kForNow.begin(), kForNow.end(), error.value()) != kForNow.end();
}

bool has_set_id(int fd) noexcept {
  const auto st = stat_of(fd);
  return st && (st->st_mode & kSetId) != 0;
}

Result<FullStat> full_stat_of(int dir, const char* name, int flags) {
  struct statx sx {};
  if (::statx(dir, name, flags, STATX_BASIC_STATS | STATX_BTIME, &sx) != 0) return last_errno();
  FullStat full;
  struct stat& st = full.attr;
  st.st_dev = makedev(sx.stx_dev_major, sx.stx_dev_minor);
  st.st_ino = sx.stx_ino;
  st.st_mode = sx.stx_mode;
  st.st_nlink = sx.stx_nlink;
  st.st_uid = sx.stx_uid;
  st.st_gid = sx.stx_gid;
  st.st_rdev = makedev(sx.stx_rdev_major, sx.stx_rdev_minor);
  st.st_size = static_cast<off_t>(sx.stx_size);
  st.st_blksize = static_cast<blksize_t>(sx.stx_blksize);
  st.st_blocks = static_cast<blkcnt_t>(sx.stx_blocks);
  st.st_atim = timespec_of(sx.stx_atime);
  st.st_mtim = timespec_of(sx.stx_mtime);
  st.st_ctim = timespec_of(sx.stx_ctime);
  constexpr std::int64_t kMostSeconds = 9'000'000'000;  // an int64_t of nanoseconds holds them
  if ((sx.stx_mask & STATX_BTIME) != 0 && sx.stx_btime.tv_sec >= 0 &&
      sx.stx_btime.tv_sec <= kMostSeconds) {
    full.birth = sx.stx_btime.tv_sec * 1'000'000'000 + sx.stx_btime.tv_nsec;
  }
  // Linux 5.8; before, the mask lacks the bit.
  full.may_be_a_mount = (sx.stx_attributes_mask & STATX_ATTR_MOUNT_ROOT) == 0 ||
                        (sx.stx_attributes & STATX_ATTR_MOUNT_ROOT) != 0;
  return full;
}

bool is_local(int fd) noexcept {
  constexpr std::array<unsigned long, 6> kLocal{
      0xEF53 /* ext2, 3, 4 */, 0x58465342 /* xfs */,      0x9123683E /* btrfs */,
      0xF2F52010 /* f2fs */,   0xCA451A4E /* bcachefs */, TMPFS_MAGIC,
  };
  struct statfs sf {};
  if (::fstatfs(fd, &sf) != 0) return false;
  const auto magic = static_cast<unsigned long>(sf.f_type);
  return std::find(kLocal.begin(), kLocal.end(), magic) != kLocal.end();
}

FdName::FdName(int fd) noexcept : text_{} {
  std::memcpy(text_.data(), "/proc/self/fd/", kPrefix);
  // 11 characters hold every int; the rest stays NUL.
  std::to_chars(text_.data() + kPrefix, text_.data() + text_.size() - 1, fd);
}

int self_fds() noexcept {
  const int known = g_self_fds.load(std::memory_order_acquire);
  if (known >= 0) return known;
  [[maybe_unused]] static const int registered =
      ::pthread_atfork(nullptr, nullptr, forget_after_fork);
  const int fresh = ::open("/proc/self/fd", O_PATH | O_DIRECTORY | O_CLOEXEC);
  if (fresh < 0) return -1;
  int expected = -1;
  if (g_self_fds.compare_exchange_strong(expected, fresh)) return fresh;
  ::close(fresh);
  return expected;
}

std::optional<std::string> link_text(const char* path) {
  char text[PATH_MAX];
  const ssize_t length = ::readlink(path, text, sizeof text);
  if (length <= 0 || static_cast<std::size_t>(length) >= sizeof text || text[0] != '/') {
    return std::nullopt;
  }
  return std::string{text, static_cast<std::size_t>(length)};
}

}  // namespace latchfs::posix
