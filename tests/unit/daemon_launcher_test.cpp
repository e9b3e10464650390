#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <fstream>
#include <functional>
#include <iterator>
#include <sstream>
#include <string>
#include <vector>

#include "daemon/launcher.h"

namespace latchfs::daemon {
namespace {

struct Outcome {
  int status{};  // exit status of the command, or -signal
  std::string err;
};

std::string read_all(int fd) {
  std::string text;
  char buffer[512];
  for (ssize_t n = 0; (n = ::read(fd, buffer, sizeof buffer)) > 0;) {
    text.append(buffer, static_cast<std::size_t>(n));
  }
  return text;
}

// Runs Launcher::start in a process of its own, as the shell runs the command; `daemon` is what
// the daemon does. err is read to its end, so it also shows that the daemon let go of it.
Outcome run(bool background, const std::function<int(Launcher&)>& daemon) {
  int err[2];
  EXPECT_EQ(::pipe2(err, O_CLOEXEC), 0);
  const pid_t command = ::fork();
  if (command == 0) {
    ::dup2(err[1], STDERR_FILENO);
    ::close(err[1]);
    auto launcher = Launcher::start(background);
    ::_exit(launcher ? daemon(*launcher) : 99);
  }
  ::close(err[1]);
  Outcome out;
  out.err = read_all(err[0]);
  ::close(err[0]);
  int status = 0;
  ::waitpid(command, &status, 0);
  out.status = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  return out;
}

TEST(Launcher, TheCommandEndsWithZeroWhenReadyAndTheDaemonLivesOn) {
  int gone[2];
  ASSERT_EQ(::pipe2(gone, O_CLOEXEC), 0);
  int hold[2];
  ASSERT_EQ(::pipe2(hold, O_CLOEXEC), 0);
  const Outcome out = run(true, [&](Launcher& launcher) {
    ::close(hold[1]);
    if (!launcher.ready()) return 1;
    read_all(hold[0]);  // alive until the test closes its end
    const std::string about = ::getsid(0) == ::getpid() ? "leader" : "no session";
    return ::write(gone[1], about.data(), about.size()) > 0 ? 0 : 1;
  });
  EXPECT_EQ(out.status, 0);
  EXPECT_EQ(out.err, "");
  ::close(hold[1]);
  ::close(hold[0]);
  ::close(gone[1]);
  EXPECT_EQ(read_all(gone[0]), "leader");
  ::close(gone[0]);
}

TEST(Launcher, TheCommandPrintsWhatFailed) {
  const Outcome out = run(true, [](Launcher& launcher) {
    launcher.warn("mind the gap");
    launcher.failed("no mount: Operation not permitted");
    launcher.failed("and then the session ended");  // a consequence: one line is enough
    return 0;
  });
  EXPECT_EQ(out.status, 1);
  EXPECT_EQ(out.err, "latchfs: mind the gap\nlatchfs: no mount: Operation not permitted\n");
}

TEST(Launcher, ADaemonThatDiesWithoutAWordIsNamed) {
  EXPECT_EQ(run(true, [](Launcher&) { return 7; }).err,
            "latchfs: the daemon ended before it answered: exit status 7\n");
  const Outcome killed = run(true, [](Launcher&) { return ::raise(SIGKILL); });
  EXPECT_EQ(killed.status, 1);
  EXPECT_EQ(killed.err, "latchfs: the daemon ended before it answered: signal Killed\n");
}

TEST(Launcher, InTheForegroundItIsTheSameProcess) {
  const Outcome out = run(false, [](Launcher& launcher) {
    if (!launcher.ready()) return 1;
    launcher.failed("said here");
    return 5;
  });
  EXPECT_EQ(out.status, 5);
  EXPECT_EQ(out.err, "latchfs: said here\n");
}

// With all its threads, of which a sanitizer has some: each loses its descriptors before this, but
// one may still have them when its children have lost their parent (exit(2)).
bool is_dead(pid_t pid) {
  std::ifstream file{"/proc/" + std::to_string(pid) + "/stat"};
  std::string text;
  std::getline(file, text);
  std::istringstream fields{text.substr(std::min(text.rfind(')') + 1, text.size()))};
  std::vector<std::string> field{std::istream_iterator<std::string>{fields}, {}};
  return field.size() < 18 || (field[0] == "Z" && field[17] == "1");  // proc(5): num_threads
}

TEST(Launcher, ReadyTellsWhenTheCommandWasInterrupted) {
  int answer[2];
  ASSERT_EQ(::pipe2(answer, O_CLOEXEC), 0);
  const Outcome out = run(true, [&](Launcher& launcher) {
    const pid_t command = ::getppid();
    ::kill(command, SIGKILL);
    while (!is_dead(command)) ::usleep(1000);
    const char said = launcher.ready() ? 'y' : 'n';
    return ::write(answer[1], &said, 1) == 1 ? 0 : 1;
  });
  EXPECT_EQ(out.status, -SIGKILL);
  ::close(answer[1]);
  EXPECT_EQ(read_all(answer[0]), "n");
  ::close(answer[0]);
}

}  // namespace
}  // namespace latchfs::daemon
