// Which number a nested file system had in the daemons before this one, so that node ids below it
// (node_ids.h) mean the same again: one small file for each SOURCE, in the state directory.
//
// A file system is remembered by the way to it, a directory's node id and a name there, because
// device numbers change. What is mounted there may be another one by now: that the node ids are not
// taken for its files is the generations' business (InodeTable::generation_of()).
//
// Text, a line each: NUMBER PARENT NAME-IN-HEX. Read and appended to under flock(2): several mounts
// of one SOURCE agree. Lines that make no sense are nothing; of two of one number the later counts.
// At most 510 are kept: the oldest gives way that this daemon has not given to a device, which it
// keeps (docs/design.md). A file of many times that is written anew beside it
// and renamed, so that a death or a full disk loses nothing. Not thread-safe; makes system calls.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/unique_fd.h"
#include "latchfs/result.h"

namespace latchfs::posix {

class DeviceNumbers {
 public:
  struct Way {
    std::uint64_t parent{};  // 0: not known
    std::string name;
    bool operator==(const Way&) const = default;
  };

  // directory: the state directory, made (0700) when there is something to remember; "": nothing is
  // remembered. source: what SOURCE is known by.
  DeviceNumbers(std::string directory, std::string_view source, unsigned most);

  // The number of what is entered by `way`, a remembered or a new one (remembered from now on, if
  // the way is known). free: whether this daemon can give it the number. EOVERFLOW: all are taken;
  // what is_for_now(): the file could not be read.
  Result<unsigned> number_of(const Way& way, const std::function<bool(unsigned)>& free);
  // ESTALE: no such number. Errors as above.
  [[nodiscard]] Result<Way> way_of(unsigned number);

 private:
  struct Line {
    unsigned number{};
    Way way;
  };
  // Locked until closed. Invalid: it is not there, or not ours alone.
  struct File {
    UniqueFd dir, fd;
  };
  // Only errors that are for now.
  Result<File> open(bool make);
  std::vector<Line> read(int fd) const;
  void remember(const File& file, std::vector<Line> lines, const Line& fresh) const;

  const std::string directory_;
  const std::string name_;
  const unsigned most_;  // numbers are 1 to most - 1
};

}  // namespace latchfs::posix
