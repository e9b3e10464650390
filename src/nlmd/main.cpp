// latchfs-nlm: reads the command line, joins the lock table, serves. Names the concrete store.
#include <fcntl.h>
#include <fmt/core.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <variant>
#include <vector>

#include "base/log.h"
#include "base/mutex.h"
#include "base/seldom.h"
#include "base/unique_fd.h"
#include "daemon/launcher.h"
#include "daemon/process_limits.h"
#include "daemon/signals.h"
#include "nlm/mount_files.h"
#include "nlm/net_outside.h"
#include "nlm/registration.h"
#include "nlm/service.h"
#include "nlmd/options.h"
#include "store/shm/shm_store.h"

namespace latchfs::nlmd {
namespace {

constexpr int kExitFailure = 1;
constexpr int kExitUsage = 2;
constexpr std::int64_t kSecond = 1'000'000'000;
constexpr std::chrono::seconds kLongestEnd{30};
// For our place with rpcbind, and again when it is not ours: after as long as lockd may need for
// all its steps on a busy machine, since what comes between fails it.
constexpr std::chrono::seconds kLook{1};
constexpr const char* kProgram = "latchfs-nlm";

int refuse(int status, const std::string& message) {
  std::fprintf(stderr, "%s: %s\n", kProgram, message.c_str());
  return status;
}

// The state directory, ours alone as long as the descriptor lives. EPERM: others can write to it;
// EWOULDBLOCK: somebody has it.
Result<UniqueFd> hold_state_dir(const std::filesystem::path& path) {
  std::error_code error;
  std::filesystem::create_directories(path.parent_path(), error);
  if (error) return error;
  if (::mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) return last_errno();
  UniqueFd held{::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
  struct stat st {};
  if (!held || ::fstat(held.get(), &st) != 0) return last_errno();
  if (st.st_uid != ::geteuid() || (st.st_mode & (S_IWGRP | S_IWOTH)) != 0) {
    return errno_code(EPERM);
  }
  if (::flock(held.get(), LOCK_EX | LOCK_NB) != 0) return last_errno();
  return held;
}

nlm::Service::Options service_options(const Options& o) {
  nlm::Service::Options out;
  bool loopback = false;
  for (const std::string& address : o.listen) {
    const auto endpoint = nlm::Endpoint::parse(address, 0);
    // Which of several answers a call of statd's does not matter; that none does would.
    loopback |= endpoint && endpoint->family() == AF_INET &&
                (endpoint->any() || endpoint->address() == "127.0.0.1");
    out.server.listen.push_back({address, false});
  }
  if (o.statd && !loopback) out.server.listen.push_back({"127.0.0.1", true});
  out.server.port = o.port;
  out.server.allow = o.allow;
  out.dispatcher.insecure_ports = o.insecure_ports;
  out.dispatcher.root_squash = o.root_squash;
  out.dispatcher.anonymous_uid = o.anonymous_uid;
  out.dispatcher.anonymous_gid = o.anonymous_gid;
  out.desk.grace_ns = o.grace * kSecond;
  out.desk.grant_patience_ns = o.grant_patience * kSecond;
  out.monitor.statd = o.statd;
  out.monitor.state_dir = o.state_dir;
  std::string name(256, '\0');
  if (::gethostname(name.data(), name.size() - 1) != 0) name.clear();
  out.monitor.own_name = name.c_str();
  return out;
}

std::vector<std::string> netids(const Options& o) {
  bool four = false;
  bool six = false;
  for (const std::string& address : o.listen) {
    const auto endpoint = nlm::Endpoint::parse(address, 0);
    (endpoint && endpoint->family() == AF_INET6 ? six : four) = true;
  }
  std::vector<std::string> out;
  if (four) {
    out = {"udp", "tcp"};
  } else if (o.statd) {
    // statd asks for this one, whoever is served, and calls 127.0.0.1, where it alone is heard.
    out = {"udp"};
  }
  if (six) out.insert(out.end(), {"udp6", "tcp6"});
  return out;
}

// Until one of the signals that end us.
class Stop {
 public:
  void ask() EXCLUDES(mu_) {
    const MutexLock hold{mu_};
    asked_ = true;
    changed_.notify_all();
  }
  // True: it was asked for, within `time`.
  bool wait_for(std::chrono::nanoseconds time) EXCLUDES(mu_) {
    const MutexLock hold{mu_};
    if (!asked_) changed_.wait_for(mu_, time);
    return asked_;
  }

 private:
  Mutex mu_;
  CondVar changed_;
  bool asked_ GUARDED_BY(mu_){false};
};

// One request, or one file to close, that a mount holds up for ever holds up the end as well. Then
// it goes without: the table's other users find the locks of a dead process and give them back.
void end_soon_whatever_happens() {
  static std::once_flag once;
  std::call_once(once, [] {
    std::thread{[] {
      std::this_thread::sleep_for(kLongestEnd);
      log::warn("something that does not answer holds up the end: ending without it");
      ::_exit(kExitFailure);
    }}.detach();
  });
}

void keep(nlm::Registration& registration) {
  static Seldom complained{600 * kSecond};
  const auto kept = registration.keep();
  if (!kept) {
    if (complained.due()) log::warn("our place with rpcbind: {}", kept.error().message());
    return;
  }
  if (*kept == nlm::Registration::Kept::kTakenBack) {
    const std::string before = registration.before();
    log::info("our place with rpcbind is taken back from {}",
              before.empty() ? "nobody" : log::printable(before));
  }
}

// Everything after the fork. What it says before it serves goes through the launcher.
int serve(const Options& o, daemon::Launcher& launcher) {
  daemon::block_stop_signals();
  const std::string target = !o.log.empty() ? o.log : o.foreground ? "stderr" : "syslog";
  const auto fail = [&](const std::string& line) {
    launcher.failed(line);
    return kExitFailure;
  };
  if (const auto opened = log::open(target, o.log_level); !opened) {
    return fail(fmt::format("log '{}': {}", target, opened.error().message()));
  }
  static_cast<void>(daemon::raise_open_files());
  const auto state = hold_state_dir(o.state_dir);
  if (!state) {
    return fail(state.error() == errno_code(EWOULDBLOCK)
                    ? fmt::format("another latchfs-nlm uses '{}'", o.state_dir)
                    : fmt::format("'{}': {}", o.state_dir, state.error().message()));
  }

  // Destroyed in the opposite order: the service before the store, the store before its sink.
  nlm::Waits waits;
  ShmStore::Options store_options;
  store_options.table = o.table;
  store_options.source = kProgram;
  store_options.is_service = true;
  if (o.max_locks_per_user) store_options.max_locks_per_user = *o.max_locks_per_user;
  const auto store = ShmStore::attach(store_options, waits);
  if (!store) {
    return fail(fmt::format("lock table '{}': {}", o.table, store.error().message()));
  }
  nlm::MountFiles files{{o.exports, o.table, o.insecure_locks}};
  nlm::NetOutside outside;
  auto service = nlm::Service::open(service_options(o), **store, waits, files, outside);
  if (!service) {
    return fail(fmt::format("the sockets: {}", service.error().message()));
  }
  Stop stop;
  const auto signals = daemon::StopSignals::watch([&](int sig) {
    log::info("signal {}: ending", sig);
    end_soon_whatever_happens();
    stop.ask();
  });
  if (!signals) return fail("signalfd: " + signals.error().message());

  std::optional<nlm::Registration> registration;
  if (o.take_lockds_place) {
    auto taken =
        nlm::Registration::take(netids(o), (*service)->port(), o.state_dir + "/registered");
    if (!taken) {
      return fail(
          taken.error() == errno_code(ENOTCONN)
              ? "rpcbind does not answer: is it running?"
              : fmt::format("rpcbind does not let us register: {}", taken.error().message()));
    }
    registration.emplace(std::move(*taken));
    if (const std::string before = registration->before(); !before.empty()) {
      log::info("program {} version {} was registered before: {}", nlm::kNlmProgram,
                nlm::kNlmVersion, log::printable(before));
    }
  }
  try {
    (*service)->start();
  } catch (const std::exception& e) {
    return fail(e.what());
  }
  log::info("serving at port {}, table {}, {} s of grace", (*service)->port(), o.table, o.grace);
  if (o.foreground) {
    // For whoever started us with port 0.
    std::printf("port %u\n", static_cast<unsigned>((*service)->port()));
    std::fflush(stdout);
  }
  const bool wanted = launcher.ready();
  if (!wanted) end_soon_whatever_happens();
  while (wanted && !stop.wait_for(kLook)) {
    if (registration) keep(*registration);
  }
  registration.reset();
  (*service)->stop();
  log::info("ended");
  return EXIT_SUCCESS;
}

int run(const std::vector<std::string>& args) {
  const Parsed parsed = parse_options(args);
  if (std::holds_alternative<Help>(parsed)) {
    std::fputs(usage_text().c_str(), stdout);
    return EXIT_SUCCESS;
  }
  if (std::holds_alternative<Version>(parsed)) {
    std::printf("%s %s\n", kProgram, LATCHFS_VERSION);
    return EXIT_SUCCESS;
  }
  if (const auto* error = std::get_if<UsageError>(&parsed)) {
    return refuse(kExitUsage, error->message + " (latchfs-nlm --help tells more)");
  }
  const Options& o = std::get<Options>(parsed);
  if (::geteuid() != 0) {
    return refuse(kExitFailure, "must run as root: it opens files by handle, as their users");
  }
  auto launcher = daemon::Launcher::start(!o.foreground, kProgram);
  if (!launcher) return refuse(kExitFailure, "cannot start: " + launcher.error().message());
  return serve(o, *launcher);
}

}  // namespace
}  // namespace latchfs::nlmd

int main(int argc, char** argv) {
  latchfs::daemon::hold_closed_streams();
  try {
    return latchfs::nlmd::run({argv + (argc > 0 ? 1 : 0), argv + argc});
  } catch (const std::exception& e) {
    std::fprintf(stderr, "latchfs-nlm: %s\n", e.what());
    return 1;
  }
}
