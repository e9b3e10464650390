#include "daemon/launcher.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "base/write_all.h"

namespace latchfs::daemon {
namespace {

// What the child says: one kind byte, then the text up to the next kind byte 0.
constexpr char kReady = 'R';
constexpr char kFailed = 'F';

void print_line(const char* program, std::string_view line) noexcept {
  std::string text{program};
  text.append(": ");
  text.append(line);
  text += '\n';
  std::fwrite(text.data(), 1, text.size(), stderr);
  std::fflush(stderr);
}

std::string read_all(int fd) {
  std::string text;
  char buffer[4096];
  for (;;) {
    const ssize_t n = TEMP_FAILURE_RETRY(::read(fd, buffer, sizeof buffer));
    if (n <= 0) return text;
    text.append(buffer, static_cast<std::size_t>(n));
  }
}

std::string how_it_ended(pid_t child) {
  int status = 0;
  if (TEMP_FAILURE_RETRY(::waitpid(child, &status, 0)) != child) return "it is gone";
  if (WIFSIGNALED(status)) return std::string{"signal "} + ::strsignal(WTERMSIG(status));
  return "exit status " + std::to_string(WEXITSTATUS(status));
}

// Ends with the child's word. The child closes the pipe after it.
[[noreturn]] void wait_for_word(const UniqueFd& from_child, pid_t child, const char* program) {
  const std::string word = read_all(from_child.get());
  if (!word.empty() && word.front() == kReady) ::_exit(EXIT_SUCCESS);
  if (!word.empty() && word.front() == kFailed) {
    print_line(program, std::string_view{word}.substr(1));
  } else {
    print_line(program, "the daemon ended before it answered: " + how_it_ended(child));
  }
  ::_exit(EXIT_FAILURE);
}

void stdio_to_null() noexcept {
  const UniqueFd null{::open("/dev/null", O_RDWR | O_CLOEXEC)};
  if (!null) return;
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (null.get() != fd) ::dup2(null.get(), fd);
  }
}

}  // namespace

void hold_closed_streams() noexcept {
  // open() gives the lowest number that is free: in this order, the very one that is missing.
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (::fcntl(fd, F_GETFD) != -1) continue;
    // For the daemon's whole life and all it runs, so without O_CLOEXEC. Where there is no
    // /dev/null, anything that takes the number and can be neither read nor written.
    if (::open("/dev/null", O_RDWR) < 0) ::open("/", O_PATH);  // NOLINT: kept open on purpose
  }
}

Result<Launcher> Launcher::start(bool background, const char* program) {
  // A write to a pipe whose reader is gone must be an answer, not a death.
  ::signal(SIGPIPE, SIG_IGN);
  if (!background) return Launcher{UniqueFd{}, program};
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return last_errno();
  UniqueFd from_child{ends[0]};
  UniqueFd to_parent{ends[1]};
  std::fflush(nullptr);
  const pid_t child = ::fork();
  if (child < 0) return last_errno();
  if (child > 0) {
    to_parent.reset();
    wait_for_word(from_child, child, program);
  }
  from_child.reset();
  ::setsid();
  if (::chdir("/") != 0) return last_errno();
  return Launcher{std::move(to_parent), program};
}

void Launcher::warn(std::string_view line) noexcept { print_line(program_, line); }

bool Launcher::ready() noexcept {
  if (!pipe_) return true;
  const bool told = write_all(pipe_.get(), std::string_view{&kReady, 1});
  pipe_.reset();
  if (told) stdio_to_null();
  return told;
}

void Launcher::failed(std::string_view line) noexcept {
  if (!background_) print_line(program_, line);
  if (!pipe_) return;
  // The line could not be sent: the parent is gone, and with it whoever would read.
  if (write_all(pipe_.get(), std::string_view{&kFailed, 1})) write_all(pipe_.get(), line);
  pipe_.reset();
}

}  // namespace latchfs::daemon
