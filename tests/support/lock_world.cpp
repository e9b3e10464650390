#include "support/lock_world.h"

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <stdexcept>

#include "base/clock.h"
#include "latchfs/lock_service.h"
#include "support/lock_proc.h"

namespace latchfs::locktest {
namespace {

constexpr off_t kFileSize = 20;
constexpr std::array<const char*, 3> kFiles{"f0", "f1", "f2"};

// A request, or the mount, does not come back.
struct Hung {};

[[noreturn]] void fail(const std::string& what) {
  throw std::runtime_error(what + ": " + std::strerror(errno));
}

int pidfd_open(pid_t pid) { return static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)); }

bool exits_in_time(int pidfd) {
  pollfd p{pidfd, POLLIN, 0};
  const auto limit = std::chrono::milliseconds{hung_after()}.count();
  return ::poll(&p, 1, static_cast<int>(limit)) == 1;
}

std::string agent_path() {
  const char* const path = std::getenv("LATCHFS_LOCK_AGENT");
  if (path == nullptr) throw std::runtime_error("LATCHFS_LOCK_AGENT is not set; run it by meson");
  return path;
}

std::array<UniqueFd, 2> socket_pair() {
  std::array<int, 2> ends{};
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends.data()) != 0) fail("socketpair");
  return {UniqueFd{ends[0]}, UniqueFd{ends[1]}};
}

int lock_type(Mode mode) {
  switch (mode) {
    case Mode::kShared:
      return F_RDLCK;
    case Mode::kExclusive:
      return F_WRLCK;
    case Mode::kUnlock:
      return F_UNLCK;
  }
  return F_UNLCK;
}

Mode mode_of(int type) {
  return type == F_RDLCK ? Mode::kShared : type == F_WRLCK ? Mode::kExclusive : Mode::kUnlock;
}

std::string lock_args(const Step& step, int cmd) {
  std::ostringstream out;
  out << "lock " << cmd << ' ' << step.slot << ' ' << lock_type(step.mode) << ' ' << step.whence
      << ' ' << step.start << ' ' << step.len << " 0";
  return out.str();
}

std::string flock_args(const Step& step) {
  const int mode = step.mode == Mode::kShared      ? LOCK_SH
                   : step.mode == Mode::kExclusive ? LOCK_EX
                                                   : LOCK_UN;
  const int no_wait = step.wait || step.mode == Mode::kUnlock ? 0 : LOCK_NB;
  return std::string("flock ") + step.slot + " " + std::to_string(mode | no_wait);
}

int open_flags(const std::string& words) {
  int flags = 0;
  std::istringstream in{words};
  for (std::string word; std::getline(in, word, ',');) {
    if (word == "r") flags |= O_RDONLY;
    if (word == "w") flags |= O_WRONLY;
    if (word == "rw") flags |= O_RDWR;
    if (word == "cloexec") flags |= O_CLOEXEC;
    if (word == "path") flags |= O_PATH;
    if (word == "trunc") flags |= O_TRUNC;
  }
  return flags;
}

std::string result_of(long ret, int err, const char* done) {
  return ret >= 0 ? done : errno_name(err);
}

// Whether /proc/locks names the files of this file system as stat(2) does (not on overlayfs).
bool lists_own_locks(const std::string& path) {
  const UniqueFd fd{::open(path.c_str(), O_RDWR | O_CLOEXEC)};
  return fd && ::flock(fd.get(), LOCK_EX) == 0 && kernel_locks(path).size() == 1;
}

void make_files(const std::string& dir) {
  if (::mkdir(dir.c_str(), 0755) != 0) fail("mkdir " + dir);
  for (const char* name : kFiles) {
    const std::string path = dir + "/" + name;
    const UniqueFd fd{::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0666)};
    if (!fd || ::ftruncate(fd.get(), kFileSize) != 0) fail("create " + path);
  }
  const std::string other_name = dir + "/h0";
  if (::link((dir + "/f0").c_str(), other_name.c_str()) != 0) fail("link " + other_name);
}

}  // namespace

World::World(const Ground& ground) : ground_{ground} {
  static std::atomic<unsigned> count{0};
  dir_ = "w" + std::to_string(::getpid()) + "." + std::to_string(count++);
  make_files(path(0, ""));
  if (ground_.native()) listable_ = lists_own_locks(path(0, "f0"));
}

World::~World() {
  for (auto& [name, agent] : agents_) {
    if (agent->alive) ::kill(agent->pid, SIGKILL);
  }
  for (auto& [name, agent] : agents_) {
    static_cast<void>(exits_in_time(agent->pidfd.get()));
    ::waitpid(agent->pid, nullptr, WNOHANG);
  }
  std::error_code ignored;
  std::filesystem::remove_all(path(0, ""), ignored);
}

std::string World::path(std::size_t root, const std::string& file) const {
  return ground_.roots.at(root) + "/" + dir_ + (file.empty() ? "" : "/" + file);
}

World::Agent* World::find(char name) {
  const auto at = agents_.find(name);
  return at == agents_.end() ? nullptr : at->second.get();
}

World::Agent& World::spawn(char name) {
  std::array<UniqueFd, 2> ends = socket_pair();
  const std::string program = agent_path();
  const std::string fd = std::to_string(ends[1].get());
  std::array<char*, 3> argv{const_cast<char*>("lock_agent"), const_cast<char*>(fd.c_str()),
                            nullptr};
  const std::string mutation = "LATCHFS_AGENT_MUTATION=" + ground_.mutation;
  std::array<char*, 2> envp{const_cast<char*>(mutation.c_str()), nullptr};
  auto agent = std::make_unique<Agent>();
  // The agent makes it close-on-exec again.
  ::fcntl(ends[1].get(), F_SETFD, 0);
  if (const int err =
          ::posix_spawn(&agent->pid, program.c_str(), nullptr, nullptr, argv.data(), envp.data());
      err != 0) {
    errno = err;
    fail("spawn " + program);
  }
  agent->ctl = std::move(ends[0]);
  agent->pidfd.reset(pidfd_open(agent->pid));
  agent->root = next_root_++ % ground_.roots.size();
  Agent& kept = *(agents_[name] = std::move(agent));
  ends[1].reset();
  await(kept, 0);
  return kept;
}

unsigned World::send(Agent& agent, const std::string& verb_and_args, int pass_fd) {
  const unsigned id = next_id_++;
  std::string text = std::to_string(id) + " " + verb_and_args;
  iovec iov{text.data(), text.size()};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
  msghdr msg{};
  msg.msg_iov = &iov;
  msg.msg_iovlen = 1;
  if (pass_fd >= 0) {
    msg.msg_control = control.data();
    msg.msg_controllen = control.size();
    cmsghdr* const c = CMSG_FIRSTHDR(&msg);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(c), &pass_fd, sizeof pass_fd);
  }
  if (::sendmsg(agent.ctl.get(), &msg, MSG_NOSIGNAL) < 0) fail("send to agent");
  return id;
}

bool World::receive(Agent& agent, bool wait, Message& message) {
  pollfd p{agent.ctl.get(), POLLIN, 0};
  const auto limit = std::chrono::milliseconds{hung_after()}.count();
  if (::poll(&p, 1, wait ? static_cast<int>(limit) : 0) != 1) {
    if (wait) throw Hung{};
    return false;
  }
  std::array<char, 256> text{};
  const ssize_t n = ::recv(agent.ctl.get(), text.data(), text.size() - 1, 0);
  if (n <= 0) fail("agent died");
  std::istringstream in{text.data()};
  std::string second;
  in >> message.id >> second >> message.value;
  message.started = second == "start";
  if (!message.started) {
    message.err = static_cast<int>(message.value);
    message.value = std::stol(second);
  }
  std::getline(in, message.extra);
  return true;
}

// Keeps the end of a request that waited.
void World::note(Agent& agent, const Message& message) {
  for (auto& [slot, pending] : agent.pending) {
    if (pending.id == message.id) {
      pending.result = result_of(message.value, message.err, "granted");
    }
  }
}

World::Message World::await(Agent& agent, unsigned id) {
  while (true) {
    Message message;
    receive(agent, true, message);
    if (message.id == id) return message;
    note(agent, message);
  }
}

void World::drain() {
  for (auto& [name, agent] : agents_) {
    Message message;
    while (agent->alive && !agent->pending.empty() && receive(*agent, false, message)) {
      note(*agent, message);
    }
  }
}

bool World::anyone_waits() const {
  return std::any_of(agents_.begin(), agents_.end(), [](const auto& entry) {
    const auto& pending = entry.second->pending;
    return std::any_of(pending.begin(), pending.end(),
                       [](const auto& p) { return p.second.result.empty(); });
  });
}

// The kernel tells a waiter's process and kind: enough, if only one such request of it waits.
unsigned World::arrival(const ListedLock& asked) const {
  if (asked.who != ListedLock::Who::kProcess) return 0;
  unsigned found = 0;
  for (const auto& [name, agent] : agents_) {
    if (agent->pid != asked.pid) continue;
    for (const auto& [slot, pending] : agent->pending) {
      if (pending.kind != asked.kind) continue;
      if (found != 0) return 0;
      found = pending.arrival;
    }
  }
  return found;
}

bool World::entangled() const {
  if (!listable_ || !anyone_waits()) return false;
  return std::any_of(kFiles.begin(), kFiles.end(), [this](const char* file) {
    return kernel_waiters_entangled(path(0, file),
                                    [this](const ListedLock& asked) { return arrival(asked); });
  });
}

std::optional<std::vector<SleepingThread>> World::sample() const {
  std::vector<SleepingThread> threads;
  for (const auto& [name, agent] : agents_) {
    for (const auto& [slot, pending] : agent->pending) {
      if (!pending.result.empty()) continue;
      if (!in_lock_call(agent->pid, pending.tid)) return std::nullopt;
      const auto thread = sleeping(agent->pid, pending.tid);
      if (!thread) return std::nullopt;
      threads.push_back(*thread);
    }
  }
  for (const pid_t daemon : ground_.daemons) {
    const auto more = all_sleeping(daemon);
    if (!more) return std::nullopt;
    threads.insert(threads.end(), more->begin(), more->end());
  }
  return threads;
}

void World::settle() {
  const bool rests = poll_until([this] {
    drain();
    const auto first = sample();
    if (!first) return false;
    const auto second = sample();
    return second && *first == *second;
  });
  if (!rests) throw Hung{};
  releasing_since_.reset();
}

// Closes a description, perhaps. What is late of those before is not to excuse this one.
void World::note_release(const Step& step) {
  static constexpr std::array kReleasing{Verb::kOpen, Verb::kDup,  Verb::kClose,
                                         Verb::kExec, Verb::kExit, Verb::kKill};
  if (ground_.native()) return;
  if (std::find(kReleasing.begin(), kReleasing.end(), step.verb) == kReleasing.end()) return;
  if (release_is_late(LockService::kClosingWindowNs / 2)) settle();
  if (!releasing_since_) releasing_since_ = monotonic_ns();
}

bool World::release_is_late(std::int64_t by) const {
  return releasing_since_ && monotonic_ns() - *releasing_since_ > by;
}

void World::collect(const Step& step, Outcome& outcome) {
  for (auto& [name, agent] : agents_) {
    std::erase_if(agent->pending, [&, actor = name](const auto& entry) {
      const auto& [slot, pending] = entry;
      if (pending.result.empty()) return false;
      // A request that ended within its own step is that step's result.
      if (step.wait && step.actor == actor && step.slot == slot && outcome.result == "waits") {
        outcome.result = pending.result;
      } else {
        outcome.completed.push_back({actor, slot, pending.result});
      }
      return true;
    });
  }
}

Outcome World::run(const Step& step) {
  Outcome outcome;
  try {
    Agent* agent = find(step.actor);
    if (step.verb == Verb::kList) {
      outcome.result = list(step, outcome);
    } else if (agent != nullptr && !agent->alive) {
      outcome.result = "gone";
    } else {
      if (agent == nullptr) agent = &spawn(step.actor);
      note_release(step);
      outcome.result = dispatch(step, *agent, outcome);
    }
    if (anyone_waits()) settle();
    collect(step, outcome);
  } catch (const Hung&) {
    outcome.result = "HUNG";
  }
  return outcome;
}

std::string World::dispatch(const Step& step, Agent& agent, Outcome& outcome) {
  const std::string slot(1, step.slot);
  switch (step.verb) {
    case Verb::kOpen:
      return open(step, agent);
    case Verb::kDup:
      open_default_slot(step, agent);
      if (step.other == 'd') agent.slot_d_used = true;
      return simple(agent, "dup " + slot + " " + step.other, "ok");
    case Verb::kClose:
      return simple(agent, "close " + slot, "ok");
    case Verb::kLock:
      return lock(step, agent, outcome);
    case Verb::kGet:
      return get_lock(step, agent, outcome);
    case Verb::kSeek:
      open_default_slot(step, agent);
      return simple(agent, "seek " + slot + " " + std::to_string(step.start), "ok");
    case Verb::kTrunc: {
      open_default_slot(step, agent);
      const std::string result =
          simple(agent, "trunc " + slot + " " + std::to_string(step.start), "ok");
      refresh_sizes();
      return result;
    }
    case Verb::kFork:
      return fork(step, agent);
    case Verb::kExec:
      return exec(agent);
    case Verb::kExit:
      return end(agent, false);
    case Verb::kKill:
      return end(agent, true);
    case Verb::kIntr:
    case Verb::kRestart:
      return signal(step, agent);
    case Verb::kList:
      break;
  }
  return "?";
}

std::string World::simple(Agent& agent, const std::string& verb_and_args, const char* done) {
  const Message m = await(agent, send(agent, verb_and_args));
  return result_of(m.value, m.err, done);
}

// l_whence SEEK_END counts from the size that the kernel has cached for that mount (fs/locks.c
// flock64_to_posix_lock() does not ask the file system): through another mount of the directory it
// is the old one until somebody asks anew.
void World::refresh_sizes() const {
  if (ground_.roots.size() < 2) return;
  for (std::size_t root = 0; root < ground_.roots.size(); ++root) {
    for (const char* file : kFiles) {
      struct statx now {};
      ::statx(AT_FDCWD, path(root, file).c_str(), AT_STATX_FORCE_SYNC, STATX_SIZE, &now);
    }
  }
}

void World::open_default_slot(const Step& step, Agent& agent) {
  if (step.slot != 'd' || agent.slot_d_used) return;
  Step first;
  first.file = "f0";
  first.flags = "rw";
  open(first, agent);
}

std::string World::open(const Step& step, Agent& agent) {
  if (step.slot == 'd') agent.slot_d_used = true;
  std::ostringstream command;
  command << "open " << step.slot << ' ' << open_flags(step.flags) << ' '
          << path(agent.root, step.file);
  return simple(agent, command.str(), "ok");
}

std::string World::begin_wait(const Step& step, Agent& agent, const std::string& command) {
  if (agent.pending.count(step.slot) != 0) return "busy";
  const unsigned id = send(agent, command);
  Pending& pending = agent.pending[step.slot];
  pending.id = id;
  pending.arrival = ++arrivals_;
  pending.kind = step.kind;
  const Message m = await(agent, id);
  if (m.started) {
    agent.pending[step.slot].tid = static_cast<pid_t>(m.value);
  } else {  // no thread to be had
    agent.pending.erase(step.slot);
    return errno_name(m.err);
  }
  return "waits";
}

std::string World::lock(const Step& step, Agent& agent, Outcome& outcome) {
  open_default_slot(step, agent);
  const char* const done = step.mode == Mode::kUnlock ? "released" : "granted";
  if (step.kind == Kind::kFlock) {
    const bool waits = step.wait && step.mode != Mode::kUnlock;
    if (waits) return begin_wait(step, agent, flock_args(step));
    const std::string result = lock_now(agent, flock_args(step), done);
    return result == "EAGAIN" ? "conflict" : result;
  }
  if (step.wait) {
    return begin_wait(step, agent,
                      lock_args(step, step.kind == Kind::kOfd ? F_OFD_SETLKW : F_SETLKW));
  }
  const int cmd = step.kind == Kind::kOfd ? F_OFD_SETLK : F_SETLK;
  const std::string result = lock_now(agent, lock_args(step, cmd), done);
  if (result != "EAGAIN") return result;
  get_lock(step, agent, outcome);
  return "conflict";
}

std::string World::lock_now(Agent& agent, const std::string& verb_and_args, const char* done) {
  const std::string result = simple(agent, verb_and_args, done);
  if (result != "EAGAIN" || !release_is_late(LockService::kClosingWindowNs)) return result;
  settle();
  return simple(agent, verb_and_args, done);
}

std::string World::get_lock(const Step& step, Agent& agent, Outcome& outcome) {
  open_default_slot(step, agent);
  const int cmd = step.kind == Kind::kOfd ? F_OFD_GETLK : F_GETLK;
  const Message m = await(agent, send(agent, lock_args(step, cmd)));
  if (m.value < 0) return errno_name(m.err);
  int type{};
  Held held;
  pid_t pid{};
  std::istringstream{m.extra} >> type >> held.start >> held.len >> pid;
  if (type == F_UNLCK) return "free";
  if (release_is_late(LockService::kClosingWindowNs)) {
    settle();
    return get_lock(step, agent, outcome);
  }
  held.mode = mode_of(type);
  held.who = pid == -1 ? "ofd" : letter_of(pid);
  outcome.locks.push_back(held);
  return "held";
}

std::string World::letter_of(pid_t pid) const {
  for (const auto& [name, agent] : agents_) {
    if (agent->pid == pid) return std::string(1, name);
  }
  return "pid " + std::to_string(pid);
}

std::string World::fork(const Step& step, Agent& agent) {
  if (find(step.other) != nullptr) return "busy";
  std::array<UniqueFd, 2> ends = socket_pair();
  const unsigned id = send(agent, "fork", ends[1].get());
  ends[1].reset();
  const Message m = await(agent, id);
  if (m.value < 0) return errno_name(m.err);
  auto child = std::make_unique<Agent>();
  child->ctl = std::move(ends[0]);
  child->root = agent.root;
  child->slot_d_used = agent.slot_d_used;
  Message hello;
  receive(*child, true, hello);
  child->pid = static_cast<pid_t>(hello.value);
  child->pidfd.reset(pidfd_open(child->pid));
  agents_[step.other] = std::move(child);
  return "ok";
}

// Its threads end, and with them what they wait for.
std::string World::exec(Agent& agent) {
  const unsigned id = send(agent, "exec");
  const Message m = await(agent, id);
  agent.pending.clear();
  return m.value < 0 ? errno_name(m.err) : "ok";
}

std::string World::end(Agent& agent, bool by_kill) {
  if (by_kill) {
    ::kill(agent.pid, SIGKILL);
  } else {
    send(agent, "exit");
  }
  if (!exits_in_time(agent.pidfd.get())) throw Hung{};
  ::waitpid(agent.pid, nullptr, WNOHANG);
  agent.alive = false;
  agent.pending.clear();
  return "ok";
}

std::string World::signal(const Step& step, Agent& agent) {
  const auto at = agent.pending.find(step.slot);
  if (at == agent.pending.end()) return "idle";
  const int number = step.verb == Verb::kIntr ? SIGUSR1 : SIGUSR2;
  at->second.arrival = ++arrivals_;  // restarted, it queues anew
  return ::syscall(SYS_tgkill, agent.pid, at->second.tid, number) == 0 ? "ok" : errno_name(errno);
}

// Who holds what is settled only when the daemons have seen the last RELEASE.
std::string World::list(const Step& step, Outcome& outcome) {
  settle();
  if (!listable_) return "unlisted";
  const std::vector<ListedLock> locks =
      ground_.native() ? kernel_locks(path(0, step.file))
                       : mount_locks(ground_.roots[0], "/" + dir_ + "/" + step.file);
  for (const ListedLock& lock : locks) {
    Held held;
    held.kind = lock.kind;
    held.mode = lock.mode;
    held.start = lock.start;
    held.len = lock.len;
    held.who = lock.who == ListedLock::Who::kProcess       ? letter_of(lock.pid)
               : lock.who == ListedLock::Who::kDescription ? "ofd"
                                                           : "?";
    outcome.locks.push_back(held);
  }
  std::sort(outcome.locks.begin(), outcome.locks.end(), [](const Held& a, const Held& b) {
    return std::tie(a.kind, a.start, a.len, a.mode, a.who) <
           std::tie(b.kind, b.start, b.len, b.mode, b.who);
  });
  return outcome.locks.empty() ? "free" : "";
}

}  // namespace latchfs::locktest
