// The filelocks below a directory, found by the names of their side files: what `filelock` lists.
//
// On disk is the only place where all of them are known: trees are moved, mounts end, tables are
// lost. So the directories are read, in the order of names, component by component; nothing else is
// looked at but what the side files' names lead to.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "control/filelocks.h"
#include "latchfs/result.h"
#include "posix/inode_table.h"

namespace latchfs::fuse {

class FilelockWalk {
 public:
  // inodes: knows the root, and how to step over mounts. hidden: a name in the root that is left
  // out.
  FilelockWalk(posix::InodeTable& inodes, std::string hidden)
      : inodes_{inodes}, hidden_{std::move(hidden)} {}

  // control::Filelocks::list(). Runs as the daemon. Thread-safe.
  Result<control::Filelocks::Page> list(std::string_view after, std::uint32_t limit);

  // What is in force on a name, "" for nothing. file: its O_PATH descriptor, -1 if nothing has it.
  static bool describe(int dir, const std::string& name, int file, std::string path,
                       control::FilelockEntry& entry);

 private:
  posix::InodeTable& inodes_;
  const std::string hidden_;
};

}  // namespace latchfs::fuse
