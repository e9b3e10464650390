// Who made a request, as the FUSE header tells it.
#pragma once

#include <sys/types.h>

namespace latchfs {

struct Caller {
  uid_t uid{};
  gid_t gid{};
  pid_t pid{};     // thread id; 0 when it is outside the daemon's pid namespace
  mode_t umask{};  // 0 where the request carries none
};

}  // namespace latchfs
