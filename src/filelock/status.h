// How things stand with a file and a filelock, from what is on disk. Changes nothing.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "filelock/mark.h"
#include "filelock/metadata.h"
#include "filelock/outcome.h"
#include "filelock/side_files.h"

namespace latchfs::filelock {

// A file as the caller found it: descriptors stay his. file: any descriptor, O_PATH too; -1 if the
// directory has no such name.
struct Place {
  int dir{-1};
  std::string name;
  int file{-1};
};

enum class Condition : std::uint8_t {
  kUnlocked,     // apply() may
  kLocked,       // all three parts are there and agree
  kOtherName,    // locked under another name of the inode, which there may still be: apply, remove
                 // and revert by this one are refused (EBUSY)
  kReverting,    // a revert was begun and is not complete: remove() and revert complete it
  kIncomplete,   // locked; metadata or backup are missing, damaged or not its own: remove() works
                 // and leaves what is not its own, retag() writes the metadata anew, revert needs
                 // the backup
  kDamagedMark,  // locked for all but admins; remove() works, all else is refused (EBUSY)
  kSideFile,  // it is itself the backup or the metadata of a lock: nothing is done to it (EINVAL)
  kOrphan,    // not locked, but files beside it are marked as a lock's: apply() replaces those made
              // for this inode, others are in its way (EBUSY) until an admin removes them
};

struct Status {
  Condition condition{};
  std::optional<Mark> mark;  // the file's own
  // What the side files are called after: the mark's name where that is certainly gone (the file
  // was renamed), else the place's.
  std::string side_name;
  SideState metadata{};
  SideState backup{};
  std::optional<Metadata> info;  // if the metadata is there and whole
  std::string words;             // what is wrong; empty for kUnlocked and kLocked
};
// ENAMETOOLONG and EINVAL as side_names() for a file that is not locked; else what the machine
// says.
[[nodiscard]] Outcome<Status> status_of(const Place& place);

}  // namespace latchfs::filelock
