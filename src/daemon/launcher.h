// Daemonising that tells the truth: the command returns when the mount answers, with what became
// of it.
//
// The fork comes first, before any thread, descriptor or mount exists, so that nothing has to
// survive it. The child does everything; the parent waits on a pipe for its word and ends with it.
#pragma once

#include <string>
#include <string_view>

#include "base/unique_fd.h"
#include "latchfs/result.h"

namespace latchfs::daemon {

// Before anything else is opened: /dev/null for each of standard input, output and error that the
// caller closed ("<&-"). Otherwise the next descriptor, SOURCE's for one, gets that number and is
// written to as a stream, or lost when the daemon lets go of its terminal.
void hold_closed_streams() noexcept;

class Launcher {
 public:
  // In the foreground nothing is forked and ready() and failed() only print.
  // With background, returns in the child only: the parent waits and leaves by _exit: 0 after
  // ready(), 1 after failed() (its text on stderr) or when the child dies without a word.
  // Must be called while the process has one thread. program: what its lines begin with; lives on.
  [[nodiscard]] static Result<Launcher> start(bool background, const char* program = "latchfs");

  // A line for the person at the terminal, before ready().
  void warn(std::string_view line) noexcept;

  // The mount answers: the parent ends with 0, standard input and output become /dev/null.
  // False if the parent is gone already (interrupted): nobody wants the mount any more.
  [[nodiscard]] bool ready() noexcept;

  // It came to nothing: the parent prints the line and ends with 1. After the last word: nothing.
  void failed(std::string_view line) noexcept;

 private:
  Launcher(UniqueFd pipe, const char* program)
      : pipe_{std::move(pipe)}, background_{bool(pipe_)}, program_{program} {}
  UniqueFd pipe_;  // invalid in the foreground and after the last word
  bool background_;
  const char* program_;
};

}  // namespace latchfs::daemon
