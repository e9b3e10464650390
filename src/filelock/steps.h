// What is done to the files, step by step; who does it holds the journal and has written what he is
// about to do. Internal to the room. All of it runs as the daemon but for the copying of content.
#pragma once

#include <string>

#include "base/caller.h"
#include "filelock/journal.h"
#include "filelock/mark.h"
#include "filelock/metadata.h"
#include "filelock/outcome.h"

namespace latchfs::filelock {

struct Ground {
  int dir{-1};       // ordinary
  int file{-1};      // O_PATH; -1: the file is gone for ever
  std::string name;  // that the side files are named after; makes side_names() succeed
};

// The mark that goes with a lock's side files.
[[nodiscard]] Mark side_mark_of(const Mark& lock);

// Metadata as a new file of that name (EBUSY as give_name()), or in the place of what is ours
// there.
Outcome<void> make_metadata(const Ground& ground, const Mark& lock, const Metadata& metadata,
                            const struct stat& file);
Outcome<void> replace_metadata(const Ground& ground, const Mark& lock, const Metadata& metadata,
                               const struct stat& file);

// Backup, metadata, mark. After a failure there may be parts of it: undo_apply().
Outcome<void> do_apply(const Ground& ground, const Mark& lock, const Metadata& metadata,
                       const Caller& caller);
// Takes away what do_apply() made. Not to be called of a lock in force.
Outcome<void> undo_apply(const Ground& ground, const LockId& id);

// From the mark on; may be done again.
Outcome<void> do_remove(const Ground& ground, const LockId& id);

// Both files open and fit for it, space reserved; nothing is changed. ENOENT, EBUSY with words.
Outcome<void> check_revert(const Ground& ground, const LockId& id, const Caller& caller);
// The commit: metadata and journal say that it is being reverted.
Outcome<void> commit_revert(const Ground& ground, const Mark& lock, Journal& journal);
// What follows it: content, attributes, then do_remove(). May be done again. ENOENT or EBUSY, with
// nothing done, if the backup is not there.
Outcome<void> do_revert(const Ground& ground, const LockId& id);

// Finishes or undoes what somebody who died had begun. Failures can be tried again.
Outcome<void> settle(const JournalEntry& entry, const Ground& ground);

}  // namespace latchfs::filelock
