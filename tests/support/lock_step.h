// One step of a lock scenario, and what came of it: the words that scenario files, random
// sequences and failure reports share (HOUSE section 9, widened).
//
//   ACTOR VERB [ARGS] [@SLOT] [-> OUTCOME]
//
// An actor is a capital letter: a process, started when first named. A slot is a small letter: a
// descriptor of it; `d` is meant when none is given, and opens f0 by itself when first used.
//
//   A EX 0 40         F_SETLK       A EXW 0 40     F_SETLKW      A UN 0 40    F_SETLK, F_UNLCK
//   A GET EX 0 40     F_GETLK       A ofd EX 0 40  F_OFD_SETLK   A SH -5 0 end   l_whence SEEK_END
//   A flock EX        flock NB      A flock EXW    flock         A flock UN
//   A open f1 rw @b   A dup c @b    A close @b     A seek 7      A trunc 20
//   A fork B          A exec        A exit         A kill (SIGKILL)
//   A intr @b         a signal without SA_RESTART to the request that waits at @b
//   A restart @b      the same with SA_RESTART
//   A LIST f0         all locks held on f0, by whomever
//
// `f0`, `f1`, `f2` are files of 20 bytes, `h0` another name of f0. An outcome is one word
// (granted, released, waits, free, conflict, held, ok, gone, busy, or an errno's name), the
// locks it names, and what became of requests that waited: `-> released; B granted, C EDEADLK`.
// A held lock is `WHO MODE START LEN`; WHO is `ofd` for OFD locks, `A:flock` for flock's, and LEN
// 0 means to the end of file.
#pragma once

#include <compare>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace latchfs::locktest {

enum class Verb : std::uint8_t {
  kOpen,
  kDup,
  kClose,
  kLock,
  kGet,
  kSeek,
  kTrunc,
  kFork,
  kExec,
  kExit,
  kKill,
  kIntr,
  kRestart,
  kList,
};

enum class Kind : std::uint8_t { kPosix, kOfd, kFlock };
enum class Mode : std::uint8_t { kShared, kExclusive, kUnlock };

struct Step {
  char actor{'A'};
  Verb verb{};
  char slot{'d'};
  char other{};  // kDup: the new slot; kFork: the new actor
  Kind kind{};
  Mode mode{};
  bool wait{};
  std::int64_t start{};  // kSeek, kTrunc: the offset
  std::int64_t len{};
  int whence{};       // SEEK_SET, SEEK_CUR, SEEK_END
  std::string file;   // kOpen, kList
  std::string flags;  // kOpen: r, w or rw, then ",cloexec" ",path" ",trunc"
  bool operator==(const Step&) const = default;
};

[[nodiscard]] std::string to_string(const Step& step);
// Nothing if the text is no step.
[[nodiscard]] std::optional<Step> parse_step(std::string_view text);

// A lock somebody holds. who is an actor's letter, "ofd", or "?" where the source cannot tell.
struct Held {
  std::string who;
  Kind kind{};  // kPosix for OFD locks too: who tells
  Mode mode{};
  std::int64_t start{};
  std::int64_t len{};  // 0: to the end of file
  auto operator<=>(const Held&) const = default;
};

// The end of a request that waited.
struct Completion {
  char actor{};
  char slot{};
  std::string result;  // granted or an errno's name
  auto operator<=>(const Completion&) const = default;
};

struct Outcome {
  std::string result;
  std::vector<Held> locks;
  std::vector<Completion> completed;  // sorted
  bool operator==(const Outcome&) const = default;
};

[[nodiscard]] std::string to_string(const Held& held);
[[nodiscard]] std::string to_string(const Outcome& outcome);

// Renders steps with their outcomes as a scenario file: the form in which failures are reported.
[[nodiscard]] std::string render_script(const std::vector<Step>& steps,
                                        const std::vector<Outcome>& outcomes);

// "EAGAIN" for EAGAIN.
[[nodiscard]] std::string errno_name(int err);

}  // namespace latchfs::locktest
