#include "posix/credentials.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <sched.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>

#include "base/log.h"
#include "posix/acl_groups.h"
#include "posix/caller_status.h"
#include "posix/nfsd_clients.h"
#include "posix/sys.h"

namespace latchfs::posix {
namespace {

using CapData = std::array<__user_cap_data_struct, 2>;

// What setfsuid() drops and regains (CAP_FS_MASK in the kernel's linux/capability.h).
constexpr std::uint64_t kFileCaps = (1ULL << CAP_CHOWN) | (1ULL << CAP_DAC_OVERRIDE) |
                                    (1ULL << CAP_DAC_READ_SEARCH) | (1ULL << CAP_FOWNER) |
                                    (1ULL << CAP_FSETID) | (1ULL << CAP_LINUX_IMMUTABLE) |
                                    (1ULL << CAP_MKNOD) | (1ULL << CAP_MAC_OVERRIDE);
// What a thread needs to become somebody else; capset(2) and setfsuid(2) back to 0 need nothing
// more. The rest of root's (CAP_SYS_PTRACE, CAP_SYS_ADMIN, ...) would act for the caller: file
// systems like proc ask for it.
constexpr std::uint64_t kChangeCaps = (1ULL << CAP_SETUID) | (1ULL << CAP_SETGID);

// What the calling thread is.
struct Self {
  bool prepared{};    // supplementary groups cleared
  bool own_fs{};      // CLONE_FS unshared
  bool knows_mask{};  // mask below is in force
  bool has_groups{};  // the caller's groups are set
  uid_t fsuid{};
  gid_t fsgid{};
  mode_t mask{};
  CapData caps{};             // as found; nobody changes the permitted ones once threads run
  std::uint64_t effective{};  // now
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

std::uint64_t effective_of(const CapData& caps) noexcept {
  return caps[0].effective | (static_cast<std::uint64_t>(caps[1].effective) << 32);
}

std::uint64_t permitted_of(const CapData& caps) noexcept {
  return caps[0].permitted | (static_cast<std::uint64_t>(caps[1].permitted) << 32);
}

// A system call only where something changes.
bool set_effective(std::uint64_t wanted) noexcept {
  if (t_self.effective == wanted) return true;
  __user_cap_header_struct head{_LINUX_CAPABILITY_VERSION_3, 0};
  CapData caps = t_self.caps;
  caps[0].effective = static_cast<std::uint32_t>(wanted);
  caps[1].effective = static_cast<std::uint32_t>(wanted >> 32);
  if (::syscall(SYS_capset, &head, caps.data()) != 0) return false;
  t_self.effective = wanted;
  return true;
}

// Of a thread that is the daemon, or acts for root: the kernel has checked what root may.
std::uint64_t all_caps() noexcept { return permitted_of(t_self.caps); }

// Of a thread that acts as this user, who brings nothing of his own.
std::uint64_t caps_for(uid_t uid) noexcept {
  return uid == 0 ? all_caps() : all_caps() & kChangeCaps;
}

// setfsuid() does not tell whether it worked: ask. (uid_t)-1 changes nothing.
bool set_fsuid(uid_t uid) noexcept {
  ::syscall(SYS_setfsuid, uid);
  if (static_cast<uid_t>(::syscall(SYS_setfsuid, static_cast<uid_t>(-1))) != uid) return false;
  if (t_self.fsuid == 0 && uid != 0) t_self.effective &= ~kFileCaps;
  if (t_self.fsuid != 0 && uid == 0) t_self.effective |= all_caps() & kFileCaps;
  t_self.fsuid = uid;
  return true;
}
bool set_fsgid(gid_t gid) noexcept {
  ::syscall(SYS_setfsgid, gid);
  return static_cast<gid_t>(::syscall(SYS_setfsgid, static_cast<gid_t>(-1))) == gid;
}

// Once a thread: the daemon's own groups must not count for anybody, and a thread starts as what
// the thread that made it was at that moment, any caller.
bool prepare() noexcept {
  if (t_self.prepared) return true;
  if (!get_caps(t_self.caps)) return false;
  t_self.effective = effective_of(t_self.caps);
  t_self.fsuid = static_cast<uid_t>(::syscall(SYS_setfsuid, static_cast<uid_t>(-1)));
  t_self.fsgid = static_cast<gid_t>(::syscall(SYS_setfsgid, static_cast<gid_t>(-1)));
  if (::syscall(SYS_setgroups, 0, nullptr) != 0) return false;
  t_self.prepared = true;
  return true;
}

}  // namespace

Groups groups_for(int fd) noexcept { return has_set_id(fd) ? Groups::kNow : Groups::kOnDemand; }

void become_daemon() noexcept {
  if (!daemon_is_root()) return;
  if (!prepare()) log::error("cannot clear the supplementary groups");
  // The group stays: with root's capabilities in force it decides nothing.
  if (t_self.fsuid != 0 && !set_fsuid(0)) {
    log::error("cannot return to uid 0: requests of others may be refused");
  } else if (!set_effective(all_caps())) {
    log::error("cannot take the capabilities back: requests of others may be refused");
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

namespace {

// The groups that decide, if the caller is one of those for whom the kernel vouches.
std::vector<gid_t> vouched_groups(const Caller& caller, const Deciding& deciding) {
  std::vector<gid_t> groups;
  const bool none =
      std::all_of(deciding.fds.begin(), deciding.fds.end(), [](int fd) { return fd < 0; });
  if ((none && !deciding.given) || !NfsdClients::is_server_thread(caller.pid)) return groups;
  if (deciding.given) groups.push_back(*deciding.given);
  for (const int fd : deciding.fds) {
    if (fd < 0) continue;
    const auto st = stat_of(fd);
    if (!st) continue;
    groups.push_back(st->st_gid);
    for (const gid_t gid : acl_groups(fd)) groups.push_back(gid);
  }
  return groups;
}

}  // namespace

Result<void> become_caller(const Caller& caller) noexcept {
  return detail::become(caller, Groups::kOnDemand);
}

namespace detail {

Result<void> become(const Caller& caller, Groups groups, const Deciding& deciding) noexcept {
  if (!daemon_is_root()) return {};
  if (caller.uid == static_cast<uid_t>(-1) || caller.gid == static_cast<gid_t>(-1)) {
    return errno_code(EOVERFLOW);
  }
  if (!prepare()) return last_errno();
  if (t_self.fsgid != caller.gid) {
    // CAP_SETGID is always in force, so the order does not matter.
    if (!set_fsgid(caller.gid)) return errno_code(EAGAIN);
    t_self.fsgid = caller.gid;
  }
  if (t_self.fsuid != caller.uid && !set_fsuid(caller.uid)) return errno_code(EAGAIN);
  if (!set_effective(caps_for(caller.uid))) return errno_code(EAGAIN);
  if (groups == Groups::kOnDemand) return {};
  return take_rest(caller, deciding.at_once ? deciding : Deciding{}).error();
}

Result<bool> take_rest(const Caller& caller, const Deciding& deciding) noexcept {
  if (!daemon_is_root()) return false;
  const std::uint64_t before = t_self.effective;
  // /proc hides processes (hidepid=) and their namespaces from who has no CAP_SYS_PTRACE.
  if (!set_effective(all_caps())) return false;
  bool known = false;
  std::uint64_t theirs = before;
  std::vector<gid_t> groups;
  try {
    if (auto status = status_of(caller)) {
      known = true;
      theirs = all_caps() & (status->effective_caps | kChangeCaps);
      groups = std::move(status->groups);
    } else {
      groups = vouched_groups(caller, deciding);
    }
  } catch (...) {
    // Out of memory: the refusal stands.
  }
  // Nothing may be done for him with those of the daemon.
  if (!set_effective(theirs)) return errno_code(EAGAIN);
  if (!groups.empty()) {
    t_self.has_groups = ::syscall(SYS_setgroups, groups.size(), groups.data()) == 0;
  }
  return (known && theirs != before) || t_self.has_groups;
}

Result<bool> take_vouched(const Caller& caller, const Deciding& deciding) noexcept {
  // (Those for whom the kernel vouches have none in /proc.)
  return t_self.has_groups ? Result<bool>{false} : take_rest(caller, deciding);
}

Result<void> take_groups(const std::vector<gid_t>& groups) noexcept {
  if (!daemon_is_root() || groups.empty()) return {};
  t_self.has_groups = ::syscall(SYS_setgroups, groups.size(), groups.data()) == 0;
  if (!t_self.has_groups) return errno_code(errno == EINVAL ? EOVERFLOW : EAGAIN);
  return {};
}

void drop_rest() noexcept {
  if (t_self.has_groups) {
    t_self.has_groups = false;
    if (::syscall(SYS_setgroups, 0, nullptr) != 0) t_self.prepared = false;
  }
  if (!set_effective(caps_for(t_self.fsuid))) t_self.prepared = false;
}

}  // namespace detail
}  // namespace latchfs::posix
