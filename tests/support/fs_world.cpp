#include "support/fs_world.h"

#include <grp.h>
#include <linux/capability.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <stdexcept>

namespace latchfs::fsdiff {
namespace {

constexpr std::uint64_t bit(unsigned capability) { return std::uint64_t{1} << capability; }
constexpr std::uint64_t kAll = ~std::uint64_t{0};
constexpr int kLine = 3;            // an actor's descriptor to the test
constexpr int kPatience = 120'000;  // ms; reached only by a hang

std::int64_t now(clockid_t clock) {
  timespec t{};
  clock_gettime(clock, &t);
  return std::int64_t{t.tv_sec} * 1'000'000'000 + t.tv_nsec;
}

void must(bool done, const char* what) {
  if (done) return;
  std::perror(what);
  _exit(99);
}

void set_capabilities(std::uint64_t wanted) {
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct data[2]{};
  for (int i = 0; i < 2; ++i) {
    const auto half = static_cast<std::uint32_t>(wanted >> (32 * i));
    data[i].effective = data[i].permitted = half;
  }
  must(syscall(SYS_capset, &header, data) == 0, "capset");
}

bool send_all(int fd, const void* from, std::size_t size) {
  const char* at = static_cast<const char*>(from);
  while (size > 0) {
    const ssize_t sent = send(fd, at, size, MSG_NOSIGNAL);
    if (sent <= 0) return false;
    at += sent;
    size -= static_cast<std::size_t>(sent);
  }
  return true;
}

bool receive_all(int fd, void* into, std::size_t size, int timeout) {
  char* at = static_cast<char*>(into);
  while (size > 0) {
    pollfd ready{fd, POLLIN, 0};
    if (poll(&ready, 1, timeout) <= 0) return false;
    const ssize_t got = recv(fd, at, size, 0);
    if (got <= 0) return false;
    at += got;
    size -= static_cast<std::size_t>(got);
  }
  return true;
}

// Waits for a process that was asked to end; one that hangs in its last call is killed.
void end_of(pid_t pid) {
  const UniqueFd process{static_cast<int>(syscall(SYS_pidfd_open, pid, 0))};
  pollfd over{process.get(), POLLIN, 0};
  if (!process || poll(&over, 1, kPatience) != 1) kill(pid, SIGKILL);
  waitpid(pid, nullptr, 0);
}

// What travels before Outcome::data.
struct Head {
  std::int64_t ret{};
  std::int32_t err{};
  std::uint32_t has_stat{};
  struct stat st {};
  std::uint64_t size{};
};

[[noreturn]] void serve(int line, Sabotage sabotage) {
  {
    Executor executor{sabotage};
    for (;;) {
      std::uint64_t size = 0;
      if (!receive_all(line, &size, sizeof size, -1) || size > 100'000) break;
      std::string text(size, '\0');
      if (!receive_all(line, text.data(), size, -1)) break;
      const auto op = parse(text);
      must(op.has_value(), "parse");
      const Outcome out = executor.run(*op);
      Head head{out.ret, out.err, out.has_stat ? 1u : 0u, out.st, out.data.size()};
      if (!send_all(line, &head, sizeof head) ||
          !send_all(line, out.data.data(), out.data.size())) {
        break;
      }
    }
  }
  _exit(0);
}

}  // namespace

const Identity& identity(int actor) {
  static const std::array<Identity, kActors> who = {
      Identity{0, 0, {}, kAll},
      Identity{61001, 61001, {61010, 61011}, 0},
      Identity{61002, 61002, {61010}, 0},
      Identity{61003, 61003, {61001, 61011}, 0},
      Identity{61004,
               61004,
               {61010},
               bit(CAP_CHOWN) | bit(CAP_FOWNER) | bit(CAP_FSETID) | bit(CAP_DAC_OVERRIDE)},
      Identity{0, 0, {}, 0}};
  return who.at(static_cast<std::size_t>(actor));
}

void become(const Identity& who) {
  must(setgroups(who.groups.size(), who.groups.data()) == 0, "setgroups");
  if (who.capabilities == kAll) return;
  must(prctl(PR_SET_KEEPCAPS, 1) == 0, "keepcaps");
  must(setresgid(who.gid, who.gid, who.gid) == 0, "setresgid");
  must(setresuid(who.uid, who.uid, who.uid) == 0, "setresuid");
  set_capabilities(who.capabilities);
  prctl(PR_SET_DUMPABLE, 1);  // setresuid() hid /proc/PID from the daemon of an ordinary user
}

ActingAs::ActingAs(const Identity& who) : groups_(64) {
  const int count = getgroups(static_cast<int>(groups_.size()), groups_.data());
  groups_.resize(static_cast<std::size_t>(std::max(count, 0)));
  must(setgroups(who.groups.size(), who.groups.data()) == 0, "setgroups");
  must(setresgid(who.gid, who.gid, 0) == 0 && setresuid(who.uid, who.uid, 0) == 0, "setresuid");
}

ActingAs::~ActingAs() {
  must(setresuid(0, 0, 0) == 0 && setresgid(0, 0, 0) == 0, "setresuid");
  must(setgroups(groups_.size(), groups_.data()) == 0, "setgroups");
}

std::int64_t StepClock::wait_for_tick(std::int64_t later_than) {
  for (;;) {
    const std::int64_t coarse = now(CLOCK_REALTIME_COARSE);
    if (coarse > later_than) return coarse;
    usleep(200);
  }
}

std::int64_t StepClock::end() {
  spans_.back().second = now(CLOCK_REALTIME);
  return spans_.back().second;
}

std::string StepClock::name(const timespec& time) const {
  // (A time that a step gave, far from now: it may not fit either.)
  const bool ours = time.tv_sec > 0 && time.tv_sec < 4'000'000'000;
  const std::int64_t t = ours ? std::int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec : 0;
  auto after = std::upper_bound(spans_.begin(), spans_.end(), t,
                                [](std::int64_t v, const auto& span) { return v < span.first; });
  if (ours && after != spans_.begin()) {
    const auto& span = *std::prev(after);
    if (t <= span.second || span.second == 0) {
      return "step " + std::to_string(std::prev(after) - spans_.begin());
    }
  }
  return std::to_string(time.tv_sec) + "." + std::to_string(time.tv_nsec);
}

World::World(std::string root, Sabotage sabotage) : root_{std::move(root)} {
  for (int actor = 0; actor < kActors; ++actor) hire(actor, sabotage);
}

World::~World() { dismiss(); }

void World::hire(int actor, Sabotage sabotage) {
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) {
    throw std::runtime_error("socketpair");
  }
  const pid_t pid = fork();
  if (pid < 0) throw std::runtime_error("fork");
  if (pid == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    // Nothing of the test's own stays open here: not the other actors' lines either, or they would
    // never see theirs end.
    must(dup2(ends[1], kLine) == kLine && close_range(kLine + 1, ~0u, 0) == 0, "close_range");
    must(chroot(root_.c_str()) == 0 && chdir("/m0") == 0, "chroot");
    umask(022);
    if (sabotage == Sabotage::kIgnoreSticky && actor == 1) {
      // Keeps a way back to root, which is what makes the faulty unlink possible.
      const Identity& who = identity(actor);
      must(setgroups(who.groups.size(), who.groups.data()) == 0 &&
               setresgid(who.gid, who.gid, who.gid) == 0 && setresuid(who.uid, who.uid, 0) == 0,
           "setresuid");
    } else {
      become(identity(actor));
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL);  // forgotten at a change of uid
    serve(kLine, sabotage);
  }
  close(ends[1]);
  actors_.at(static_cast<std::size_t>(actor)) = {pid, UniqueFd{ends[0]}};
}

Outcome World::run(const Op& op) {
  const Actor& actor = actors_.at(static_cast<std::size_t>(op.actor));
  const std::string text = print(op);
  const std::uint64_t size = text.size();
  Head head;
  Outcome out;
  if (!send_all(actor.line.get(), &size, sizeof size) ||
      !send_all(actor.line.get(), text.data(), text.size()) ||
      !receive_all(actor.line.get(), &head, sizeof head, kPatience)) {
    throw std::runtime_error("no answer in " + root_ + " to: " + text);
  }
  out.data.resize(head.size);
  if (!receive_all(actor.line.get(), out.data.data(), head.size, kPatience)) {
    throw std::runtime_error("half an answer in " + root_ + " to: " + text);
  }
  out.ret = head.ret;
  out.err = head.err;
  out.has_stat = head.has_stat != 0;
  out.st = head.st;
  return out;
}

void World::dismiss() {
  for (Actor& actor : actors_) {
    if (actor.pid <= 0) continue;
    actor.line.reset();
    end_of(actor.pid);
    actor.pid = 0;
  }
}

}  // namespace latchfs::fsdiff
