#include "base/fault_point.h"

#include <fcntl.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <map>
#include <mutex>
#include <string>

namespace latchfs {
namespace detail {
std::atomic<bool> g_faults_armed{false};
}  // namespace detail

namespace {

struct Fault {
  std::string hold_path;    // wait while this exists; empty: kill
  long passages_to_kill{};  // dies when it reaches 0
};

std::mutex g_mu;
std::atomic<FaultHook> g_hook{nullptr};
std::map<std::string, Fault>& faults() {
  static std::map<std::string, Fault> all;
  return all;
}

void parse_one(const std::string& item) {
  const auto eq = item.find('=');
  if (eq == std::string::npos) return;
  const std::string action = item.substr(eq + 1);
  Fault fault;
  if (action.rfind("kill@", 0) == 0) {
    fault.passages_to_kill = std::strtol(action.c_str() + 5, nullptr, 10);
  } else if (action.rfind("hold:", 0) == 0) {
    fault.hold_path = action.substr(5);
  } else {
    return;
  }
  faults()[item.substr(0, eq)] = fault;
}

[[maybe_unused]] const bool g_from_environment = [] {
  const char* spec = std::getenv("LATCHFS_FAULT");
  if (spec != nullptr && ::getuid() == ::geteuid()) arm_faults(spec);
  return true;
}();

}  // namespace

void arm_faults(const char* spec) {
  const std::lock_guard hold{g_mu};
  faults().clear();
  const std::string text{spec};
  for (std::size_t at = 0; at < text.size();) {
    const auto stop = std::min(text.find(';', at), text.size());
    parse_one(text.substr(at, stop - at));
    at = stop + 1;
  }
  detail::g_faults_armed.store(!faults().empty() || g_hook.load() != nullptr);
}

void hook_faults(FaultHook hook) {
  const std::lock_guard hold{g_mu};
  g_hook.store(hook);
  detail::g_faults_armed.store(!faults().empty() || hook != nullptr);
}

namespace detail {

void fault_point_slow(const char* name) noexcept {
  if (const FaultHook hook = g_hook.load()) hook(name);
  std::string hold_path;
  {
    const std::lock_guard hold{g_mu};
    const auto it = faults().find(name);
    if (it == faults().end()) return;
    hold_path = it->second.hold_path;
    if (hold_path.empty() && --it->second.passages_to_kill == 0) ::kill(::getpid(), SIGKILL);
  }
  if (!hold_path.empty()) {
    // A byte each, so that a test knows that somebody is held.
    const int gate = ::open(hold_path.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC);
    if (gate >= 0 && ::write(gate, "x", 1) < 0) hold_path.clear();
    if (gate >= 0) ::close(gate);
  }
  while (!hold_path.empty() && ::access(hold_path.c_str(), F_OK) == 0) ::usleep(1000);
}

}  // namespace detail
}  // namespace latchfs
