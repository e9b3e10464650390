#include "fuse/mount.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/resource.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <utility>

#include "base/log.h"
#include "base/mutex.h"
#include "fuse/file_system.h"
#include "fuse/mount_flags.h"
#include "fuse/ops.h"
#include "posix/sys.h"

namespace latchfs::fuse {
namespace {

// Interrupts the loop's sem_wait(); does nothing else.
int wake_signal() { return SIGRTMIN + 3; }

// What libfuse last complained of in this thread, for `why`: a whole line.
thread_local std::string t_complaint;
// The line it is at: some come in pieces.
thread_local std::string t_pieces;

void log_from_libfuse(enum fuse_log_level level, const char* format, va_list args) {
  char line[1024];
  const int size = std::vsnprintf(line, sizeof line, format, args);
  if (size < 0) return;
  t_pieces += line;
  if (t_pieces.empty() || t_pieces.back() != '\n') return;
  std::string text = std::exchange(t_pieces, {});
  while (!text.empty() && text.back() == '\n') text.pop_back();
  if (level <= FUSE_LOG_ERR) {
    t_complaint = text.rfind("fuse: ", 0) == 0 ? text.substr(6) : text;
    log::error("libfuse: {}", log::printable(text));
  } else if (level <= FUSE_LOG_WARNING) {
    log::warn("libfuse: {}", log::printable(text));
  } else {
    log::debug("libfuse: {}", log::printable(text));
  }
}

// What the mount that SOURCE lies on forbids, the mount on top must not allow. Beyond that root's
// mount is like a bind mount (and like what mount(8) asks mount.fuse3 for): set-ID bits and device
// files count. libfuse alone would say nosuid and nodev.
void add_security_options(const MountConfig& config, std::vector<std::string>& all) {
  struct statvfs sv {};
  if (::fstatvfs(config.source.get(), &sv) != 0) sv.f_flag = ST_NOSUID | ST_NODEV;
  const auto choose = [&](unsigned long forbidden, const char* yes, const char* no) {
    if ((sv.f_flag & forbidden) != 0) {
      all.erase(std::remove(all.begin(), all.end(), yes), all.end());
      all.emplace_back(no);
    } else if (::geteuid() == 0 && !has_option(all, no) && !has_option(all, yes)) {
      all.emplace_back(yes);
    }
  };
  choose(ST_NOSUID, "suid", "nosuid");
  choose(ST_NODEV, "dev", "nodev");
  choose(ST_NOEXEC, "exec", "noexec");
}

std::vector<std::string> complete_options(const MountConfig& config) {
  std::vector<std::string> all = config.options;
  add_security_options(config, all);
  const auto add = [&all](std::string_view name, const std::string& option) {
    if (!has_option(all, name)) all.push_back(option);
  };
  add("default_permissions", "default_permissions");
  if (::geteuid() == 0 && !has_option(all, "allow_root")) add("allow_other", "allow_other");
  add("subtype", "subtype=latchfs");
  if (!config.source_path.empty()) add("fsname", "fsname=" + config.source_path);
  return all;
}

// "-o a,b=c" with commas and backslashes escaped as libfuse wants them.
struct OptionList {
  explicit OptionList(const std::vector<std::string>& options) {
    for (const std::string& option : options) {
      if (::fuse_opt_add_opt_escaped(&text, option.c_str()) != 0) throw std::bad_alloc{};
    }
  }
  ~OptionList() { std::free(text); }
  OptionList(const OptionList&) = delete;
  OptionList& operator=(const OptionList&) = delete;
  char* text{};
};

struct Args {
  fuse_args raw = FUSE_ARGS_INIT(0, nullptr);
  Args() = default;
  ~Args() { ::fuse_opt_free_args(&raw); }
  Args(const Args&) = delete;
  Args& operator=(const Args&) = delete;
  void add(const char* arg) {
    if (::fuse_opt_add_arg(&raw, arg) != 0) throw std::bad_alloc{};
  }
};

void raise_open_files() {
  struct rlimit limit {};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == limit.rlim_max) return;
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);
}

void install_wake_handler() {
  struct sigaction action {};
  action.sa_handler = [](int) {};  // no SA_RESTART: interrupting is the point
  ::sigaction(wake_signal(), &action, nullptr);
  sigset_t set;
  ::sigemptyset(&set);
  ::sigaddset(&set, wake_signal());
  ::pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
}

// 0, or an errno. Async-signal-safe; bare system calls, since a sanitizer's would take locks.
int ask(const char* mountpoint) noexcept {
  // O_PATH: he who mounts a directory need not be allowed to read it.
  const long fd = ::syscall(SYS_openat, AT_FDCWD, mountpoint, O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
  if (fd < 0) return errno;
  constexpr decltype(statfs::f_type) kFuseMagic = 0x65735546;
  struct statfs sf {};
  if (::syscall(SYS_fstatfs, fd, &sf) != 0) return errno;
  return sf.f_type == kFuseMagic ? 0 : ENOTCONN;
}

// Asks the mount something only a running session answers. By a process of its own, which holds
// nothing of the session: the kernel has a killed process wait for an answer that it should give
// itself, and ends that only when the last descriptor of the session goes, or the last mapping of a
// ring (fs/fuse/dev.c request_wait_answer()); so neither the daemon nor the mount would ever end.
Result<void> wait_until_it_answers(const std::string& mountpoint) {
  const char* const path = mountpoint.c_str();
  const pid_t child = ::_Fork();  // runs no handlers, and the child calls what a signal handler may
  if (child < 0) return last_errno();
  if (child == 0) {
    constexpr unsigned kFirst = STDERR_FILENO + 1;
    ::syscall(SYS_close_range, kFirst, ~0U, 0);
    ::syscall(SYS_exit_group, ask(path));
  }
  int status = 0;
  while (::waitpid(child, &status, 0) < 0) {
    if (errno != EINTR) return last_errno();
  }
  if (!WIFEXITED(status)) return errno_code(ECANCELED);
  return WEXITSTATUS(status) == 0 ? Result<void>{} : errno_code(WEXITSTATUS(status));
}

// Whether the kernel has let go of the session already: unmounted by others, or aborted.
bool is_over(fuse_session* session) noexcept {
  struct pollfd device {
    ::fuse_session_fd(session), 0, 0
  };
  return ::poll(&device, 1, 0) == 1 && (device.revents & POLLERR) != 0;
}

// What is mounted on top at a path, without asking that file system.
Result<dev_t> mounted_at(const std::string& mountpoint) {
  const UniqueFd top{::open(mountpoint.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC)};
  if (!top) return last_errno();
  return posix::device_of(top.get());
}

// Before config.source is given away.
transport::Wanted wanted_of_kernel(const MountConfig& config) {
  transport::Wanted wanted;
  // Asked for in vain it would cost: nothing more could be stacked on the mount.
  wanted.passthrough = config.data_mode == DataMode::kAuto && !config.mandatory &&
                       ::geteuid() == 0 && BackingFiles::suits(config.source.get());
  wanted.direct_mmap = !config.mandatory;
  wanted.rings = config.rings;
  // When all of them are busy, the requests of that CPU wait: docs/adr/0011.
  wanted.workers = std::max(2U, 2 * config.threads);
  return wanted;
}

}  // namespace

struct FuseMount::Impl {
  Impl(MountConfig config, transport::Wanted wanted, std::unique_ptr<posix::InodeTable> inodes,
       LockService& locks, ChangeGate& gate, ParkingLot& lot)
      : fs{std::move(config), wanted, std::move(inodes), locks, gate, lot} {}
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;
  ~Impl() { end(); }

  // False: the mount is still there, without a daemon.
  bool end() noexcept {
    if (session == nullptr) return true;
    fs.quiesce();
    fs.filelocks.stop();
    fs.locks.shutdown();
    fs.backing.close_all();
    fs.detach();
    const bool ours = !mounted || is_over(session) || is_on_top();
    if (ours) {
      // Unmounting goes by path, and lazily: it takes what is on top there, with all that is in it.
      if (mounted) ::fuse_session_unmount(session);
      ::fuse_session_destroy(session);
    } else {
      // Closing the device ends the connection. The session stays until the process ends: libfuse
      // frees its parts by unmounting only.
      static fuse_session* left_mounted;
      left_mounted = session;
      ::close(::fuse_session_fd(left_mounted));
    }
    session = nullptr;
    return ours;
  }

  [[nodiscard]] bool is_on_top() const noexcept {
    try {
      const auto dev = mounted_at(fs.config.mountpoint);
      if (dev && device && *dev == *device) return true;
      log::error(
          "{} shows another mount than this one, which is left alone; if this one is below it, it "
          "answers no more and wants an umount of its own",
          log::printable(fs.config.mountpoint));
    } catch (...) {
      // No memory to ask or to say so: as if it were another's.
    }
    return false;
  }

  FileSystem fs;
  fuse_session* session{};
  bool mounted{};
  std::optional<dev_t> device;  // of the mount

  Mutex stop_mu_;  // leaf
  bool stopping GUARDED_BY(stop_mu_){};
  bool looping GUARDED_BY(stop_mu_){};
  pthread_t loop_thread GUARDED_BY(stop_mu_){};
};

FuseMount::FuseMount(std::unique_ptr<Impl> impl) : impl_{std::move(impl)} {}
FuseMount::~FuseMount() = default;

Result<std::unique_ptr<FuseMount>> FuseMount::create(MountConfig config, LockService& locks,
                                                     ChangeGate& gate, ParkingLot& lot,
                                                     std::string& why) {
  const auto fail = [&why](const std::string& text, std::error_code error) {
    why = text;
    return error;
  };
  ::fuse_set_log_func(log_from_libfuse);
  raise_open_files();
  if (posix::self_fds() < 0) return fail("/proc is not mounted", last_errno());
  const std::string mountpoint = config.mountpoint;
  posix::InodeTable::Options table_options;
  table_options.use_handles = config.use_handles;
  table_options.state = config.state_directory;
  const std::vector<std::string> asked = complete_options(config);
  const OptionList options{for_libfuse(asked)};
  UniqueFd covered{::open(mountpoint.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC)};
  const transport::Wanted wanted = wanted_of_kernel(config);
  auto inodes = posix::InodeTable::create(std::move(config.source), table_options);
  if (!inodes) {
    return fail("cannot use " + config.source_path + ": " + inodes.error().message(),
                inodes.error());
  }
  auto impl =
      std::make_unique<Impl>(std::move(config), wanted, std::move(*inodes), locks, gate, lot);
  Args args;
  args.add("latchfs");
  args.add("-o");
  args.add(options.text);
  t_complaint.clear();
  impl->session = ::fuse_session_new(&args.raw, &operations(), sizeof operations(),
                                     static_cast<transport::Channel*>(&impl->fs));
  if (impl->session == nullptr) {
    return fail("libfuse refuses the mount options " + std::string{options.text} +
                    (t_complaint.empty() ? "" : ": " + t_complaint),
                errno_code(EINVAL));
  }
  impl->fs.forget_attributes = [session = impl->session](std::uint64_t node) {
    // Attributes only (offset -1); of the pages see op_attr.cpp. ENOENT: nothing cached.
    ::fuse_lowlevel_notify_inval_inode(session, node, -1, 0);
  };
  impl->fs.filelocks.refresh_by(impl->fs.forget_attributes);
  impl->fs.locks.refresh_by([&fs = impl->fs](std::uint64_t node) {
    if (fs.page_cached()) fs.forget_attributes(node);
  });
  errno = 0;
  if (::fuse_session_mount(impl->session, mountpoint.c_str()) != 0) {
    const int err = errno != 0 ? errno : EIO;
    return fail(
        t_complaint.empty() ? "cannot mount at " + mountpoint : mountpoint + ": " + t_complaint,
        errno_code(err));
  }
  impl->mounted = true;
  if (const auto attached = impl->fs.attach(impl->session, ::fuse_session_fd(impl->session));
      !attached) {
    return fail("cannot serve " + mountpoint, attached.error());
  }
  // (Not asking the file system: nobody would answer yet.)
  if (const auto dev = mounted_at(mountpoint)) {
    impl->device = *dev;
    impl->fs.inodes->set_own_mount(*dev, std::move(covered));
  }
  if (const auto settled = settle_flags(mountpoint, asked); !settled) {
    return fail("mount options of " + mountpoint + ": " + settled.error().message(),
                settled.error());
  }
  return std::unique_ptr<FuseMount>{new FuseMount{std::move(impl)}};
}

int FuseMount::run() {
  Impl& impl = *impl_;
  install_wake_handler();
  ::signal(SIGPIPE, SIG_IGN);  // a control client or the log's pipe may go away
  ::signal(SIGIO, SIG_IGN);    // posix::has_no_writer()
  impl.fs.filelocks.start();
  {
    const MutexLock hold{impl.stop_mu_};
    impl.loop_thread = ::pthread_self();
    impl.looping = true;
    if (impl.stopping) ::fuse_session_exit(impl.session);
  }
  std::thread announcer;
  if (impl.fs.config.on_ready) {
    announcer = std::thread{[&impl] {
      const auto answers = wait_until_it_answers(impl.fs.config.mountpoint);
      if (answers) {
        const control::Serving serving = impl.fs.serving();
        log::info("transport {}, io {}", serving.transport, serving.io);
      }
      impl.fs.config.on_ready(answers);
    }};
  }

  fuse_loop_config* loop = ::fuse_loop_cfg_create();
  ::fuse_loop_cfg_set_clone_fd(loop, 1);
  ::fuse_loop_cfg_set_max_threads(loop, std::max(2U, impl.fs.config.threads));
  ::fuse_loop_cfg_set_idle_threads(loop, std::max(2U, impl.fs.config.threads));
  const int result = ::fuse_session_loop_mt(impl.session, loop);
  ::fuse_loop_cfg_destroy(loop);
  {
    const MutexLock hold{impl.stop_mu_};
    impl.looping = false;
  }
  const bool unmounted = impl.end();  // ends what the announcer may still wait for
  if (announcer.joinable()) announcer.join();
  if (result < 0) return -result;
  return unmounted ? 0 : EBUSY;
}

void FuseMount::stop() noexcept {
  Impl& impl = *impl_;
  impl.fs.filelocks.refuse_all();
  for (bool first = true;; first = false) {
    {
      const MutexLock hold{impl.stop_mu_};
      impl.stopping = true;
      if (!impl.looping) return;  // before the loop: run() sees it; after: done
      if (first) ::fuse_session_exit(impl.session);
      // The loop tests the flag and then sleeps: a wake-up between the two is lost, so again.
      ::pthread_kill(impl.loop_thread, wake_signal());
    }
    std::this_thread::sleep_for(std::chrono::milliseconds{20});
  }
}

}  // namespace latchfs::fuse
