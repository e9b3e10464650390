// Processes of a user who modify one file by all ways there are, as fast as they can, and count
// whether any of that succeeds while the test says that the file is filelocked.
//
// The test publishes what it knows in shared memory: an attempt that began and ended in the same
// locked epoch lay wholly between a filelock that had returned and an unfilelock that was not yet
// asked for. All that is written is kRecord bytes of one value at a multiple of kRecord, so that a
// torn write shows.
#pragma once

#include <sys/types.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

namespace latchfs::test {

inline constexpr std::size_t kRecord = 512;

// Who hammers. Each has one process, or two.
enum class Hammer : std::uint8_t {
  kWrite,     // pwrite, also by descriptors that stay open
  kAppend,    // O_APPEND
  kCut,       // O_TRUNC and anew, ftruncate, truncate
  kPunch,     // fallocate, copy_file_range
  kReplace,   // rename over it
  kMoveAway,  // rename away and back, exchange
  kRecreate,  // unlink and create
  kChange,    // chmod, utimens, setxattr, removexattr
  kLink,      // link and unlink of that
  kMap,       // mmap, store, munmap
};
inline constexpr std::size_t kHammers = 10;
const char* name_of(Hammer hammer);

struct HammerBoard {
  static constexpr std::size_t kMost = 16;
  // Odd: locked.
  std::atomic<std::uint64_t> epoch;
  std::atomic<std::uint64_t> ino;  // as the mounts show it, of what was locked last
  std::atomic<bool> pause;         // all but kMap
  std::atomic<bool> pause_maps;    // kMap
  std::atomic<bool> hold_map;      // kMap keeps a mapping as long as this is so
  std::atomic<std::uint32_t> held;
  struct One {
    std::atomic<bool> idle;
    std::atomic<std::uint64_t> done;     // that succeeded, at any time
    std::atomic<std::uint64_t> refused;  // while it was locked
  };
  std::array<One, kMost> of;
  // Of those that went wrong, the first.
  std::atomic<std::uint64_t> wrong;
  std::atomic<bool> told;
  std::array<char, 256> what;
};

// They end with it.
class Hammers {
 public:
  // mounts: of the directory in which FILE is. Throws std::runtime_error.
  Hammers(uid_t uid, std::vector<std::string> mounts, std::string file);
  ~Hammers();
  Hammers(const Hammers&) = delete;
  Hammers& operator=(const Hammers&) = delete;

  [[nodiscard]] HammerBoard& board() { return *board_; }
  // None of those is in a call after this.
  void pause(bool others, bool maps);
  void resume();
  // One of them has the file mapped, and keeps it so until release_map(). False: none got to.
  [[nodiscard]] bool hold_map();
  void release_map();
  [[nodiscard]] const std::vector<pid_t>& maps() const { return map_pids_; }
  // One line: how often each succeeded and was refused.
  [[nodiscard]] std::string summary() const;
  [[nodiscard]] bool all_refused_and_done() const;

 private:
  struct Process {
    pid_t pid{};
    Hammer hammer{};
  };
  HammerBoard* board_;
  std::vector<Process> processes_;
  std::vector<pid_t> map_pids_;
};

}  // namespace latchfs::test
