// The files beside a locked one: names, who put them there, making and removing them.
//
// Their names are in a directory that others write to, so what is found under one is only ever
// judged through a descriptor of it (O_PATH, symlinks not followed): a file is ours by the mark on
// its inode. Nothing that was found is opened before that, written to, or replaced.
#pragma once

#include <sys/stat.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/unique_fd.h"
#include "filelock/mark.h"
#include "filelock/outcome.h"

namespace latchfs::filelock {

struct SideNames {
  std::string backup;    // .NAME.asp-bak
  std::string metadata;  // .NAME.asp-lck
};
// ENAMETOOLONG if they would not fit, EINVAL if it is no name.
[[nodiscard]] Outcome<SideNames> side_names(std::string_view name);
// Whether it is the name of a side file of something.
[[nodiscard]] bool is_side_name(std::string_view name) noexcept;
// Whether latchfs itself makes files of that name: of a side file, or what is to become one.
[[nodiscard]] bool is_reserved_name(std::string_view name) noexcept;
// What metadata is called before it takes the place of other metadata.
[[nodiscard]] std::string temporary_name(const LockId& id);

enum class SideState : std::uint8_t {
  kMissing,
  kOurs,       // regular, and its mark has the id asked for
  kOtherLock,  // regular, with a side mark of another id
  kForeign,    // anything else
};
struct Side {
  SideState state{SideState::kMissing};
  UniqueFd fd;  // O_PATH; none if kMissing
  struct stat attr {};
  std::optional<Mark> mark;
};
[[nodiscard]] Result<Side> look_at_side(int dir, const std::string& name, const LockId& id);

// Removes the name of a side file that was looked at, if it still is that file's.
Result<void> unlink_side(int dir, const std::string& name, const Side& side);
// Removes what is ours under a name. Nothing to do is fine.
Result<void> remove_side(int dir, const std::string& name, const LockId& id);

// A nameless file in the directory, only the daemon's, that carries the mark. EOPNOTSUPP, with
// words, where the file system has no nameless files or no extended attributes.
[[nodiscard]] Outcome<UniqueFd> make_nameless(int dir, const Mark& side_mark);

// Removes what is under a name if it is the proven left-over of a lock that is not in force: made
// for this very inode, which has no lock. EBUSY, with words, for anything else. A free name is
// fine.
Outcome<void> make_way(int dir, const std::string& name, const Mark& side_mark);
// Gives a nameless file its name, making way; nothing else is ever replaced.
Outcome<void> give_name(int fd, int dir, const std::string& name, const Mark& side_mark);

// An ordinary descriptor of what another one, O_PATH say, stands for; reading leaves no atime.
[[nodiscard]] Result<UniqueFd> reopen(int fd, int flags);
// fsync(2) of the file behind any descriptor.
Result<void> sync_inode(int fd);

}  // namespace latchfs::filelock
