// Where the table is and who uses it: one small file a table in a directory that only we can
// write. Its lock serialises attaching and detaching; a byte of it, locked by each daemon for its
// whole life, tells the living from the dead whatever the pid numbers say.
//
// Root: /run/latchfs. Others: the one directory /dev/shm/latchfs-UID.XXXXXX that is the user's own.
// Neither depends on the environment, on which two mounts of one user might disagree. The Xs are
// random, so nobody can take the name first; what others put there under a like name does not
// count. A directory that others may write is refused (EPERM). The table itself has a random name.
//
// Files in /dev/shm can be removed under a living daemon (logind's RemoveIPC= at a user's last
// logout): named() tells.
#pragma once

#include <cstdint>
#include <string>

#include "base/unique_fd.h"
#include "latchfs/result.h"

namespace latchfs::shm {

class Registry {
 public:
  // table: [A-Za-z0-9._-]{1,64}, not beginning with a dot, else EINVAL.
  static Result<Registry> open(const std::string& table);

  // Exclusive among all that attach or detach; released by unlock() or death. The file may have
  // been removed by the last one that left: then it is made anew, unless a byte of it was claimed.
  Result<void> lock();
  // EWOULDBLOCK: somebody else has it.
  Result<void> try_lock();
  void unlock() noexcept;

  // The shared memory name the file holds; "" if none or unreadable.
  [[nodiscard]] std::string region_name() const;
  Result<void> set_region_name(const std::string& name);
  static Result<std::string> fresh_region_name(const std::string& table);

  // The last one leaves: no name, no file, for users no directory. Locked. Nothing if the file is
  // not named() any more: what has its name is another's.
  void remove() noexcept;
  // Whether the file still has its name, so that those who attach find it.
  [[nodiscard]] bool named() const noexcept;

  // Locks the slot's byte until let go of, this Registry is destroyed or the process dies. EAGAIN:
  // taken.
  Result<void> claim(std::uint32_t slot);
  // While the registry is locked, so that of several that leave at once the last one knows it.
  void let_go(std::uint32_t slot) noexcept;
  // Is the daemon that claimed the slot alive? (Never ask for one's own: a lock does not conflict
  // with itself.)
  [[nodiscard]] bool alive(std::uint32_t slot) const;

 private:
  explicit Registry(std::string file) : file_{std::move(file)} {}
  Result<void> open_file();

  std::string file_;
  std::string path_;  // the directory's
  UniqueFd dir_;
  UniqueFd fd_;
  bool claimed_{};
};

}  // namespace latchfs::shm
