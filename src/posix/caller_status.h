// What /proc tells about the thread behind a request: the FUSE header carries uid and gid, but
// neither supplementary groups nor capabilities.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/caller.h"
#include "latchfs/result.h"

namespace latchfs::posix {

struct CallerStatus {
  uid_t fsuid{};
  gid_t fsgid{};
  std::vector<gid_t> groups;
  std::uint64_t effective_caps{};  // CapEff
};

// The text of /proc/TID/status (proc(5)). EINVAL if a line that is needed is missing or odd.
[[nodiscard]] Result<CallerStatus> parse_status(std::string_view text);

// Of a live thread. ESRCH if it is gone or if its ids are no longer the request's: the thread may
// have died and its number been taken by somebody else's.
// Capabilities are zero unless it lives in the daemon's user namespace: elsewhere they mean
// nothing here.
[[nodiscard]] Result<CallerStatus> status_of(const Caller& caller);

// The name of the file that the process runs, without its directory (/proc/PID/exe); "": it cannot
// be told, or it is a thread of the kernel. Whoever may run programs can have any: no proof of who
// it is.
[[nodiscard]] std::string program_of(pid_t pid);
// What a thread of the kernel is called; nothing: it is none, or gone. No process can be one.
[[nodiscard]] std::optional<std::string> kernel_thread_name(pid_t pid);
// Whose process it is, whatever it acts as now. Nothing: it cannot be told.
[[nodiscard]] std::optional<uid_t> real_uid_of(pid_t pid);

}  // namespace latchfs::posix
