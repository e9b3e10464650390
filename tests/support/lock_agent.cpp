// A process that does with file locks what it is told: the arms of tests/support/lock_world.h.
//
// Usage: lock_agent CTL [ID SLOT=FD...]. CTL is a SOCK_SEQPACKET socket; one command a message,
// "ID VERB ARGS", and one answer, "ID RET ERRNO [EXTRA]". A command that may wait runs in a thread
// of its own, which first says "ID start TID", so that the agent goes on listening while it waits.
// End of file on CTL ends the agent. After fork(2) and exec(2) the new agent says "ID PID 0".
//
// Built without sanitizers: it forks while threads of it are blocked, on purpose.
//
// LATCHFS_AGENT_MUTATION names a way to get locking wrong (see Mutation): the tests prove with it
// that they would notice.
#include <fcntl.h>
#include <pthread.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

namespace {

constexpr int kSlots = 26;

struct Agent {
  int ctl{-1};
  std::array<int, kSlots> fd{};
  std::string_view mutation;
};
Agent g_agent;

bool mutated(std::string_view name) { return g_agent.mutation == name; }

[[gnu::format(printf, 1, 2)]] void say(const char* format, ...) {
  std::array<char, 256> text{};
  va_list args;
  va_start(args, format);
  const int n = std::vsnprintf(text.data(), text.size(), format, args);
  va_end(args);
  // The controller is gone: nothing is left to do.
  if (::send(g_agent.ctl, text.data(), static_cast<std::size_t>(n), MSG_NOSIGNAL) < 0) ::_exit(0);
}

void answer(unsigned id, long ret) { say("%u %ld %d", id, ret, ret < 0 ? errno : 0); }

void on_signal(int) {}

void set_handlers() {
  struct sigaction act {};
  act.sa_handler = on_signal;
  ::sigaction(SIGUSR1, &act, nullptr);
  act.sa_flags = SA_RESTART;
  ::sigaction(SIGUSR2, &act, nullptr);
  // Children end unwaited for: the controller watches them by pidfd.
  struct sigaction ignore {};
  ignore.sa_handler = SIG_IGN;
  ::sigaction(SIGCHLD, &ignore, nullptr);
}

int& slot(char name) {
  if (name < 'a' || name > 'z') ::_exit(3);
  return g_agent.fd[static_cast<std::size_t>(name - 'a')];
}

// One lock call, with what is asked to go wrong in it.
struct Call {
  unsigned id{};
  bool is_flock{};
  int fd{};
  int cmd{};  // fcntl's, or flock's operation
  struct flock lock {};
};

void mutate(Call& call) {
  if (call.is_flock) {
    if (mutated("flock_shares") && (call.cmd & LOCK_EX) != 0) {
      call.cmd = (call.cmd & ~LOCK_EX) | LOCK_SH;
    }
    return;
  }
  if (mutated("unlock_short") && call.lock.l_type == F_UNLCK && call.lock.l_len > 1) {
    --call.lock.l_len;
  }
  if (mutated("zero_is_one") && call.lock.l_len == 0) call.lock.l_len = 1;
  if (mutated("ofd_is_posix")) {
    if (call.cmd == F_OFD_SETLK) call.cmd = F_SETLK;
    if (call.cmd == F_OFD_SETLKW) call.cmd = F_SETLKW;
    if (call.cmd == F_OFD_GETLK) call.cmd = F_GETLK;
  }
}

long perform(Call& call) {
  mutate(call);
  long ret = 0;
  do {
    ret = call.is_flock ? ::flock(call.fd, call.cmd) : ::fcntl(call.fd, call.cmd, &call.lock);
  } while (ret < 0 && errno == EINTR && mutated("no_eintr"));
  if (ret < 0 && errno == EDEADLK && mutated("no_edeadlk")) errno = EAGAIN;
  return ret;
}

void* waiting(void* arg) {
  Call* call = static_cast<Call*>(arg);
  say("%u start %ld", call->id, ::syscall(SYS_gettid));
  const long ret = perform(*call);
  answer(call->id, ret);
  delete call;
  return nullptr;
}

void perform_in_thread(const Call& call) {
  pthread_attr_t attr;
  pthread_attr_init(&attr);
  pthread_attr_setstacksize(&attr, 128 * 1024);
  pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
  pthread_t thread{};
  Call* const copy = new Call(call);
  if (const int err = pthread_create(&thread, &attr, waiting, copy); err != 0) {
    delete copy;
    errno = err;
    answer(call.id, -1);
  }
  pthread_attr_destroy(&attr);
}

void lock_command(unsigned id, const char* args) {
  Call call;
  call.id = id;
  char name{};
  int type{};
  int whence{};
  long long start{};
  long long len{};
  long pid{};
  if (std::sscanf(args, "%d %c %d %d %lld %lld %ld", &call.cmd, &name, &type, &whence, &start, &len,
                  &pid) != 7) {
    ::_exit(3);
  }
  call.fd = slot(name);
  call.lock.l_type = static_cast<short>(type);
  call.lock.l_whence = static_cast<short>(whence);
  call.lock.l_start = start;
  call.lock.l_len = len;
  call.lock.l_pid = static_cast<pid_t>(pid);
  if (call.cmd == F_SETLKW || call.cmd == F_OFD_SETLKW) return perform_in_thread(call);
  const long ret = perform(call);
  const int err = errno;
  say("%u %ld %d %d %lld %lld %ld", id, ret, ret < 0 ? err : 0, call.lock.l_type,
      static_cast<long long>(call.lock.l_start), static_cast<long long>(call.lock.l_len),
      static_cast<long>(call.lock.l_pid));
}

void flock_command(unsigned id, const char* args) {
  Call call;
  call.id = id;
  call.is_flock = true;
  char name{};
  if (std::sscanf(args, "%c %d", &name, &call.cmd) != 2) ::_exit(3);
  call.fd = slot(name);
  const bool may_wait = (call.cmd & (LOCK_NB | LOCK_UN)) == 0;
  if (may_wait) return perform_in_thread(call);
  answer(id, perform(call));
}

void open_command(unsigned id, const char* args) {
  char name{};
  int flags{};
  int path_at{};
  if (std::sscanf(args, "%c %d %n", &name, &flags, &path_at) != 2) ::_exit(3);
  const int fd = ::open(args + path_at, flags, 0644);
  const int err = errno;
  if (fd >= 0) {
    if (slot(name) >= 0) ::close(slot(name));
    slot(name) = fd;
  }
  errno = err;
  answer(id, fd < 0 ? -1 : 0);
}

// A keeper of descriptors that should have been closed.
void dup_and_forget(int fd) {
  if (fd >= 0) static_cast<void>(::dup(fd));  // NOLINT: leaked on purpose
}

void dup_command(unsigned id, const char* args) {
  char from{};
  char to{};
  if (std::sscanf(args, "%c %c", &from, &to) != 2) ::_exit(3);
  const int fd = slot(to) >= 0 ? ::dup2(slot(from), slot(to)) : ::dup(slot(from));
  if (fd >= 0) slot(to) = fd;
  answer(id, fd < 0 ? -1 : 0);
}

void close_command(unsigned id, const char* args) {
  const char name = args[0];
  if (mutated("close_leaks")) dup_and_forget(slot(name));
  if (mutated("close_keeps") && slot(name) >= 0) {  // POSIX locks stay: nothing is closed
    slot(name) = -1;
    return answer(id, 0);
  }
  const int fd = slot(name);
  slot(name) = -1;
  answer(id, ::close(fd));
}

// The new process's CTL arrived with the command.
void fork_command(unsigned id, int new_ctl) {
  const pid_t pid = ::fork();
  if (pid != 0) {
    const int err = errno;
    ::close(new_ctl);
    errno = err;
    return answer(id, pid < 0 ? -1 : 0);
  }
  ::close(g_agent.ctl);
  g_agent.ctl = new_ctl;
  ::fcntl(new_ctl, F_SETFD, FD_CLOEXEC);
  say("0 %ld 0", static_cast<long>(::getpid()));
}

void exec_command(unsigned id) {
  std::vector<std::string> words{"lock_agent", std::to_string(g_agent.ctl), std::to_string(id)};
  for (int i = 0; i < kSlots; ++i) {
    const int fd = g_agent.fd[static_cast<std::size_t>(i)];
    if (fd >= 0) {
      words.push_back(std::string(1, static_cast<char>('a' + i)) + "=" + std::to_string(fd));
    }
  }
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  ::fcntl(g_agent.ctl, F_SETFD, 0);
  ::execv("/proc/self/exe", argv.data());
  answer(id, -1);
}

// Receives one message and the descriptor that may come with it.
std::string receive(int& passed_fd) {
  passed_fd = -1;
  std::array<char, 1024> text{};
  iovec iov{text.data(), text.size() - 1};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
  msghdr msg{};
  msg.msg_iov = &iov;
  msg.msg_iovlen = 1;
  msg.msg_control = control.data();
  msg.msg_controllen = control.size();
  ssize_t n = 0;
  do {
    n = ::recvmsg(g_agent.ctl, &msg, 0);
  } while (n < 0 && errno == EINTR);
  if (n <= 0) ::_exit(0);
  if (cmsghdr* c = CMSG_FIRSTHDR(&msg); c != nullptr && c->cmsg_type == SCM_RIGHTS) {
    std::memcpy(&passed_fd, CMSG_DATA(c), sizeof passed_fd);
  }
  return {text.data(), static_cast<std::size_t>(n)};
}

void serve(const std::string& line, int passed_fd) {
  unsigned id{};
  std::array<char, 16> verb{};
  int args_at{};
  if (std::sscanf(line.c_str(), "%u %15s %n", &id, verb.data(), &args_at) != 2) ::_exit(3);
  const char* args = line.c_str() + args_at;
  const std::string_view what{verb.data()};
  if (what == "lock") {
    lock_command(id, args);
  } else if (what == "flock") {
    flock_command(id, args);
  } else if (what == "open") {
    open_command(id, args);
  } else if (what == "dup") {
    dup_command(id, args);
  } else if (what == "close") {
    close_command(id, args);
  } else if (what == "seek") {
    answer(id, ::lseek(slot(args[0]), std::atoll(args + 1), SEEK_SET) < 0 ? -1 : 0);
  } else if (what == "trunc") {
    answer(id, ::ftruncate(slot(args[0]), std::atoll(args + 1)));
  } else if (what == "fork") {
    fork_command(id, passed_fd);
  } else if (what == "exec") {
    exec_command(id);
  } else {
    ::_exit(what == "exit" ? 0 : 3);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) return 2;
  g_agent.ctl = std::atoi(argv[1]);
  g_agent.fd.fill(-1);
  if (const char* name = std::getenv("LATCHFS_AGENT_MUTATION"); name != nullptr) {
    g_agent.mutation = name;
  }
  for (int i = 3; i < argc; ++i) {
    const int fd = std::atoi(argv[i] + 2);
    // A descriptor that was opened with O_CLOEXEC is gone by now.
    slot(argv[i][0]) = ::fcntl(fd, F_GETFD) < 0 ? -1 : fd;
  }
  ::fcntl(g_agent.ctl, F_SETFD, FD_CLOEXEC);
  set_handlers();
  say("%s %ld 0", argc > 2 ? argv[2] : "0", static_cast<long>(::getpid()));
  while (true) {
    int passed_fd{};
    const std::string line = receive(passed_fd);
    serve(line, passed_fd);
  }
}
