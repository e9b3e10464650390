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

bool stays_running(const Op& op) { return op.call == Call::kSpawn; }

bool maps(const Op& op) {
  return op.call == Call::kMap || op.call == Call::kMapPeek || op.call == Call::kMapPoke;
}

bool runs_what_is_written(const Op& op, const Outcome& native, const Outcome&) {
  return op.call == Call::kExec && native.err == ETXTBSY;
}

bool holds_only_the_name_of_what_is_gone(const Op& op, const Outcome& native, const Outcome& ours) {
  if (ours.err != ESTALE && ours.err != EIO) return false;
  return (op.call == Call::kFstat && native.has_stat && native.st.st_nlink == 0) ||
         (op.call == Call::kLinkFd && native.err == ENOENT);
}

bool sets_flags(const Op& op) { return op.call == Call::kSetflags; }

bool runs_what_it_may_not_read(const Op& op, const Outcome& native, const Outcome& ours) {
  const bool runs = op.call == Call::kExec || op.call == Call::kSpawn;
  return runs && native.err != EACCES && ours.err == EACCES;
}

bool both_refuse(const Op&, const Outcome& native, const Outcome& ours) {
  return native.err == EPERM && ours.err != 0;
}

bool writes_nothing(const Op& op, const Outcome& native, const Outcome& ours) {
  const bool writes = op.call == Call::kWrite || op.call == Call::kPwrite;
  return writes && op.a == 0 && native.err == EPERM && ours.ret == 0;
}

bool goes_beyond_the_largest(const Op& op, const Outcome& native, const Outcome& ours) {
  const bool moves =
      op.call == Call::kCopyRange || op.call == Call::kSendfile || op.call == Call::kSplice;
  const bool too_far = native.err == EOVERFLOW || native.err == EFBIG || native.err == EINVAL;
  return moves && too_far && (ours.err != 0 || ours.ret == 0);
}

bool works_in_a_removed_directory(const Op&, const Outcome& native, const Outcome& ours) {
  return native.err == ENOENT && (ours.err == EACCES || ours.err == ESTALE);
}

bool seeks_in_directory(const Op& op, const Outcome& native, const Outcome& ours) {
  return op.call == Call::kSeek && native.data == "directory" && ours.data == native.data;
}

bool seeks_far(const Op& op, const Outcome& native, const Outcome& ours) {
  return op.call == Call::kSeek && native.err == EINVAL && ours.ret > (std::int64_t{1} << 43);
}

bool reads_on(const Op& op, const Outcome& native, const Outcome& ours) {
  const auto fits = [](int err) { return err == 0 || err == EINVAL; };  // the buffer, or not
  return op.call == Call::kReaddir && fits(native.err) && fits(ours.err);
}

bool asks_for_flags(const Op& op, const Outcome& native, const Outcome& ours) {
  const bool asks = op.call == Call::kGetflags || (op.call == Call::kIoctl && op.a == 0);
  const bool sets = op.call == Call::kSetflags && native.err == EPERM;
  return ours.err == EACCES && (sets || (asks && native.err == 0));
}

bool splices(const Op& op) { return op.call == Call::kSplice || op.call == Call::kSendfile; }

bool copies(const Op& op) { return op.call == Call::kCopyRange; }

bool changes_no_owner(const Op& op, const Outcome& native, const Outcome& ours) {
  const bool chowns = op.call == Call::kChown || op.call == Call::kFchown;
  return chowns && static_cast<uid_t>(op.a) == static_cast<uid_t>(-1) &&
         static_cast<gid_t>(op.b) == static_cast<gid_t>(-1) && native.err == EPERM && ours.ret == 0;
}

bool switches_noatime(const Op& op) { return op.call == Call::kSetfl && (op.a & O_NOATIME) != 0; }

std::vector<Deviation> common() {
  return {
      {"fallocate: COLLAPSE, INSERT and UNSHARE_RANGE give EOPNOTSUPP",
       "fs/fuse/file.c: fuse_file_fallocate(), the test of mode", shifts_a_range, nullptr},
      {"open: O_TMPFILE gives EOPNOTSUPP (libfuse before 3.17 does not know the request)",
       "fs/fuse/dir.c: fuse_tmpfile(), ENOSYS", makes_nameless, nullptr},
      // Compared with CompareOptions, not here:
      {"atime: a read from the page cache does not change it",
       "fs/fuse/inode.c: fuse_iget(), S_NOATIME", nullptr, nullptr},
      {"open: O_DIRECT asks for no alignment",
       "fs/fuse/file.c: fuse_direct_io(); the daemon's own "
       "descriptor has not got it",
       nullptr, nullptr},  // Generator aligns
      {"splice, sendfile: EINVAL from a file that is open for writing too, where files are passed "
       "through",
       "fs/fuse/file.c: fuse_splice_read() uses pages that nobody keeps fresh; refused by us",
       nullptr, nullptr},  // Executor then reads and writes, as programs do
      {"shared mappings: keep no open file description, where files are passed through: when all "
       "descriptors are closed, exec gives no ETXTBSY, and flock and OFD locks are gone",
       "fs/backing-file.c: backing_file_mmap(), vma_set_file()", nullptr,
       nullptr},  // Executor keeps one
      {"FIFOs and devices: reading and writing them does not change their times",
       "fs/fuse/inode.c: fuse_iget(), S_NOCMTIME; fs/pipe.c: pipe_write()", nullptr, nullptr},
      {"ioctl: FS_IOC_GETFLAGS and the like want the right to open the file now, not just a "
       "descriptor",
       "fs/fuse/ioctl.c: fuse_priv_ioctl_prepare() opens it anew", nullptr, asks_for_flags},
      {"fcntl: F_SETFL with O_NOATIME has no effect on the access time (open with it has)",
       "our choice: following it would cost each read a system call", switches_noatime, nullptr},
      {"chown: to nobody in particular (-1, -1), of a set-ID file, by who may write to it and is "
       "not "
       "its owner: 0, and changes nothing, instead of EPERM",
       "fs/fuse/dir.c: fuse_setattr() cannot tell it from file_remove_privs()", nullptr,
       changes_no_owner},
      {"statfs: f_type is FUSE_SUPER_MAGIC", "fs/fuse/inode.c: fuse_statfs", nullptr,
       only_statfs_type},
      {"lseek: offsets beyond the backing file system's largest are accepted; writing there fails",
       "fs/fuse/inode.c: fuse_sb_defaults(), s_maxbytes", nullptr, seeks_far},
      {"sendfile, splice, copy_file_range: beyond the backing file system's largest offset another "
       "error, or nothing copied",
       "fs/fuse/inode.c: fuse_sb_defaults(), s_maxbytes", nullptr, goes_beyond_the_largest},
      {"readdir: a name made since the directory was opened may show earlier (POSIX leaves it "
       "open)",
       "fs/ext4/dir.c: ext4_dx_readdir(), fs/fuse/readdir.c: fuse_readdir_uncached()", nullptr,
       reads_on},
      {"lseek on a directory: SEEK_END is its st_size, positions may lie beyond it",
       "fs/fuse/dir.c: fuse_dir_operations, generic_file_llseek()", nullptr, seeks_in_directory},
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

const std::vector<Deviation>& deviations_between_mounts() {
  static const std::vector<Deviation> table = [] {
    auto rows = deviations();
    rows.push_back(
        {"exec: ETXTBSY only for files open for writing through the same mount",
         "fs/exec.c: do_open_execat(), exe_file_deny_write_access() of the mount's inode",
         stays_running, runs_what_is_written});
    rows.push_back(
        {"mmap: what is written or cut off through one mount is not seen in mappings made "
         "through the other",
         "mm/filemap.c: filemap_fault(), the mount's own pages and i_size", maps, nullptr});
    rows.push_back(
        {"splice, sendfile: a file that grew through the other mount ends where this mount last "
         "saw its end",
         "mm/filemap.c: filemap_splice_read() reads i_size; fs/fuse/file.c: fuse_splice_read() "
         "does "
         "not ask for it as fuse_cache_read_iter() does",
         splices, nullptr});
    rows.push_back(
        {"copy_file_range: overlapping ranges of one file through two mounts are not refused",
         "fs/remap_range.c, fs/read_write.c: compare inodes, and each mount has its own", copies,
         nullptr});
    rows.push_back(
        {"O_PATH: a descriptor of a regular file whose last name is removed through the other "
         "mount "
         "gives ESTALE two seconds after its last use, unless it is open for reading or writing "
         "too",
         "our choice: the file's space is given back, not held until the kernel forgets the inode",
         nullptr, holds_only_the_name_of_what_is_gone});
    rows.push_back(
        {"a directory removed through the other mount: EACCES or ESTALE where natively ENOENT",
         "fs/namei.c: IS_DEADDIR is the mount's own inode's", nullptr,
         works_in_a_removed_directory});
    // Not in the table: Executor asks again.
    rows.push_back(
        {"rename: ESTALE for a directory that was moved through another mount and not "
         "looked at since",
         "fs/dcache.c: __d_unalias(), s_vfs_rename_mutex", nullptr, nullptr});
    return rows;
  }();
  return table;
}

const std::vector<Deviation>& deviations_of_a_users_mount() {
  static const std::vector<Deviation> table = [] {
    auto rows = deviations();
    rows.push_back({"exec: of a program that its user may run and not read, EACCES",
                    "our choice: the daemon, who is that user, reads it for the kernel", nullptr,
                    runs_what_it_may_not_read});
    // Of files that were closed to their owner meanwhile: as FS_IOC_GETFLAGS above, and then what
    // natively was done is missing.
    rows.push_back({"(tested in the others)", "", sets_flags, nullptr});
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
    rows.push_back({"immutable files: writing no bytes succeeds",
                    "fs/fuse/file.c: fuse_direct_write_iter() and fuse_perform_write() ask nobody",
                    nullptr, writes_nothing});
    rows.push_back({"immutable and append-only files: another error where it and EPERM apply",
                    "fs/namei.c: inode_permission() tests IS_IMMUTABLE first; FUSE inodes have no "
                    "such flags",
                    nullptr, both_refuse});
    rows.push_back(
        {"mmap: of a file that became append-only, a descriptor opened for writing before "
         "may be mapped shared",
         "mm/mmap.c: do_mmap() tests IS_APPEND; FUSE inodes have no such flags", maps, nullptr});
    rows.push_back({"(tested apart)", "", preallocates, nullptr});
    return rows;
  }();
  return table;
}

}  // namespace latchfs::fsdiff
