// Carries out Ops: the part of the differential test that runs inside an actor's process.
#pragma once

#include <sys/stat.h>
#include <sys/types.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "support/fs_op.h"

namespace latchfs::fsdiff {

// What a call gave. Everything in it but stat's device, inode and times must be equal in both
// worlds; those are compared by relation.
struct Outcome {
  std::int64_t ret{};
  int err{};
  bool has_stat{};
  struct stat st {};
  std::string data;  // bytes read, names listed, notes: text
};

// Ways to do a step wrongly, to prove that the comparison sees it.
enum class Sabotage : std::uint8_t {
  kNone,
  kLoseChmod,          // chmod reports success and does nothing
  kLoseByte,           // the last byte of a write never arrives
  kFlipByte,           // one byte of a write is wrong
  kMisplaceAppend,     // O_APPEND is ignored
  kWrongErrno,         // ENOTEMPTY becomes EEXIST
  kKeepSuid,           // a write by a user leaves suid and sgid
  kLoseXattr,          // setxattr reports success and does nothing
  kOverwriteOnRename,  // RENAME_NOREPLACE is ignored
  kExchangeAsRename,   // RENAME_EXCHANGE is ignored
  kWholeSeconds,       // utimensat loses the nanoseconds
  kNoPunch,            // a punched hole keeps its data
  kNoZero,             // a zeroed range keeps its data
  kIgnoreSticky,       // unlink refused to a user is done as root
  kIgnoreUmask,        // files are made with the umask 0
  kWrongGroup,         // a new directory gets the caller's group in a setgid directory
  kFollowLink,         // lchown changes the target
  kShortList,          // listings lose their last name
  kTouchOnRead,        // reading changes mtime
  kDenyGroup,          // supplementary groups are not honoured
  kLast = kDenyGroup,
};
[[nodiscard]] const char* name_of(Sabotage sabotage);

class Executor {
 public:
  explicit Executor(Sabotage sabotage);
  ~Executor();
  Executor(const Executor&) = delete;
  Executor& operator=(const Executor&) = delete;

  Outcome run(const Op& op);

 private:
  struct Map {
    char* at{};
    std::size_t size{};
    bool writable{};
    int open{-1};  // what it is of stays open as long: fs_deviations.cpp
  };
  // How a path of an Op is given to the *at calls.
  struct At {
    int dir{};
    std::string path;
    [[nodiscard]] const char* c_str() const { return path.c_str(); }
  };

  [[nodiscard]] int slot(int number) const;
  [[nodiscard]] At at(int mount, int dir, const std::string& path) const;
  [[nodiscard]] At first(const Op& op) const { return at(op.mount, op.dir, op.path); }
  [[nodiscard]] At second(const Op& op) const { return at(op.mount, op.dir2, op.path2); }
  void fill(int number, int fd);

  Outcome run_descriptor(const Op& op);  // fs_exec.cpp
  Outcome run_program(const Op& op);
  Outcome exec(const Op& op);
  Outcome run_data(const Op& op);  // fs_exec_data.cpp
  Outcome run_write(const Op& op);
  Outcome run_map(const Op& op);
  static void drop(Map& map);
  Outcome run_name(const Op& op);  // fs_exec_name.cpp
  Outcome run_attr(const Op& op);  // fs_exec_attr.cpp
  Outcome run_xattr(const Op& op);
  // fs_sabotage.cpp: the Op as the sabotaged world is to do it, and what is done afterwards.
  [[nodiscard]] Op spoil_before(const Op& op);
  void spoil_after(const Op& op, Outcome& outcome);

  Sabotage sabotage_;
  std::array<int, kSlots> slots_{};
  std::array<Map, kMaps> maps_{};
  std::array<pid_t, kChildren> children_{};
};

// The outcome of a call that answers -1 and errno.
[[nodiscard]] Outcome answer(std::int64_t ret);
// Length, hash and first bytes.
[[nodiscard]] std::string digest(const char* data, std::size_t size);

// Calls touch() with SIGBUS caught: false if it came.
[[nodiscard]] bool without_sigbus(void (*touch)(void*), void* argument);

}  // namespace latchfs::fsdiff
