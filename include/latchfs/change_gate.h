// Modifications in flight, and files that are not to be modified: what filelocks stand on. The
// second seam beside lock_service.h; stores implement both.
//
// Whoever is about to modify a file says so first (begin_change), then looks whether he may: at
// filelock_version(), which is one load, and only where that is another than the one he knew at the
// file's mark and at transition_on(). Whoever changes a file's filelock does the opposite: first he
// says so (begin_transition, which makes the version another one), then he waits for the changes in
// flight (wait_for_changes). Of the two, one sees the other. docs/design.md, "Filelocks".
//
// Thread-safe. Nothing here takes a mutex of the lock table; but for wait_for_changes() and a
// begin_change() with more threads than slots nothing waits or makes a system call.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "latchfs/result.h"
#include "latchfs/types.h"

namespace latchfs {

// A modification: of bytes, or (whole range, not listed) of anything else about a file.
struct Change {
  FileId file;
  ByteRange range;
  Holder holder;
  // Shown by LockService::list() while it is in flight. False where nobody wants to see it, or
  // another record of it is shown (begin_op()).
  bool listed{};
};

// Names a change in flight; 0 is none.
struct ChangeTicket {
  std::uint64_t raw{};
};

class ChangeGate {
 public:
  virtual ~ChangeGate() = default;

  // In flight from the return on until end_change(), or the death of the daemon, of which the
  // others clear it. Each thread has at most two at once.
  [[nodiscard]] virtual ChangeTicket begin_change(const Change& change) noexcept = 0;
  virtual void end_change(ChangeTicket ticket) noexcept = 0;

  // Another number whenever the filelock of this file, or of one that shares its place, began or
  // ceased to change since. Never 0.
  [[nodiscard]] virtual std::uint64_t filelock_version(FileId file) const noexcept = 0;
  // Another number after each transition that ended, of any file.
  [[nodiscard]] virtual std::uint64_t filelock_changes() const noexcept = 0;

  // The file's filelock is being put on or taken off: nobody but who does it modifies the file.
  // ENOBUFS: too many at once.
  [[nodiscard]] virtual Result<ChangeTicket> begin_transition(FileId file, std::uint32_t uid) = 0;
  virtual void end_transition(ChangeTicket ticket) noexcept = 0;
  // The uid for which a transition of the file is under way.
  [[nodiscard]] virtual std::optional<std::uint32_t> transition_on(FileId file) const noexcept = 0;

  // Somebody has the file open so that he could map it and modify it without being asked: known to
  // all mounts from the return on until leave_storer() or the death of the daemon.
  struct Storer {
    std::uint32_t uid{};
    std::uint32_t gid{};
    std::uint32_t pid{};  // thread id
  };
  [[nodiscard]] virtual ChangeTicket enter_storer(FileId file, const Storer& who) noexcept = 0;
  virtual void leave_storer(ChangeTicket ticket) noexcept = 0;
  // Who has, of all mounts. ENOBUFS: there are more than is kept of, this file's perhaps among
  // them.
  [[nodiscard]] virtual Result<std::vector<Storer>> storers(FileId file) const = 0;

  // Waits until what was in flight on the file at some moment of the call is over, in this mount
  // and all others. What was still in flight at the deadline (CLOCK_MONOTONIC ns), empty if
  // nothing.
  [[nodiscard]] virtual std::vector<Change> wait_for_changes(FileId file,
                                                             std::int64_t deadline) = 0;
};

}  // namespace latchfs
