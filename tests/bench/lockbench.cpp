// Times locking in one directory, native or mounted.
//
// usage: lockbench pair DIR COUNT      ns for one exclusive lock and its unlock, nobody else there
//        lockbench crowd DIR COUNT N   the same beside N ranges locked on the file
//        lockbench handoff DIR COUNT   ns for one lock passed to a waiting process
//        lockbench round DIR COUNT N   ns for one lock taken in turn by N processes, all waiting
//        lockbench hold DIR COUNT      takes COUNT locks on COUNT/100 files, prints "held", keeps
//                                      them until standard input ends
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <string_view>
#include <vector>

#include "base/unique_fd.h"
#include "measure.h"

namespace latchfs::bench {
namespace {

struct flock lock_of(short type, off_t start, off_t len) {
  struct flock fl {};
  fl.l_type = type;
  fl.l_whence = SEEK_SET;
  fl.l_start = start;
  fl.l_len = len;
  return fl;
}

void set_lock(int fd, int command, short type, off_t start, off_t len) {
  struct flock fl = lock_of(type, start, len);
  must(::fcntl(fd, command, &fl) == 0, "fcntl lock");
}

UniqueFd open_file(const std::string& path) {
  UniqueFd fd{::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644)};
  must(static_cast<bool>(fd), path);
  return fd;
}

void pair(const std::string& dir, std::uint64_t count) {
  const UniqueFd fd = open_file(dir + "/lockbench-pair");
  const auto turn = [&] {
    set_lock(fd.get(), F_SETLK, F_WRLCK, 0, 100);
    set_lock(fd.get(), F_SETLK, F_UNLCK, 0, 100);
  };
  for (std::uint64_t i = 0; i < count / 10; ++i) turn();
  report(ns_each(count, [&] {
    for (std::uint64_t i = 0; i < count; ++i) turn();
  }));
}

void crowd(const std::string& dir, std::uint64_t count, std::uint64_t ranges) {
  const UniqueFd fd = open_file(dir + "/lockbench-crowd");
  // From the end: so the kernel has none of its owner's to walk past.
  for (auto i = static_cast<off_t>(ranges); i-- > 0;) {
    set_lock(fd.get(), F_SETLK, F_WRLCK, 20 * i, 10);
  }
  report(ns_each(count, [&] {
    for (std::uint64_t i = 0; i < count; ++i) {
      const off_t gap = 20 * static_cast<off_t>(i * 7919 % ranges) + 12;
      set_lock(fd.get(), F_SETLK, F_WRLCK, gap, 4);
      set_lock(fd.get(), F_SETLK, F_UNLCK, gap, 4);
    }
  }));
}

// One process of two in a ring of three bytes. At the start the first holds byte 0, the other byte
// 1; each takes the byte after its own and gives its own back. The byte after is the other's, so
// every round of either is one blocked wait ended by one unlock, and neither can run ahead.
void handoff_side(int fd, std::uint64_t rounds, off_t held) {
  for (std::uint64_t i = 0; i < rounds; ++i) {
    const off_t next = (held + 1) % 3;
    set_lock(fd, F_SETLKW, F_WRLCK, next, 1);
    set_lock(fd, F_SETLK, F_UNLCK, held, 1);
    held = next;
  }
  set_lock(fd, F_SETLK, F_UNLCK, 0, 3);
}

void handoff(const std::string& dir, std::uint64_t count) {
  const std::string path = dir + "/lockbench-handoff";
  int ready[2];
  int go[2];
  must(::pipe(ready) == 0 && ::pipe(go) == 0, "pipe");
  const pid_t child = ::fork();
  must(child >= 0, "fork");
  char byte = 0;
  if (child == 0) {
    const UniqueFd fd = open_file(path);
    set_lock(fd.get(), F_SETLK, F_WRLCK, 1, 1);
    must(::write(ready[1], &byte, 1) == 1 && ::read(go[0], &byte, 1) == 1, "pipe");
    handoff_side(fd.get(), count, 1);
    std::_Exit(0);
  }
  const UniqueFd fd = open_file(path);
  set_lock(fd.get(), F_SETLK, F_WRLCK, 0, 1);
  must(::read(ready[0], &byte, 1) == 1, "pipe");
  const double ns = ns_each(2 * count, [&] {
    must(::write(go[1], &byte, 1) == 1, "pipe");
    handoff_side(fd.get(), count, 0);
    int status = 0;
    must(::waitpid(child, &status, 0) == child && status == 0, "child");
  });
  report(ns);
}

// All wait for the parent's lock first, so that there are as many waiters as can be all the time.
void round(const std::string& dir, std::uint64_t count, std::uint64_t processes) {
  const std::string path = dir + "/lockbench-round";
  const std::uint64_t each = std::max<std::uint64_t>(1, count / processes);
  const UniqueFd fd = open_file(path);
  set_lock(fd.get(), F_SETLK, F_WRLCK, 0, 1);
  int ready[2];
  must(::pipe(ready) == 0, "pipe");
  std::vector<pid_t> children;
  for (std::uint64_t i = 0; i < processes; ++i) {
    const pid_t child = ::fork();
    must(child >= 0, "fork");
    if (child != 0) {
      children.push_back(child);
      continue;
    }
    const UniqueFd own = open_file(path);
    const char byte = 0;
    must(::write(ready[1], &byte, 1) == 1, "pipe");
    for (std::uint64_t k = 0; k < each; ++k) {
      set_lock(own.get(), F_SETLKW, F_WRLCK, 0, 1);
      set_lock(own.get(), F_SETLK, F_UNLCK, 0, 1);
    }
    std::_Exit(0);
  }
  char byte = 0;
  for (std::uint64_t i = 0; i < processes; ++i) must(::read(ready[0], &byte, 1) == 1, "pipe");
  ::usleep(200'000);  // the last of them is about to ask
  report(ns_each(each * processes, [&] {
    set_lock(fd.get(), F_SETLK, F_UNLCK, 0, 1);
    for (const pid_t child : children) {
      int status = 0;
      must(::waitpid(child, &status, 0) == child && status == 0, "child");
    }
  }));
}

void hold(const std::string& dir, std::uint64_t count) {
  constexpr std::uint64_t kPerFile = 100;
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);
  std::vector<UniqueFd> files;
  for (std::uint64_t i = 0; i < count; ++i) {
    if (i % kPerFile == 0) {
      files.push_back(open_file(dir + "/lockbench-hold-" + std::to_string(i / kPerFile)));
    }
    // A gap after each, so that they do not merge into one.
    const auto start = static_cast<off_t>(i % kPerFile * 20);
    set_lock(files.back().get(), F_SETLK, F_WRLCK, start, 10);
  }
  std::puts("held");
  std::fflush(stdout);
  char byte = 0;
  while (::read(STDIN_FILENO, &byte, 1) > 0) {
  }
}

int run(int argc, char** argv) {
  const std::string_view what = argc > 3 ? argv[1] : "";
  const std::uint64_t count = argc > 3 ? number(argv[3]) : 0;
  const std::uint64_t many = argc > 4 ? number(argv[4]) : 0;
  if (what == "pair" && argc == 4) {
    pair(argv[2], count);
  } else if (what == "crowd" && many != 0) {
    crowd(argv[2], count, many);
  } else if (what == "handoff" && argc == 4) {
    handoff(argv[2], count);
  } else if (what == "round" && many != 0) {
    round(argv[2], count, many);
  } else if (what == "hold" && argc == 4) {
    hold(argv[2], count);
  } else {
    std::fputs("usage: lockbench pair|handoff|hold DIR COUNT, lockbench crowd|round DIR COUNT N\n",
               stderr);
    return 2;
  }
  return 0;
}

}  // namespace
}  // namespace latchfs::bench

int main(int argc, char** argv) { return latchfs::bench::run(argc, argv); }
