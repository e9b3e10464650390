#include "posix/credentials.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <sched.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>

#include "base/log.h"
#include "posix/caller_status.h"

namespace latchfs::posix {
namespace {

using CapData = std::array<__user_cap_data_struct, 2>;

// What setfsuid() drops and regains (CAP_FS_MASK in the kernel's linux/capability.h).
constexpr std::uint64_t kFileCaps = (1ULL << CAP_CHOWN) | (1ULL << CAP_DAC_OVERRIDE) |
                                    (1ULL << CAP_DAC_READ_SEARCH) | (1ULL << CAP_FOWNER) |
                                    (1ULL << CAP_FSETID) | (1ULL << CAP_LINUX_IMMUTABLE) |
                                    (1ULL << CAP_MKNOD) | (1ULL << CAP_MAC_OVERRIDE);

// What the calling thread is.
struct Self {
  bool prepared{};    // supplementary groups cleared
  bool own_fs{};      // CLONE_FS unshared
  bool knows_mask{};  // mask below is in force
  bool has_groups{};  // the caller's groups are set
  bool has_caps{};    // the caller's capabilities are in force
  uid_t fsuid{};
  gid_t fsgid{};
  mode_t mask{};
};
thread_local Self t_self;

bool daemon_is_root() noexcept {
  static const bool root = ::geteuid() == 0;
  return root;
}

bool get_caps(CapData& caps) noexcept {
  __user_cap_header_struct head{_LINUX_CAPABILITY_VERSION_3, 0};
  return ::syscall(SYS_capget, &head, caps.data()) == 0;
}

bool set_effective(const CapData& base, std::uint64_t effective) noexcept {
  __user_cap_header_struct head{_LINUX_CAPABILITY_VERSION_3, 0};
  CapData caps = base;
  caps[0].effective = static_cast<std::uint32_t>(effective);
  caps[1].effective = static_cast<std::uint32_t>(effective >> 32);
  return ::syscall(SYS_capset, &head, caps.data()) == 0;
}

std::uint64_t effective_of(const CapData& caps) noexcept {
  return caps[0].effective | (static_cast<std::uint64_t>(caps[1].effective) << 32);
}

std::uint64_t permitted_of(const CapData& caps) noexcept {
  return caps[0].permitted | (static_cast<std::uint64_t>(caps[1].permitted) << 32);
}

// setfsuid() does not tell whether it worked: ask. (uid_t)-1 changes nothing.
bool set_fsuid(uid_t uid) noexcept {
  ::syscall(SYS_setfsuid, uid);
  return static_cast<uid_t>(::syscall(SYS_setfsuid, static_cast<uid_t>(-1))) == uid;
}
bool set_fsgid(gid_t gid) noexcept {
  ::syscall(SYS_setfsgid, gid);
  return static_cast<gid_t>(::syscall(SYS_setfsgid, static_cast<gid_t>(-1))) == gid;
}

// Once a thread: the daemon's own groups must not count for anybody, and a thread starts as what
// the thread that made it was at that moment, any caller.
bool prepare() noexcept {
  if (t_self.prepared) return true;
  if (::syscall(SYS_setgroups, 0, nullptr) != 0) return false;
  t_self.fsuid = static_cast<uid_t>(::syscall(SYS_setfsuid, static_cast<uid_t>(-1)));
  t_self.fsgid = static_cast<gid_t>(::syscall(SYS_setfsgid, static_cast<gid_t>(-1)));
  t_self.prepared = true;
  return true;
}

}  // namespace

Groups groups_for(int fd) noexcept {
  struct stat st {};
  const bool set_id =
      ::fstatat(fd, "", &st, AT_EMPTY_PATH) == 0 && (st.st_mode & (S_ISUID | S_ISGID)) != 0;
  return set_id ? Groups::kNow : Groups::kOnDemand;
}

void become_daemon() noexcept {
  if (!daemon_is_root()) return;
  if (!prepare()) log::error("cannot clear the supplementary groups");
  if (t_self.fsuid == 0) return;
  // The group stays: with root's capabilities in force it decides nothing.
  if (set_fsuid(0)) {
    t_self.fsuid = 0;
  } else {
    log::error("cannot return to uid 0: requests of others may be refused");
  }
}

Result<void> set_umask(mode_t mask) noexcept {
  if (!t_self.own_fs) {
    if (::unshare(CLONE_FS) != 0) return last_errno();
    t_self.own_fs = true;
  }
  if (t_self.knows_mask && t_self.mask == mask) return {};
  ::umask(mask);
  t_self.mask = mask;
  t_self.knows_mask = true;
  return {};
}

namespace detail {

Result<void> become(const Caller& caller, Groups groups) noexcept {
  if (!daemon_is_root()) return {};
  if (caller.uid == static_cast<uid_t>(-1) || caller.gid == static_cast<gid_t>(-1)) {
    return errno_code(EOVERFLOW);
  }
  if (!prepare()) return last_errno();
  if (t_self.fsgid != caller.gid) {
    // CAP_SETGID is not among what setfsuid() drops, so the order does not matter.
    if (!set_fsgid(caller.gid)) return errno_code(EAGAIN);
    t_self.fsgid = caller.gid;
  }
  if (t_self.fsuid != caller.uid) {
    if (!set_fsuid(caller.uid)) return errno_code(EAGAIN);
    t_self.fsuid = caller.uid;
  }
  if (groups == Groups::kNow) take_rest(caller);
  return {};
}

bool take_rest(const Caller& caller) noexcept {
  if (!daemon_is_root()) return false;
  try {
    const auto status = status_of(caller);
    if (!status) return false;
    CapData caps{};
    if (!get_caps(caps)) return false;
    const std::uint64_t now = effective_of(caps);
    const std::uint64_t theirs =
        (now & ~kFileCaps) | (status->effective_caps & kFileCaps & permitted_of(caps));
    if (theirs != now) t_self.has_caps = set_effective(caps, theirs);
    if (!status->groups.empty()) {
      t_self.has_groups =
          ::syscall(SYS_setgroups, status->groups.size(), status->groups.data()) == 0;
    }
  } catch (...) {
    return false;  // out of memory: the refusal stands
  }
  return t_self.has_caps || t_self.has_groups;
}

void drop_rest() noexcept {
  if (t_self.has_groups) {
    t_self.has_groups = false;
    if (::syscall(SYS_setgroups, 0, nullptr) != 0) t_self.prepared = false;
  }
  if (!t_self.has_caps) return;
  t_self.has_caps = false;
  CapData caps{};
  if (!get_caps(caps)) return;
  const std::uint64_t others = effective_of(caps) & ~kFileCaps;
  set_effective(caps, t_self.fsuid == 0 ? others | (permitted_of(caps) & kFileCaps) : others);
}

}  // namespace detail
}  // namespace latchfs::posix
