#include "posix/mappings.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/core.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <optional>
#include <string_view>

#include "posix/credentials.h"
#include "posix/mount_points.h"

namespace latchfs::posix {
namespace {

// Node ids carry the backing inode number in so many low bits (posix/node_ids.h).
constexpr std::uint64_t kInoMask = (std::uint64_t{1} << 52) - 1;

// A line of /proc/PID/maps (proc(5)): "start-end perms offset dev inode path".
struct MapLine {
  std::string_view range, perms, dev;
  std::uint64_t ino{};
};
std::optional<MapLine> parse(std::string_view line) {
  const auto word = [&line]() {
    const std::size_t end = line.find(' ');
    const std::string_view found = line.substr(0, end);
    line.remove_prefix(end == std::string_view::npos ? line.size() : end + 1);
    return found;
  };
  MapLine out;
  out.range = word();
  out.perms = word();
  word();
  out.dev = word();
  const std::string_view ino = word();
  const auto read = std::from_chars(ino.data(), ino.data() + ino.size(), out.ino);
  if (read.ec != std::errc{} || out.perms.size() < 4) return std::nullopt;
  return out;
}

// Whether the mapping at this range may be made writable: "mw" among the flags that smaps tells.
bool may_write(pid_t pid, std::string_view range) {
  std::ifstream smaps{fmt::format("/proc/{}/smaps", pid)};
  bool here = false;
  for (std::string line; std::getline(smaps, line);) {
    const std::size_t space = line.find(' ');
    if (space != std::string::npos && line.find('-') < space) {
      here = std::string_view{line}.substr(0, space) == range;
    } else if (here && line.rfind("VmFlags:", 0) == 0) {
      return (line + " ").find(" mw ") != std::string::npos;
    }
  }
  return true;  // gone, or not told
}

// maps(5) has device numbers in hexadecimal.
std::optional<dev_t> parse_device(std::string_view text) {
  unsigned major = 0;
  unsigned minor = 0;
  if (std::sscanf(std::string{text}.c_str(), "%x:%x", &major, &minor) != 2) return std::nullopt;
  return makedev(major, minor);
}

Mapper describe(pid_t pid) {
  Mapper mapper;
  mapper.pid = pid;
  std::ifstream status{fmt::format("/proc/{}/status", pid)};
  for (std::string line; std::getline(status, line);) {
    unsigned real = 0;
    unsigned effective = 0;
    unsigned saved = 0;
    unsigned fs = 0;
    if (line.rfind("Name:\t", 0) == 0) {
      mapper.comm = line.substr(6);
    } else if (std::sscanf(line.c_str(), "Uid: %u %u %u %u", &real, &effective, &saved, &fs) == 4) {
      mapper.uid = fs;
      break;
    }
  }
  return mapper;
}

bool maps_it(pid_t pid, std::uint64_t ino) {
  std::ifstream maps{fmt::format("/proc/{}/maps", pid)};
  for (std::string text; std::getline(maps, text);) {
    const auto line = parse(text);
    if (!line || line->perms[3] != 's' || (line->ino & kInoMask) != (ino & kInoMask)) continue;
    const auto dev = parse_device(line->dev);
    if (!dev || major(*dev) != 0) continue;  // on a disk: not through a mount of ours
    // Of a mount that is gone nothing is told: it may have been ours.
    const std::string type = mounted_type(*dev, pid);
    if (!type.empty() && type != kLatchfsType) continue;
    if (line->perms[1] == 'w' || may_write(pid, line->range)) return true;
  }
  return false;
}

}  // namespace

bool has_no_writer(int fd) noexcept {
  if (::fcntl(fd, F_SETLEASE, F_RDLCK) != 0) return false;
  ::fcntl(fd, F_SETLEASE, F_UNLCK);
  return true;
}

Result<std::vector<Mapper>> shared_writers(std::uint64_t ino) {
  become_daemon();
  const std::unique_ptr<DIR, int (*)(DIR*)> proc{::opendir("/proc"), &::closedir};
  if (!proc) return last_errno();
  std::vector<Mapper> found;
  const pid_t own = ::getpid();
  while (const dirent* entry = ::readdir(proc.get())) {
    const pid_t pid = std::atoi(entry->d_name);
    if (pid <= 0 || pid == own) continue;
    if (maps_it(pid, ino)) found.push_back(describe(pid));
  }
  return found;
}

}  // namespace latchfs::posix
