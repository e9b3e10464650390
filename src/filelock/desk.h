// Where filelocks are made and ended: the on-disk state of one file's lock, changed by one at a
// time in all daemons of this user on this machine, and whole after the death of any of them.
//
// Knows nothing of who may do what, nor of FUSE: the caller has checked rights, and nobody modifies
// the file by any way while a Session on it exists (reading is fine). Everything goes by
// descriptors; threads are left as the daemon (posix/credentials.h).
//
// Promises, at a death of the process at any instant and at a loss of power:
// - apply: the file is either not locked or locked with backup and metadata. After a failure it is
// not
//   locked, and nothing is left beside it.
// - remove: locked or not; what may be left beside it goes at the next begin() or recover().
// - revert: the old lock with the content as it was before the call, or, from the commit on,
// completed
//   by the next begin() or recover(). In between the file stays locked.
// Recovery may itself die and be tried again. An ordinary failure after a commit (EIO, ENOSPC)
// leaves the rest to it as well, and is told.
//
// A left-over that no journal tells of any more (state directory lost) is known by its mark, and
// replaced by the next apply().
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/caller.h"
#include "base/unique_fd.h"
#include "filelock/journal.h"
#include "filelock/mark.h"
#include "filelock/metadata.h"
#include "filelock/outcome.h"
#include "filelock/side_files.h"
#include "filelock/status.h"
#include "latchfs/types.h"

namespace latchfs::filelock {

struct LockInfo {
  std::string user;  // of who locks
  uid_t uid{};
  std::string path;        // as he gave it
  std::string tags{"{}"};  // a JSON object, as text
};

// The exclusive right over one inode's filelock. One thread at a time. All failures carry words.
class Session {
 public:
  Session(Session&&) noexcept = default;
  Session& operator=(Session&&) = delete;
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;
  ~Session() = default;

  // As status_of() this file.
  [[nodiscard]] Outcome<Status> status() const;

  // Locks the file as it is now: the answer is its mark. caller: whose space the backup takes.
  // EINVAL: not a regular file, or tags are no object. EBUSY: it is locked already (status() says
  // by whom), or something else has the name of a side file. EOPNOTSUPP: its file system cannot.
  // ENAMETOOLONG, EMSGSIZE; ENOSPC, EDQUOT and whatever else the machine says.
  Outcome<Mark> apply(const LockInfo& info, const Caller& caller);

  // New path, user and tags in the metadata of a file that is locked; mark and backup stay. Also
  // makes metadata anew that is missing or damaged. Either the old or the new ones are there.
  Outcome<void> retag(const LockInfo& info);

  // Ends the lock and removes what is its own of the side files. ENOENT: it is not locked.
  // Completes a revert that was begun instead, where it still can be.
  Outcome<void> remove();

  // Ends it with content, mode, times, extended attributes and owner as they were, in the same
  // inode. ENOENT: not locked, or no backup. EBUSY: the mark is damaged or what is there is
  // another's backup. ENOSPC with nothing changed if there is no room for the old content; caller
  // as above.
  Outcome<void> revert_and_remove(const Caller& caller);

 private:
  friend class Desk;
  Session(Journal journal, UniqueFd dir, UniqueFd file, std::string name)
      : journal_{std::move(journal)},
        dir_{std::move(dir)},
        file_{std::move(file)},
        name_{std::move(name)} {}

  // The status, if the lock may be changed by this name.
  Outcome<Status> locked_status() const;
  Outcome<void> begin_op(Op op, const LockId& id, const std::string& name);
  Outcome<void> end_op(Outcome<void> outcome);
  Outcome<void> remove_damaged(const Status& status);
  Outcome<void> revert(const Status& status, const Caller& caller);

  Journal journal_;
  UniqueFd dir_;   // ordinary
  UniqueFd file_;  // as the caller gave it
  std::string name_;
};

// What recover() did with journals: settled, of others that are at work, not ours to settle (the
// directory is not on this file system, or cannot be had), failed (logged).
struct Recovered {
  unsigned settled{};
  unsigned held{};
  unsigned left{};
  unsigned failed{};
};

// One a daemon; any thread. All daemons that may meet the same files use the same state directory.
class Desk {
 public:
  // state: made, 0700, if it is missing; its parent is there and trusted. EPERM, with words, if it
  // is another user's or others may write to it.
  [[nodiscard]] static Outcome<Desk> open(const std::string& state);

  // Waits for whoever has the file, until deadline_ns (CLOCK_MONOTONIC): EBUSY. Then settles what
  // somebody who died had begun with it. ESTALE: the name is no longer that file's. EBUSY too if
  // what was begun cannot be settled from here.
  [[nodiscard]] Outcome<Session> begin(const Place& place, std::int64_t deadline_ns) const;

  // The files whose journals tell of something that was begun and that nobody is at.
  [[nodiscard]] std::vector<FileId> abandoned() const;

  // Settles whatever dead daemons had begun on the file system of `root` (any descriptor on it):
  // at mount, and when another daemon is seen to have died. Waits for nobody; no scan of any tree.
  // May be called at any time, by any number of daemons at once, again and again.
  // only: of these files, in which nobody is at work; those of all others are left.
  Recovered recover(int root, const std::vector<FileId>* only = nullptr) const;

 private:
  explicit Desk(Journal::StateDir state) : state_{std::move(state)} {}

  Journal::StateDir state_;
};

}  // namespace latchfs::filelock
