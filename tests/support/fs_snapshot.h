// Everything a program could see of a tree, as values; and what differs between two.
#pragma once

#include <sys/stat.h>

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

namespace latchfs::fsdiff {

struct Entry {
  struct stat st {};
  std::string link;                           // target of a symlink
  std::string content;                        // digest of a regular file's bytes
  std::string holes;                          // where they are: "data 0-4096, ..."
  std::map<std::string, std::string> xattrs;  // ACLs included
  std::string group;                          // the first path of the same inode
  std::string error;                          // what could not be read of it
};
using Snapshot = std::map<std::string, Entry>;  // by path below the root; "" is the root

// Reads the tree at root, as the calling process, without moving access times.
[[nodiscard]] Snapshot take_snapshot(const std::string& root);

using TimeName = std::function<std::string(const timespec&)>;

enum class AccessTimes : std::uint8_t {
  kExact,
  kMayMissReads,  // the second world may not have noticed every read; it must not invent any
  kIgnored,
};

struct CompareOptions {
  bool times{true};
  // Where holes are, exactly. A range that is allocated and was never written counts as data or as
  // a hole depending on what is in the page cache, readahead included.
  bool holes{true};
  AccessTimes access_times{AccessTimes::kExact};
  bool special_times{true};  // those of FIFOs and devices too, which writing to them changes
};

// One line for each difference, at most 20.
[[nodiscard]] std::vector<std::string> differences(const Snapshot& a, const TimeName& time_a,
                                                   const Snapshot& b, const TimeName& time_b,
                                                   const CompareOptions& options);
// The same for one file's attributes: "" when equal.
[[nodiscard]] std::string difference(const struct stat& a, const TimeName& time_a,
                                     const struct stat& b, const TimeName& time_b,
                                     const CompareOptions& options);

}  // namespace latchfs::fsdiff
