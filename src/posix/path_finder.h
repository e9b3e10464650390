// The current name, below one directory, of a file that some process has open.
//
// The kernel's text for a descriptor (/proc/PID/fd/N) is in terms of the mount the file was opened
// through and of that process's mount namespace. It is brought to a path inside the file system
// (mountinfo's root field), and from there to each place below our root where that part of the
// file system is mounted: so other mounts' daemons, bind mounts and nested directories all come
// out as names of ours. A name counts only if opening it below the root gives that very file.
//
// Nothing is looked up by the text itself, and no FUSE mount below the root is walked into: the
// mount point of this daemon may lie over or inside its source, and a daemon that waits for its
// own mount waits for good.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/mutex.h"
#include "base/unique_fd.h"
#include "latchfs/types.h"
#include "posix/mountinfo.h"

namespace latchfs::posix {

struct FoundPath {
  std::string path;  // begins with "/", relative to the root; "" if there is no name or none known
  bool outside{};    // certainly no name of the file is below the root
};

// Thread-safe. Five system calls a question; runs as the daemon itself.
class PathFinder {
 public:
  // root_fd: the root directory, any kind of descriptor; stays the caller's and open.
  PathFinder(int root_fd, FileId root);
  PathFinder(const PathFinder&) = delete;
  PathFinder& operator=(const PathFinder&) = delete;
  ~PathFinder() = default;

  // pid has `file` open as descriptor `fd`; if it has not (any more) nothing is known.
  //
  // A file all of whose names are gone has path ""; so has one with several hard links that was
  // opened by a name elsewhere: there may be a name below the root, but none is known. A file
  // opened by handle whose name the kernel has not in its cache is unknown as well, and one that
  // lies on another FUSE file system mounted below the root.
  FoundPath find(pid_t pid, int fd, FileId file);

 private:
  // One namespace's mounts, in order of mounting.
  struct Mounts {
    std::vector<MountPoint> list;
    std::unordered_map<std::uint64_t, std::size_t> by_id;
    std::int64_t read_at_ns{};
    const MountPoint* find(std::uint64_t id) const;
  };
  using MountsPtr = std::shared_ptr<const Mounts>;
  // Where part of a file system is seen below the root.
  struct Place {
    std::string device;
    std::string inside;  // path in the file system
    std::string below;   // path below the root it is seen at: "" for the root itself
    bool crosses{};      // on the way from the root there are other mounts
  };
  struct Places {
    MountsPtr mounts;
    std::string root_text;
    std::vector<Place> list;
    std::vector<std::string> fuse;  // FUSE mounts below the root: never walked into
  };

  static MountsPtr read_mounts(const std::string& path);
  MountsPtr own_mounts();
  MountsPtr mounts_of(pid_t pid);
  // Where to look; `known`: as it was found last, if it ever was.
  std::shared_ptr<const Places> places(bool known);
  // One look: the path, "" if it is somewhere below the root but not found; none if it is not.
  std::optional<std::string> look(const Places& around, const MountPoint& mount,
                                  std::string_view text, FileId file) const;
  bool is_file_at(const Place& place, const std::string& below, FileId file) const;

  const int root_fd_;
  const FileId root_;
  std::uint64_t root_mount_{};
  UniqueFd own_mountinfo_;  // says by poll(2) that mounts have changed

  // Held over no system call but that poll.
  Mutex mu_;
  MountsPtr own_ GUARDED_BY(mu_);
  std::uint64_t changes_ GUARDED_BY(mu_){};  // that the poll told of
  std::shared_ptr<const Places> places_ GUARDED_BY(mu_);
  std::unordered_map<pid_t, MountsPtr> others_ GUARDED_BY(mu_);  // of other namespaces
};

}  // namespace latchfs::posix
