// The right to change one inode's filelock, and what its holder is doing: a file DEV-INO in the
// state directory, held by flock(2), so that it ends with its holder. What a dead one left in it
// tells the next what to finish or undo; it is empty otherwise.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "base/unique_fd.h"
#include "filelock/mark.h"
#include "filelock/outcome.h"
#include "latchfs/types.h"
#include "posix/file_handle.h"

namespace latchfs::filelock {

enum class Op : std::uint8_t { kApply, kRetag, kRemove, kRevert };

struct JournalEntry {
  Op op{};
  bool committed{};  // of kRevert only: what follows is to be done, again if need be
  LockId id;
  FileId file;
  posix::FileHandle file_handle;  // empty where there are none, as below
  FileId dir;
  posix::FileHandle dir_handle;
  std::string name;  // that the side files are named after
};
// One line. Whether it is committed is one byte at a fixed place, so that saying so is one write
// that is made whole or not.
[[nodiscard]] std::string entry_text(const JournalEntry& entry);
[[nodiscard]] std::optional<JournalEntry> parse_entry(std::string_view text);

// Held as long as it lives. Movable, not thread-safe.
class Journal {
 public:
  using StateDir = std::shared_ptr<const UniqueFd>;

  // Waits until deadline_ns (CLOCK_MONOTONIC) for whoever has it; EBUSY then.
  [[nodiscard]] static Result<Journal> take(const StateDir& state, FileId file,
                                            std::int64_t deadline_ns);
  // Of a file that is there already. EBUSY if it is held, ENOENT if it is gone.
  [[nodiscard]] static Result<Journal> take_left(const StateDir& state, const std::string& name);

  Journal(Journal&&) noexcept = default;
  Journal& operator=(Journal&&) = delete;
  Journal(const Journal&) = delete;
  Journal& operator=(const Journal&) = delete;
  // Removes the file, unless there is something in it for whoever comes next.
  ~Journal();

  // What is in it; nothing too if that makes no sense (after a loss of power).
  [[nodiscard]] Result<std::optional<JournalEntry>> read() const;
  // Comes before anything it describes. durable: survives a loss of power.
  Result<void> write(const JournalEntry& entry, bool durable);
  // durable, of a kRevert that was written.
  Result<void> commit();
  // What was written is done or undone.
  Result<void> clear();

 private:
  Journal(StateDir state, UniqueFd fd, std::string name)
      : state_{std::move(state)}, fd_{std::move(fd)}, name_{std::move(name)} {}
  static Result<bool> lock(int state, const std::string& name, int fd);

  StateDir state_;
  UniqueFd fd_;
  std::string name_;
};

// "DEV-INO" in hex, and whether a name is one.
[[nodiscard]] std::string journal_name(FileId file);
[[nodiscard]] bool is_journal_name(std::string_view name);

}  // namespace latchfs::filelock
