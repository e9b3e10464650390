// What a user does with filelocks, in processes of his own: cat and echo, spelled in C++.
#pragma once

#include <fcntl.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <functional>
#include <string>

namespace latchfs::test {

// fn's answer (its errno: 0 to 255), run by that user in a process of its own; 255 if it could not
// become him.
inline int as(uid_t uid, const std::function<int()>& fn) {
  const pid_t child = ::fork();
  if (child == 0) {
    if (uid != 0 && (::setgid(uid) != 0 || ::setuid(uid) != 0)) ::_exit(255);
    ::_exit(fn());
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 254;
}

// A process of a user that does one thing after the other when it is told to.
class Actor {
 public:
  using Step = std::function<int()>;
  // Runs `first`, then one step for each next(). Their answers are errnos.
  Actor(uid_t uid, const Step& first, const Step& then) {
    if (::pipe2(go_.data(), O_CLOEXEC) != 0 || ::pipe2(done_.data(), O_CLOEXEC) != 0) ::abort();
    pid_ = ::fork();
    if (pid_ == 0) {
      if (uid != 0 && (::setgid(uid) != 0 || ::setuid(uid) != 0)) ::_exit(255);
      ::close(go_[1]);
      tell(first());
      for (char byte = 0; ::read(go_[0], &byte, 1) == 1;) tell(then());
      ::_exit(0);
    }
    ::close(go_[0]);
    ::close(done_[1]);
    first_ = hear();
  }
  ~Actor() {
    ::close(go_[1]);
    ::close(done_[0]);
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  Actor(const Actor&) = delete;
  Actor& operator=(const Actor&) = delete;
  [[nodiscard]] int first() const { return first_; }
  [[nodiscard]] pid_t pid() const { return pid_; }
  int next() {
    if (::write(go_[1], "x", 1) != 1) return 253;
    return hear();
  }

 private:
  void tell(int err) {
    const auto byte = static_cast<unsigned char>(err);
    if (::write(done_[1], &byte, 1) != 1) ::_exit(252);
  }
  int hear() {
    unsigned char byte = 0;
    return ::read(done_[0], &byte, 1) == 1 ? byte : 254;
  }
  pid_t pid_{};
  std::array<int, 2> go_{}, done_{};
  int first_{};
};

struct Answer {
  int err{};
  std::string reply;
};
// Writes to a control file of a mount and reads the reply from the same descriptor, as this
// process.
inline Answer ask(const std::string& mount, const std::string& file, const std::string& request) {
  const int fd = ::open((mount + "/.locks/" + file).c_str(), O_RDWR | O_CLOEXEC);
  if (fd < 0) return {errno, "open"};
  Answer answer;
  if (::write(fd, request.data(), request.size()) < 0) answer.err = errno;
  std::array<char, 65536> buffer{};
  for (ssize_t n = 0; (n = ::read(fd, buffer.data(), buffer.size())) > 0;) {
    answer.reply.append(buffer.data(), static_cast<std::size_t>(n));
  }
  if (::close(fd) != 0 && answer.err == 0) answer.err = errno;
  return answer;
}
// The same as a user.
inline Answer ask_as(uid_t uid, const std::string& mount, const std::string& file,
                     const std::string& request) {
  std::array<int, 2> out{};
  if (::pipe2(out.data(), O_CLOEXEC) != 0) ::abort();
  const pid_t child = ::fork();
  if (child == 0) {
    if (uid != 0 && (::setgid(uid) != 0 || ::setuid(uid) != 0)) ::_exit(255);
    const Answer answer = ask(mount, file, request);
    for (std::size_t at = 0; at < answer.reply.size();) {
      const ssize_t n = ::write(out[1], answer.reply.data() + at, answer.reply.size() - at);
      if (n <= 0) ::_exit(251);
      at += static_cast<std::size_t>(n);
    }
    ::_exit(answer.err);
  }
  ::close(out[1]);
  Answer answer;
  std::array<char, 65536> buffer{};
  for (ssize_t n = 0; (n = ::read(out[0], buffer.data(), buffer.size())) > 0;) {
    answer.reply.append(buffer.data(), static_cast<std::size_t>(n));
  }
  ::close(out[0]);
  int status = 0;
  ::waitpid(child, &status, 0);
  answer.err = WIFEXITED(status) ? WEXITSTATUS(status) : 254;
  return answer;
}

}  // namespace latchfs::test
