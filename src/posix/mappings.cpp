#include "posix/mappings.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/core.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <atomic>
#include <charconv>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <mutex>
#include <optional>
#include <string_view>
#include <thread>

#include "posix/credentials.h"
#include "posix/mount_points.h"
#include "posix/node_ids.h"

namespace latchfs::posix {
namespace {

struct CloseDir {
  void operator()(DIR* dir) const { ::closedir(dir); }
};

// The numbers of the mount's file and of the one beneath agree in the bits that node ids have of
// it.
bool is_number_of(std::uint64_t shown, std::uint64_t ino) {
  return NodeIds::ino_of(shown) == NodeIds::ino_of(ino);
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
// maps: the file that the range is from.
bool may_write(const std::string& maps, std::string_view range) {
  std::ifstream smaps{fmt::format("{}/smaps", maps.substr(0, maps.rfind('/')))};
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

enum class Maps : std::uint8_t { kNone, kOthers, kIt };

// place: "/proc/PID/maps" or of a thread. kNone: it says nothing (a main thread that has ended).
Maps look_at(const std::string& place, pid_t pid, std::uint64_t ino) {
  std::ifstream maps{place};
  Maps found = Maps::kNone;
  for (std::string text; std::getline(maps, text);) {
    found = Maps::kOthers;
    const auto line = parse(text);
    if (!line || line->perms[3] != 's' || !is_number_of(line->ino, ino)) continue;
    const auto dev = parse_device(line->dev);
    if (!dev || !is_ours(*dev, pid)) continue;
    if (line->perms[1] == 'w' || may_write(place, line->range)) return Maps::kIt;
  }
  return found;
}

// All threads of a process have one memory, but the first one's end hides it from /proc/PID/maps.
bool maps_it(pid_t pid, std::uint64_t ino) {
  const Maps first = look_at(fmt::format("/proc/{}/maps", pid), pid, ino);
  if (first != Maps::kNone) return first == Maps::kIt;
  const std::string place = fmt::format("/proc/{}/task", pid);
  const std::unique_ptr<DIR, CloseDir> tasks{::opendir(place.c_str())};
  while (const dirent* entry = tasks ? ::readdir(tasks.get()) : nullptr) {
    if (entry->d_name[0] == '.') continue;
    const Maps of_thread = look_at(fmt::format("{}/{}/maps", place, entry->d_name), pid, ino);
    if (of_thread != Maps::kNone) return of_thread == Maps::kIt;
  }
  return false;
}

// What a search that may never end leaves to those who wait for it.
struct Search {
  std::mutex mu;
  std::condition_variable over;
  bool done{};
  std::error_code error;
  std::vector<Process> found;
};

// Reading a process's maps waits for its execve(2) to be over, which may take as long as a FUSE
// server of the user's own likes. Searches that are stuck so: no more are begun than these.
constexpr int kMostSearches = 8;
constexpr std::chrono::seconds kPatience{3};
std::atomic<int> g_searches{0};

void search(Search& into, std::uint64_t ino) {
  become_daemon();
  std::vector<Process> found;
  std::error_code error;
  const std::unique_ptr<DIR, CloseDir> proc{::opendir("/proc")};
  if (!proc) error = last_errno();
  const pid_t own = ::getpid();
  while (const dirent* entry = proc ? ::readdir(proc.get()) : nullptr) {
    const pid_t pid = std::atoi(entry->d_name);
    if (pid > 0 && pid != own && maps_it(pid, ino)) found.push_back(describe_process(pid));
  }
  const std::lock_guard hold{into.mu};
  into.found = std::move(found);
  into.error = error;
  into.done = true;
  into.over.notify_all();
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

Result<std::vector<Process>> shared_writers(std::uint64_t ino) {
  if (g_searches.fetch_add(1) >= kMostSearches) {
    g_searches.fetch_sub(1);
    return errno_code(EBUSY);
  }
  const auto state = std::make_shared<Search>();
  // A thread of its own, that can be left behind: it ends when what it waits for does.
  std::thread{[state, ino] {
    try {
      search(*state, ino);
    } catch (const std::exception&) {
      const std::lock_guard hold{state->mu};
      state->error = errno_code(ENOMEM);
      state->done = true;
      state->over.notify_all();
    }
    g_searches.fetch_sub(1);
  }}.detach();
  std::unique_lock hold{state->mu};
  if (!state->over.wait_for(hold, kPatience, [&] { return state->done; })) {
    return errno_code(ETIMEDOUT);
  }
  if (state->error) return state->error;
  return std::move(state->found);
}

}  // namespace latchfs::posix
