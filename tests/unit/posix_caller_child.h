// A process with ids of its own, to act as. Needs root.
#pragma once

#include <grp.h>
#include <linux/capability.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <vector>

#include "base/caller.h"
#include "posix/credentials.h"

namespace latchfs::posix {

class CallerChild {
 public:
  // caps: effective ones it keeps, as a mask of 1 << CAP_*.
  CallerChild(uid_t uid, gid_t gid, const std::vector<gid_t>& groups, std::uint32_t caps = 0)
      : uid_{uid}, gid_{gid} {
    int ready[2];
    if (::pipe(ready) != 0) return;
    pid_ = ::fork();
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      if (::setgroups(groups.size(), groups.data()) != 0) ::_exit(1);
      ::prctl(PR_SET_KEEPCAPS, 1);
      if (::setresgid(gid, gid, gid) != 0 || ::setresuid(uid, uid, uid) != 0) ::_exit(1);
      __user_cap_header_struct head{_LINUX_CAPABILITY_VERSION_3, 0};
      __user_cap_data_struct data[2]{{caps, caps, 0}, {0, 0, 0}};
      if (::syscall(SYS_capset, &head, data) != 0) ::_exit(1);
      if (::write(ready[1], "x", 1) != 1) ::_exit(1);
      for (;;) ::pause();
    }
    char byte{};
    ::close(ready[1]);
    alive_ = ::read(ready[0], &byte, 1) == 1;
    ::close(ready[0]);
  }
  ~CallerChild() {
    become_daemon();  // killing others' processes is not what a caller may
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  CallerChild(const CallerChild&) = delete;
  CallerChild& operator=(const CallerChild&) = delete;

  [[nodiscard]] bool alive() const { return alive_; }
  [[nodiscard]] Caller as_caller(mode_t umask = 022) const { return {uid_, gid_, pid_, umask}; }

 private:
  uid_t uid_;
  gid_t gid_;
  pid_t pid_{-1};
  bool alive_{};
};

}  // namespace latchfs::posix
