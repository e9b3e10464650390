#include "support/lock_children.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <exception>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <utility>

#include "support/lock_proc.h"
#include "support/lock_table_view.h"

namespace latchfs::locktest {
namespace {

[[noreturn]] void run_child(const std::function<int()>& body) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  int status = 1;
  try {
    status = body();
  } catch (const std::exception& e) {
    ::dprintf(STDERR_FILENO, "child %d: %s\n", ::getpid(), e.what());
  }
  ::_exit(status);
}

int byte_range(int fd, int cmd, int type, off_t start, off_t len) {
  struct flock lock {};
  lock.l_type = static_cast<short>(type);
  lock.l_whence = SEEK_SET;
  lock.l_start = start;
  lock.l_len = len;
  return ::fcntl(fd, cmd, &lock) == 0 ? 0 : errno;
}

int lock_call(int fd, LockType type, bool wait, bool exclusive, off_t start, off_t len) {
  if (type == LockType::kFlock) {
    const int mode = (exclusive ? LOCK_EX : LOCK_SH) | (wait ? 0 : LOCK_NB);
    return ::flock(fd, mode) == 0 ? 0 : errno;
  }
  const bool posix = type == LockType::kPosix;
  const int cmd = wait ? (posix ? F_SETLKW : F_OFD_SETLKW) : (posix ? F_SETLK : F_OFD_SETLK);
  return byte_range(fd, cmd, exclusive ? F_WRLCK : F_RDLCK, start, len);
}

}  // namespace

Child::Child(const std::function<int()>& body) {
  pid_ = ::fork();
  if (pid_ < 0) throw std::runtime_error(std::string{"fork: "} + std::strerror(errno));
  if (pid_ == 0) run_child(body);
  pidfd_.reset(static_cast<int>(::syscall(SYS_pidfd_open, pid_, 0)));
}

Child::Child(Child&& o) noexcept
    : pid_{std::exchange(o.pid_, -1)}, pidfd_{std::move(o.pidfd_)}, status_{o.status_} {}

Child& Child::operator=(Child&& o) noexcept {
  std::swap(pid_, o.pid_);
  std::swap(pidfd_, o.pidfd_);
  std::swap(status_, o.status_);
  return *this;
}

Child::~Child() {
  if (pid_ > 0 && !status_) static_cast<void>(kill());
}

void Child::signal(int number) const {
  if (pid_ > 0 && !status_) ::kill(pid_, number);
}

bool Child::kill() {
  signal(SIGKILL);
  return wait().has_value();
}

std::optional<int> Child::wait() {
  if (status_ || pid_ <= 0) return status_;
  pollfd p{pidfd_.get(), POLLIN, 0};
  const auto limit = std::chrono::milliseconds{hung_after()}.count();
  if (::poll(&p, 1, static_cast<int>(limit)) == 1) static_cast<void>(ended());
  return status_;
}

bool Child::ended() {
  int status{};
  if (!status_ && pid_ > 0 && ::waitpid(pid_, &status, WNOHANG) == pid_) status_ = status;
  return status_.has_value();
}

bool exited_well(std::optional<int> status) {
  return status && WIFEXITED(*status) && WEXITSTATUS(*status) == 0;
}

const char* name_of(LockType type) {
  switch (type) {
    case LockType::kPosix:
      return "posix";
    case LockType::kOfd:
      return "ofd";
    case LockType::kFlock:
      return "flock";
  }
  return "?";
}

int lock_now(int fd, LockType type, bool exclusive, off_t start, off_t len) {
  return lock_call(fd, type, false, exclusive, start, len);
}

int lock_waiting(int fd, LockType type, bool exclusive, off_t start, off_t len) {
  return lock_call(fd, type, true, exclusive, start, len);
}

int unlock(int fd, LockType type, off_t start, off_t len) {
  if (type == LockType::kFlock) return ::flock(fd, LOCK_UN) == 0 ? 0 : errno;
  return byte_range(fd, type == LockType::kPosix ? F_SETLK : F_OFD_SETLK, F_UNLCK, start, len);
}

UniqueFd open_file(const std::string& path) {
  UniqueFd fd{::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666)};
  if (!fd) throw std::runtime_error(path + ": " + std::strerror(errno));
  return fd;
}

void handle_user_signals() {
  struct sigaction act {};
  act.sa_handler = [](int) {};
  ::sigaction(SIGUSR1, &act, nullptr);
  act.sa_flags = SA_RESTART;
  ::sigaction(SIGUSR2, &act, nullptr);
}

std::string table_left(const std::string& mount) {
  std::string left;
  // What the last to go held is given back by their RELEASE, which nobody waits for.
  const bool empty = poll_until([&] {
    const auto locks = mount_locks(mount);
    const auto waiters = mount_waiters(mount);
    if (locks.empty() && waiters.empty()) return true;
    left = std::to_string(locks.size()) + " locks, " + std::to_string(waiters.size()) + " waiters";
    for (const ListedLock& lock : locks) {
      left += "; pid " + std::to_string(lock.pid) + " [" + std::to_string(lock.start) + ", len " +
              std::to_string(lock.len) + ")";
      if (left.size() > 500) break;
    }
    return false;
  });
  return empty ? "" : left;
}

std::string status_text(const std::string& mount) { return read_file(mount + "/.locks/status"); }

long status_number(const std::string& mount, const char* pointer) {
  const auto status = nlohmann::json::parse(status_text(mount));
  return status.at(nlohmann::json::json_pointer{pointer}).get<long>();
}

}  // namespace latchfs::locktest
