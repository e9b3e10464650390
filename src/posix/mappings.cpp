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

struct CloseDir {
  void operator()(DIR* dir) const { ::closedir(dir); }
};

// Node ids carry the backing inode number in so many low bits (posix/node_ids.h).
constexpr std::uint64_t kInoMask = (std::uint64_t{1} << 52) - 1;

// The numbers of the mount's file and of the one beneath agree in these bits.
bool is_number_of(std::uint64_t shown, std::uint64_t ino) {
  return (shown & kInoMask) == (ino & kInoMask);
}

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

// Through a mount of this program's type. Of a mount that is gone nothing is told: it may have
// been.
bool is_ours(dev_t dev, pid_t pid) {
  if (major(dev) != 0) return false;
  const std::string type = mounted_type(dev, pid);
  return type.empty() || type == kLatchfsType;
}

std::optional<dev_t> mapped_through(pid_t pid, std::uint64_t ino) {
  std::ifstream maps{fmt::format("/proc/{}/maps", pid)};
  for (std::string text; std::getline(maps, text);) {
    const auto line = parse(text);
    if (!line || line->perms[3] != 's' || !is_number_of(line->ino, ino)) continue;
    const auto dev = parse_device(line->dev);
    if (!dev || !is_ours(*dev, pid)) continue;
    if (line->perms[1] == 'w' || may_write(pid, line->range)) return dev;
  }
  return std::nullopt;
}

// The device of a mount in the process's namespace.
std::optional<dev_t> device_of_mount(pid_t pid, std::uint64_t mount_id) {
  std::ifstream mounts{fmt::format("/proc/{}/mountinfo", pid)};
  for (std::string line; std::getline(mounts, line);) {
    unsigned long long id = 0;
    unsigned long long parent = 0;
    unsigned on_major = 0;
    unsigned on_minor = 0;
    if (std::sscanf(line.c_str(), "%llu %llu %u:%u", &id, &parent, &on_major, &on_minor) == 4 &&
        id == mount_id) {
      return makedev(on_major, on_minor);
    }
  }
  return std::nullopt;
}

std::optional<dev_t> open_through(pid_t pid, std::uint64_t ino) {
  const std::string place = fmt::format("/proc/{}/fdinfo", pid);
  const std::unique_ptr<DIR, CloseDir> dir{::opendir(place.c_str())};
  if (!dir) return std::nullopt;
  while (const dirent* entry = ::readdir(dir.get())) {
    if (entry->d_name[0] == '.') continue;
    std::ifstream info{place + "/" + entry->d_name};
    unsigned flags = 0;
    unsigned long long mount_id = 0;
    unsigned long long number = 0;
    for (std::string line; std::getline(info, line);) {
      if (std::sscanf(line.c_str(), "flags: %o", &flags) == 1) continue;
      if (std::sscanf(line.c_str(), "mnt_id: %llu", &mount_id) == 1) continue;
      if (std::sscanf(line.c_str(), "ino: %llu", &number) == 1) break;
    }
    if ((flags & O_ACCMODE) != O_RDWR || (flags & O_PATH) != 0) continue;
    // (Linux before 5.14 tells no number: then it may be this one.)
    if (number != 0 && !is_number_of(number, ino)) continue;
    const auto dev = device_of_mount(pid, mount_id);
    if (dev && is_ours(*dev, pid)) return dev;
  }
  return std::nullopt;
}

}  // namespace

Process describe_process(pid_t pid) {
  Process process;
  process.pid = pid;
  process.uid = static_cast<uid_t>(-1);
  std::ifstream status{fmt::format("/proc/{}/status", pid)};
  for (std::string line; std::getline(status, line);) {
    unsigned real = 0;
    unsigned effective = 0;
    unsigned saved = 0;
    unsigned fs = 0;
    if (line.rfind("Name:\t", 0) == 0) {
      process.comm = line.substr(6);
    } else if (std::sscanf(line.c_str(), "Uid: %u %u %u %u", &real, &effective, &saved, &fs) == 4) {
      process.uid = fs;
      break;
    }
  }
  return process;
}

bool has_no_writer(int fd) noexcept {
  if (::fcntl(fd, F_SETLEASE, F_RDLCK) != 0) return false;
  ::fcntl(fd, F_SETLEASE, F_UNLCK);
  return true;
}

Result<std::vector<Storer>> possible_storers(std::uint64_t ino) {
  become_daemon();
  const std::unique_ptr<DIR, CloseDir> proc{::opendir("/proc")};
  if (!proc) return last_errno();
  std::vector<Storer> found;
  const pid_t own = ::getpid();
  while (const dirent* entry = ::readdir(proc.get())) {
    const pid_t pid = std::atoi(entry->d_name);
    if (pid <= 0 || pid == own) continue;
    if (const auto dev = mapped_through(pid, ino)) {
      found.push_back({describe_process(pid), true, *dev});
    } else if (const auto through = open_through(pid, ino)) {
      found.push_back({describe_process(pid), false, *through});
    }
  }
  return found;
}

}  // namespace latchfs::posix
