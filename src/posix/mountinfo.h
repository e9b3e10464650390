// Lines of /proc/PID/mountinfo (proc(5)).
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <string_view>

namespace latchfs::posix {

// One mount. Of what makes no sense the fields are empty.
struct MountPoint {
  std::uint64_t id{};
  std::string device;  // "MAJOR:MINOR" of the super block
  std::string root;    // of the mount in its file system; no '/' at the end: "" is all of it
  std::string point;   // where it is mounted; likewise
  bool fuse{};
};
[[nodiscard]] MountPoint parse_mount(std::string_view line);

// "" for "/": so that a directory and '/' and a name is a path, whatever the directory.
[[nodiscard]] std::string without_end_slash(std::string path);

// The super block mounted at this path last, as this process sees it; 0: none. Asks no file system.
[[nodiscard]] dev_t super_block_at(std::string_view mountpoint);

}  // namespace latchfs::posix
