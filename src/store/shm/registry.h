// Where the table is and who uses it: one small file a table in a directory that only we can
// write. Its lock serialises attaching and detaching; a byte of it, locked by each daemon for its
// whole life, tells the living from the dead whatever the pid numbers say.
//
// Root: /run/latchfs. Others: $XDG_RUNTIME_DIR/latchfs, else /tmp/latchfs-UID. A directory that is
// not ours alone is refused (EPERM), so nobody can squat the name or read what it says; the table
// itself has a random name.
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
  // been removed by the last one that left: then it is made anew.
  Result<void> lock();
  void unlock() noexcept;

  // The shared memory name the file holds; "" if none or unreadable.
  [[nodiscard]] std::string region_name() const;
  Result<void> set_region_name(const std::string& name);
  static Result<std::string> fresh_region_name(const std::string& table);

  // The last one leaves: no name, no file. Locked.
  void remove() noexcept;

  // Locks the slot's byte until this Registry is destroyed or the process dies. EAGAIN: taken.
  Result<void> claim(std::uint32_t slot);
  // Is the daemon that claimed the slot alive? (Never ask for one's own: a lock does not conflict
  // with itself.)
  [[nodiscard]] bool alive(std::uint32_t slot) const;

 private:
  Registry(UniqueFd dir, std::string file) : dir_{std::move(dir)}, file_{std::move(file)} {}
  Result<void> open_file();

  UniqueFd dir_;
  std::string file_;
  UniqueFd fd_;
};

}  // namespace latchfs::shm
