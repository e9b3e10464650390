// latchfs SOURCE MOUNTPOINT: reads the command line, wires the rooms together, serves.
// The only file that names a concrete lock store.
#include <fmt/core.h>
#include <grp.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "base/log.h"
#include "daemon/export_check.h"
#include "daemon/launcher.h"
#include "daemon/mount_config.h"
#include "daemon/options.h"
#include "daemon/places.h"
#include "daemon/process_limits.h"
#include "daemon/signals.h"
#include "fuse/mount.h"
#include "fuse/parking_lot.h"
#include "store/shm/layout.h"
#include "store/shm/shm_store.h"

namespace latchfs::daemon {
namespace {

constexpr int kExitFailure = 1;
constexpr int kExitUsage = 2;

std::optional<gid_t> group_by_name(const std::string& name) {
  const struct group* found = ::getgrnam(name.c_str());
  if (found == nullptr) return std::nullopt;
  return found->gr_gid;
}

Environment this_machine() {
  std::string hostname(256, '\0');
  if (::gethostname(hostname.data(), hostname.size() - 1) != 0) hostname.clear();
  hostname.resize(hostname.find('\0') == std::string::npos ? 0 : hostname.find('\0'));
  return {group_by_name, hostname, shm::kMinRegion, shm::kMaxRegion, ::geteuid() == 0};
}

int refuse(int status, const std::string& message) {
  std::fprintf(stderr, "latchfs: %s\n", message.c_str());
  return status;
}

// What a failed attach means to the person who mounts.
std::string explain_attach(std::error_code error, const std::string& table) {
  std::string why = error.message();
  if (error == errno_code(EPROTO)) {
    why = fmt::format(
        "it is in use by another version of latchfs ({}); end those mounts first or use -o "
        "table=NAME",
        ShmStore::formats(table));
  } else if (error == errno_code(ENOENT)) {
    why = "it is in use, but its memory was removed from /dev/shm; end all mounts that use it";
  } else if (error == errno_code(EIO)) {
    why = "it is in use and damaged; end all mounts that use it";
  } else if (error == errno_code(EUSERS)) {
    why = "too many mounts use it";
  } else if (error == errno_code(EPERM)) {
    why = "its directory can be written by others";
  }
  return fmt::format("lock table '{}': {}", table, why);
}

Result<std::unique_ptr<ShmStore>> attach(const Options& o, const Places& places, GrantSink& sink) {
  ShmStore::Options options;
  options.table = o.table;
  if (o.table_max) options.table_max = *o.table_max;
  if (o.max_locks_per_user) options.max_locks_per_user = *o.max_locks_per_user;
  const fuse::Timeouts believed = timeouts(o);
  options.believes_ms = static_cast<std::uint32_t>(
      1000 * std::max({believed.entry, believed.attr, believed.negative}));
  options.source = places.source_path;
  options.mountpoint = places.mountpoint;
  return ShmStore::attach(options, sink);
}

// Once, while there is one thread.
void set_limits(Launcher& launcher) {
  const std::uint64_t files = raise_open_files();
  raise_file_size();
  if (const auto dropped = drop_sys_resource(); !dropped) {
    launcher.warn("CAP_SYS_RESOURCE could not be dropped: " + dropped.error().message());
  }
  if (const auto warning = request_timeout_warning("/proc/sys/fs/fuse")) {
    launcher.warn(*warning);
    log::warn("{}", *warning);
  }
  log::debug("at most {} open files", files);
}

// Once, when the mount is made: exports change without us, but what is off is off from the start.
void warn_of_exports(const Options& o, const std::string& mountpoint, Launcher& launcher) {
  const ExportSetting setting{mountpoint, o.enforce == Enforce::kMandatory,
                              leases_enabled("/proc")};
  for (const std::string& line : export_warnings(read_exports("/etc"), setting)) {
    launcher.warn(line);
    log::warn("{}", line);
  }
}

// Everything after the fork. What it says before the mount answers goes through the launcher.
int serve(const Options& o, Places places, Launcher& launcher) {
  block_stop_signals();
  const std::string target = !o.log.empty() ? o.log : o.foreground ? "stderr" : "syslog";
  if (const auto opened = log::open(target, o.log_level); !opened) {
    launcher.failed(fmt::format("log '{}': {}", target, opened.error().message()));
    return kExitFailure;
  }
  set_limits(launcher);
  warn_of_exports(o, places.mountpoint, launcher);

  // Destroyed in the opposite order: the mount before the store, the store before its sink.
  fuse::ParkingLot parked;
  const auto store = attach(o, places, parked);
  if (!store) {
    launcher.failed(explain_attach(store.error(), o.table));
    return kExitFailure;
  }

  if (const std::uint32_t ms = (*store)->others_believe_ms(); ms != 0) {
    // And what a thread of theirs was about to say when we joined.
    constexpr std::uint32_t kOnItsWayMs = 500;
    log::info("another mount's kernel may believe what it knows for {} ms more: waiting", ms);
    if (!wait_unless_stopped(std::chrono::milliseconds{ms + kOnItsWayMs})) {
      launcher.failed("interrupted");
      return kExitFailure;
    }
  }

  std::atomic<fuse::FuseMount*> running{nullptr};
  fuse::MountConfig config = mount_config(o, std::move(places), LATCHFS_VERSION);
  const std::string where = config.mountpoint;
  config.on_ready = [&](Result<void> answer) {
    if (!answer) {
      launcher.failed("the mount does not answer: " + answer.error().message());
    } else if (launcher.ready()) {
      log::info("mounted at {}, table {}", log::printable(where), o.table);
      return;
    }
    running.load()->stop();
  };
  std::string why;
  auto mount = fuse::FuseMount::create(std::move(config), **store, **store, parked, why);
  if (!mount) {
    launcher.failed(why);
    return kExitFailure;
  }
  running = mount->get();
  const auto signals = StopSignals::watch([&](int sig) {
    log::info("signal {}: unmounting", sig);
    running.load()->stop();
  });
  if (!signals) {
    launcher.failed("signalfd: " + signals.error().message());
    return kExitFailure;
  }
  const int err = (*mount)->run();
  if (err != 0) {
    log::error("{}: {}", log::printable(where), errno_code(err).message());
    launcher.failed(errno_code(err).message());
    return kExitFailure;
  }
  log::info("unmounted {}", log::printable(where));
  return EXIT_SUCCESS;
}

int run(const std::vector<std::string>& args) {
  const Parsed parsed = parse_options(args, this_machine());
  if (std::holds_alternative<Help>(parsed)) {
    std::fputs(usage_text().c_str(), stdout);
    return EXIT_SUCCESS;
  }
  if (std::holds_alternative<Version>(parsed)) {
    std::printf("latchfs %s\n", LATCHFS_VERSION);
    return EXIT_SUCCESS;
  }
  if (const auto* error = std::get_if<UsageError>(&parsed)) {
    return refuse(kExitUsage, error->message + " (latchfs --help tells more)");
  }
  const Options& o = std::get<Options>(parsed);
  auto places = open_places(o.source, o.mountpoint);
  if (const auto* error = std::get_if<PlaceError>(&places)) {
    return refuse(kExitFailure, error->message);
  }
  auto launcher = Launcher::start(!o.foreground);
  if (!launcher) return refuse(kExitFailure, "cannot start: " + launcher.error().message());
  return serve(o, std::move(std::get<Places>(places)), *launcher);
}

}  // namespace
}  // namespace latchfs::daemon

int main(int argc, char** argv) {
  latchfs::daemon::hold_closed_streams();
  try {
    return latchfs::daemon::run({argv + (argc > 0 ? 1 : 0), argv + argc});
  } catch (const std::exception& e) {
    std::fprintf(stderr, "latchfs: %s\n", e.what());
    return 1;
  }
}
