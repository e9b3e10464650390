#include "mount/fs_deviations.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <unistd.h>

#include <cerrno>

namespace latchfs::fsdiff {
namespace {

bool shifts_a_range(const Op& op) {
  constexpr int known = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE;
  return op.call == Call::kAllocate && (op.c & ~known) != 0;
}

bool makes_nameless(const Op& op) {
  return op.call == Call::kOpen && (op.a & O_TMPFILE) == O_TMPFILE;
}

// The same but for the file system's type, which is FUSE's own.
bool only_statfs_type(const Op& op, const Outcome& native, const Outcome& ours) {
  if (op.call != Call::kStatfs || native.ret != ours.ret || native.err != ours.err) return false;
  auto rest = [](const std::string& s) { return s.substr(s.find(" bsize")); };
  return rest(native.data) == rest(ours.data);
}

bool protects(const Op& op) {
  return op.call == Call::kSetflags && (op.a & (FS_IMMUTABLE_FL | FS_APPEND_FL)) != 0;
}

bool preallocates(const Op& op) {
  return op.call == Call::kAllocate && (op.c & FALLOC_FL_PUNCH_HOLE) == 0;
}

bool tells_holes(const Op& op, const Outcome& native, const Outcome& ours) {
  return op.call == Call::kSeek && (op.b == SEEK_DATA || op.b == SEEK_HOLE) &&
         (native.err == 0 || native.err == ENXIO) && (ours.err == 0 || ours.err == ENXIO);
}

bool both_refuse(const Op&, const Outcome& native, const Outcome& ours) {
  return native.err == EPERM && ours.err == EACCES;
}

std::vector<Deviation> common() {
  return {
      {"fallocate: COLLAPSE, INSERT and UNSHARE_RANGE give EOPNOTSUPP",
       "fs/fuse/file.c: fuse_file_fallocate(), the test of mode", shifts_a_range, nullptr},
      {"open: O_TMPFILE gives EOPNOTSUPP (libfuse before 3.17 does not know the request)",
       "fs/fuse/dir.c: fuse_tmpfile(), ENOSYS", makes_nameless, nullptr},
      {"statfs: f_type is FUSE_SUPER_MAGIC", "fs/fuse/inode.c: fuse_statfs", nullptr,
       only_statfs_type},
  };
}

}  // namespace

const std::vector<Deviation>& deviations() {
  static const std::vector<Deviation> table = [] {
    auto rows = common();
    rows.push_back({"(tested apart, below)", "", protects, nullptr});
    rows.push_back(
        {"lseek: of ranges that are preallocated and unwritten, FUSE's longer readahead "
         "makes more count as data (SEEK_DATA, SEEK_HOLE)",
         "mm/filemap.c: mapping_seek_hole_data(); fs/fuse/file.c: fuse_readahead()", nullptr,
         tells_holes});
    return rows;
  }();
  return table;
}

const std::vector<Deviation>& deviations_without_preallocation() {
  static const std::vector<Deviation> table = [] {
    auto rows = common();
    rows.push_back({"(tested apart)", "", protects, nullptr});
    rows.push_back({"(tested apart)", "", preallocates, nullptr});
    return rows;
  }();
  return table;
}

const std::vector<Deviation>& deviations_with_protection() {
  static const std::vector<Deviation> table = [] {
    auto rows = common();
    rows.push_back({"immutable and append-only files: EACCES where both it and EPERM apply",
                    "fs/namei.c: inode_permission() tests IS_IMMUTABLE first; FUSE inodes have no "
                    "such flags",
                    nullptr, both_refuse});
    rows.push_back({"(tested apart)", "", preallocates, nullptr});
    return rows;
  }();
  return table;
}

}  // namespace latchfs::fsdiff
