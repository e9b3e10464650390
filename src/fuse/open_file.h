// What is open through the mount.
#pragma once

#include <fcntl.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/caller.h"
#include "base/mutex.h"
#include "base/unique_fd.h"
#include "control/tree.h"
#include "fuse/backing_files.h"
#include "fuse/lock_data.h"
#include "latchfs/change_gate.h"
#include "latchfs/types.h"
#include "posix/dir_stream.h"
#include "posix/inode_table.h"

namespace latchfs::fuse {

// One OPEN or CREATE, which is one open file description of the kernel's. Lives until RELEASE, and
// as long as a parked request needs it.
struct OpenFile {
  UniqueFd fd;  // the backing file
  FileId id;
  std::uint64_t node{};
  std::uint64_t fh{};        // its number in the table
  std::uint64_t sequence{};  // of opens, per mount: later is larger
  int flags{};               // open(2)'s, as the kernel gave them at open
  Caller opener;
  BackingFiles::Use backing;
  posix::PinPtr pin;  // only where files are not found by handle: what keeps node usable
  LockData locks;
  // Told to all mounts while it could be mapped and stored to without the daemon being asked.
  struct Stores {
    Stores() = default;
    Stores(const Stores&) = delete;
    Stores& operator=(const Stores&) = delete;
    ~Stores() {
      if (gate != nullptr) gate->leave_storer(ticket);
    }
    ChangeGate* gate{};
    ChangeTicket ticket;
  } stores;
  std::atomic<std::uint64_t> filelock{0};  // ChangeEdge's: what it knew last

  [[nodiscard]] bool writable() const noexcept { return (flags & O_ACCMODE) != O_RDONLY; }
  [[nodiscard]] bool readable() const noexcept { return (flags & O_ACCMODE) != O_WRONLY; }
};
using OpenFilePtr = std::shared_ptr<OpenFile>;

struct OpenDir {
  explicit OpenDir(UniqueFd fd) : stream{std::move(fd)}, raw_fd_{stream.fd()} {}

  // The stream's: it never changes. -1 for the control tree's root.
  [[nodiscard]] int fd() const noexcept { return raw_fd_; }

  std::uint64_t node{};
  dev_t dev{};
  Mutex mu;  // held across getdents64 and lookups: requests on one directory take turns
  posix::DirStream stream GUARDED_BY(mu);
  // Of what is being read, from its start on: RecentListings, ListingHabit.
  bool needless GUARDED_BY(mu){};  // to tell attributes
  bool names_only GUARDED_BY(mu){};
  bool told_all GUARDED_BY(mu){};       // with attributes
  std::int64_t began GUARDED_BY(mu){};  // CLOCK_MONOTONIC ns
  // Of the control tree's root.
  std::vector<control::FileName> names GUARDED_BY(mu);

 private:
  const int raw_fd_;
};

}  // namespace latchfs::fuse
