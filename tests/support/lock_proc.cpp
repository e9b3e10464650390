#include "support/lock_proc.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>

#include "base/unique_fd.h"

namespace latchfs::locktest {
namespace {

std::string slurp(const std::string& path) {
  const UniqueFd fd{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  std::string text(4096, '\0');
  const ssize_t n = fd ? ::read(fd.get(), text.data(), text.size()) : -1;
  text.resize(n > 0 ? static_cast<std::size_t>(n) : 0);
  return text;
}

std::string task_path(pid_t pid, pid_t tid, const char* file) {
  return "/proc/" + std::to_string(pid) + "/task/" + std::to_string(tid) + "/" + file;
}

// What follows "NAME:" and white space, "" if there is no such line.
std::string_view field(const std::string& status, std::string_view name) {
  const std::size_t at = status.find("\n" + std::string{name} + ":");
  if (at == std::string::npos) return {};
  std::string_view rest{status};
  rest.remove_prefix(at + name.size() + 2);
  rest.remove_prefix(std::min(rest.find_first_not_of(" \t"), rest.size()));
  return rest.substr(0, rest.find('\n'));
}

}  // namespace

std::chrono::seconds hung_after() {
  const char* const text = std::getenv("LATCHFS_HUNG_SECONDS");
  return std::chrono::seconds{text != nullptr ? std::atoi(text) : 60};
}

std::optional<SleepingThread> sleeping(pid_t pid, pid_t tid) {
  const std::string status = slurp(task_path(pid, tid, "status"));
  const std::string_view state = field(status, "State");
  if (state.empty() || (state[0] != 'S' && state[0] != 'T')) return std::nullopt;
  const std::string switches{field(status, "voluntary_ctxt_switches")};
  return SleepingThread{tid, std::atol(switches.c_str())};
}

bool in_lock_call(pid_t pid, pid_t tid) {
  const std::string call = slurp(task_path(pid, tid, "syscall"));
  if (call.empty() || call[0] < '0' || call[0] > '9') return false;  // "running"
  const long number = std::atol(call.c_str());
  return number == SYS_fcntl || number == SYS_flock;
}

std::vector<pid_t> threads_of(pid_t pid) {
  std::vector<pid_t> tids;
  const std::string path = "/proc/" + std::to_string(pid) + "/task";
  const std::unique_ptr<DIR, int (*)(DIR*)> dir{::opendir(path.c_str()), ::closedir};
  if (!dir) return tids;
  while (const dirent* entry = ::readdir(dir.get())) {
    if (entry->d_name[0] != '.') tids.push_back(std::atoi(entry->d_name));
  }
  return tids;
}

std::optional<std::vector<SleepingThread>> all_sleeping(pid_t pid) {
  std::vector<SleepingThread> threads;
  for (const pid_t tid : threads_of(pid)) {
    const std::optional<SleepingThread> thread = sleeping(pid, tid);
    if (!thread) return std::nullopt;
    threads.push_back(*thread);
  }
  return threads;
}

long status_value(pid_t pid, const char* name) {
  const std::string status = slurp("/proc/" + std::to_string(pid) + "/status");
  const std::string value{field(status, name)};
  return value.empty() ? -1 : std::atol(value.c_str());
}

void detail::poll_pause() { ::usleep(100); }

}  // namespace latchfs::locktest
