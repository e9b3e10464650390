#include "support/fs_exec.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csetjmp>
#include <cstdio>

namespace latchfs::fsdiff {
namespace {

constexpr int kNoSuchFd = 999;  // EBADF

// NOLINTNEXTLINE: a signal handler can reach nothing else
thread_local sigjmp_buf* g_on_sigbus = nullptr;

void on_sigbus(int number) {
  if (g_on_sigbus != nullptr) siglongjmp(*g_on_sigbus, 1);
  signal(number, SIG_DFL);
  raise(number);
}

}  // namespace

bool without_sigbus(void (*touch)(void*), void* argument) {
  sigjmp_buf back;
  if (sigsetjmp(back, 1) != 0) {
    g_on_sigbus = nullptr;
    return false;
  }
  g_on_sigbus = &back;
  touch(argument);
  g_on_sigbus = nullptr;
  return true;
}

Outcome answer(std::int64_t ret) {
  Outcome out;
  out.err = ret < 0 ? errno : 0;
  out.ret = ret;
  return out;
}

std::string digest(const char* data, std::size_t size) {
  std::uint64_t hash = 0xcbf29ce484222325u;
  for (std::size_t i = 0; i < size; ++i) {
    hash = (hash ^ static_cast<unsigned char>(data[i])) * 0x100000001b3u;
  }
  char head[64];
  std::snprintf(head, sizeof head, "%zu bytes %016llx ", size,
                static_cast<unsigned long long>(hash));
  return head + escape({data, size < 24 ? size : 24});
}

Executor::Executor(Sabotage sabotage) : sabotage_{sabotage} {
  slots_.fill(kNoSuchFd);
  struct sigaction action {};
  action.sa_handler = on_sigbus;
  sigaction(SIGBUS, &action, nullptr);
  signal(SIGXFSZ, SIG_IGN);
  signal(SIGPIPE, SIG_IGN);
  const rlimit none{0, 0};
  setrlimit(RLIMIT_CORE, &none);
}

Executor::~Executor() {
  for (pid_t child : children_) {
    if (child > 0) {
      kill(child, SIGKILL);
      waitpid(child, nullptr, 0);
    }
  }
}

int Executor::slot(int number) const {
  return number >= 0 && number < kSlots ? slots_.at(static_cast<std::size_t>(number)) : kNoSuchFd;
}

void Executor::fill(int number, int fd) {
  if (number < 0 || number >= kSlots) {
    close(fd);
    return;
  }
  int& place = slots_.at(static_cast<std::size_t>(number));
  if (place != kNoSuchFd) close(place);
  // Out of the way of kNoSuchFd and of the low numbers that the process itself uses.
  place = fcntl(fd, F_DUPFD_CLOEXEC, 100);
  close(fd);
}

Executor::At Executor::at(int mount, int dir, const std::string& path) const {
  if (dir >= 0) return {slot(dir), path};
  if (dir == kWorkingDir || path.empty() || path.front() == '/') return {AT_FDCWD, path};
  return {AT_FDCWD, "/m" + std::to_string(mount) + "/" + path};
}

Outcome Executor::run(const Op& op) {
  const Op done = sabotage_ == Sabotage::kNone ? op : spoil_before(op);
  Outcome out;
  if (done.call <= Call::kFileSize) {
    out = run_descriptor(done);
  } else if (done.call <= Call::kUnmap) {
    out = run_data(done);
  } else if (done.call <= Call::kList) {
    out = run_name(done);
  } else if (done.call <= Call::kIoctl) {
    out = run_attr(done);
  } else {
    out = run_program(done);
  }
  if (sabotage_ != Sabotage::kNone) spoil_after(op, out);
  return out;
}

Outcome Executor::run_descriptor(const Op& op) {
  switch (op.call) {
    case Call::kOpen: {
      At where = first(op);
      Outcome out =
          answer(openat(where.dir, where.c_str(), static_cast<int>(op.a) | O_CLOEXEC | O_NONBLOCK,
                        static_cast<mode_t>(op.b)));
      if (out.ret >= 0) {
        fill(op.fd, static_cast<int>(out.ret));
        out.ret = 0;
      }
      return out;
    }
    case Call::kClose: {
      Outcome out = answer(close(slot(op.fd)));
      if (out.ret == 0) slots_.at(static_cast<std::size_t>(op.fd)) = kNoSuchFd;
      return out;
    }
    case Call::kDup: {
      Outcome out = answer(fcntl(slot(op.fd), F_DUPFD_CLOEXEC, 100));
      if (out.ret >= 0) {
        fill(op.fd2, static_cast<int>(out.ret));
        out.ret = 0;
      }
      return out;
    }
    case Call::kSetfl:
      return answer(fcntl(slot(op.fd), F_SETFL, static_cast<int>(op.a) | O_NONBLOCK));
    case Call::kGetfl:
      return answer(fcntl(slot(op.fd), F_GETFL));
    case Call::kChdir: {
      At where = first(op);
      return answer(chdir(where.c_str()));
    }
    case Call::kFchdir:
      return answer(fchdir(slot(op.fd)));
    case Call::kUmask:
      return answer(umask(static_cast<mode_t>(op.a)));
    default: {
      rlimit limit{};
      getrlimit(RLIMIT_FSIZE, &limit);
      limit.rlim_cur = op.a == 0 ? limit.rlim_max : static_cast<rlim_t>(op.a);
      return answer(setrlimit(RLIMIT_FSIZE, &limit));
    }
  }
}

Outcome Executor::exec(const Op& op) {
  int report[2];
  if (pipe2(report, O_CLOEXEC) != 0) return answer(-1);
  const At where = first(op);
  const pid_t child = fork();
  if (child == 0) {
    char* const none[] = {nullptr};
    if (op.fd >= 0) {
      syscall(SYS_execveat, slot(op.fd), "", none, none, AT_EMPTY_PATH);
    } else {
      syscall(SYS_execveat, where.dir, where.c_str(), none, none, 0);
    }
    const int err = errno;
    if (write(report[1], &err, sizeof err) != sizeof err) _exit(1);
    _exit(0);
  }
  close(report[1]);
  int err = 0;
  const ssize_t got = read(report[0], &err, sizeof err);
  close(report[0]);
  Outcome out;
  if (got == sizeof err) {
    waitpid(child, nullptr, 0);
    out.ret = -1;
    out.err = err;
    return out;
  }
  out.ret = child;
  return out;
}

Outcome Executor::run_program(const Op& op) {
  switch (op.call) {
    case Call::kMakeProgram: {
      const At where = first(op);
      const int fd =
          openat(where.dir, where.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_NONBLOCK | O_CLOEXEC,
                 static_cast<mode_t>(op.a));
      if (fd < 0) return answer(-1);
      const std::string& image = program(op.b);
      Outcome out = answer(write(fd, image.data(), image.size()));
      if (out.err == 0) out = answer(fchmod(fd, static_cast<mode_t>(op.a)));
      close(fd);
      return out;
    }
    case Call::kExec: {
      Outcome out = exec(op);
      if (out.err != 0) return out;
      const auto child = static_cast<pid_t>(out.ret);
      int status = 0;
      waitpid(child, &status, 0);
      out.ret = status;
      return out;
    }
    case Call::kSpawn: {
      pid_t& place = children_.at(static_cast<std::size_t>(op.d));
      if (place > 0) return {};
      Outcome out = exec(op);
      if (out.err != 0) return out;
      place = static_cast<pid_t>(out.ret);
      out.ret = 0;
      return out;
    }
    default: {
      pid_t& place = children_.at(static_cast<std::size_t>(op.d));
      if (place <= 0) return {};
      kill(place, SIGKILL);
      waitpid(place, nullptr, 0);
      place = 0;
      return {};
    }
  }
}

}  // namespace latchfs::fsdiff
