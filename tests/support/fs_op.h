// One step of the differential filesystem test: a system call with its arguments, as a value
// that prints to one line and parses back, so that a failing sequence can be kept and replayed.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace latchfs::fsdiff {

// In the comments: a, b, c, d are Op's numbers; "data(c)" is the pattern made from c.
enum class Call : std::uint8_t {
  // Descriptors.
  kOpen,      // openat(dir, path, a, b) -> slot fd
  kClose,     // close(fd)
  kDup,       // dup(fd) -> slot fd2
  kSetfl,     // fcntl(fd, F_SETFL, a)
  kGetfl,     // fcntl(fd, F_GETFL)
  kChdir,     // chdir(path)
  kFchdir,    // fchdir(fd)
  kUmask,     // umask(a)
  kFileSize,  // setrlimit(RLIMIT_FSIZE, a), 0 = no limit
  // Data.
  kRead,       // read(fd, a bytes)
  kPread,      // pread(fd, a bytes, at b)
  kReadv,      // preadv(fd, three pieces of a bytes, at b; b < 0: readv)
  kWrite,      // write(fd, a bytes of data(c))
  kPwrite,     // pwrite(fd, a bytes of data(c), at b)
  kWritev,     // pwritev(fd, three pieces of a bytes of data(c), at b; b < 0: writev)
  kSeek,       // lseek(fd, a, b); not of a directory, SEEK_DATA or SEEK_HOLE: and back again
  kTruncate,   // truncate(path, a)
  kFtruncate,  // ftruncate(fd, a)
  kAllocate,   // fallocate(fd, c, a, b)
  kAdvise,     // posix_fadvise(fd, a, b, c)
  kCopyRange,  // copy_file_range(fd, a, fd2, b, c); a or b < 0: the file offset
  kSendfile,   // sendfile(fd2, fd, a, b); a < 0: the file offset
  kSplice,     // fd at a -> pipe -> fd2 at b, c bytes
  kFsync,      // fsync(fd); a: fdatasync
  kMap,        // mmap(fd, at a, b bytes, c: MapKind) -> mapping d
  kMapPeek,    // reads b bytes at a of mapping d
  kMapPoke,    // stores b bytes of data(c) at a of mapping d, preads them by fd, msyncs
  kUnmap,      // munmap(mapping d)
  // Names.
  kMkdir,     // mkdirat(dir, path, a)
  kRmdir,     // unlinkat(dir, path, AT_REMOVEDIR)
  kMknod,     // mknodat(dir, path, a, b)
  kSymlink,   // symlinkat(text, dir, path)
  kReadlink,  // readlinkat(dir, path, a bytes)
  kLink,      // linkat(dir, path, dir2, path2, a)
  kLinkFd,    // linkat(fd, "", dir2, path2, AT_EMPTY_PATH)
  kUnlink,    // unlinkat(dir, path, 0)
  kRename,    // renameat2(dir, path, dir2, path2, a)
  kReaddir,   // getdents64(fd, a bytes)
  kList,      // lseek(fd, 0) and getdents64 to the end
  // Attributes.
  kStat,         // fstatat(dir, path, a)
  kFstat,        // fstat(fd)
  kStatfs,       // fstatfs(fd) or statfs(path)
  kAccess,       // faccessat2(dir, path, a, b)
  kChmod,        // fchmodat(dir, path, a)
  kFchmod,       // fchmod(fd, a)
  kChown,        // fchownat(dir, path, a, b, c)
  kFchown,       // fchown(fd, a, b)
  kUtimens,      // utimensat(dir, path, times(a), times(b), c)
  kFutimens,     // futimens(fd, times(a), times(b))
  kSetxattr,     // setxattr(path, text, a bytes of data(c), b); d: lsetxattr; fd >= 0: fsetxattr
  kGetxattr,     // getxattr(path, text, a bytes) likewise
  kListxattr,    // listxattr(path, a bytes) likewise
  kRemovexattr,  // removexattr(path, text) likewise
  kSetacl,       // setxattr(path, text, acl(c), b)
  kGetflags,     // ioctl(fd, FS_IOC_GETFLAGS)
  kSetflags,     // ioctl(fd, FS_IOC_SETFLAGS, a)
  kIoctl,        // ioctl(fd, one of a few others, by a)
  // Programs.
  kMakeProgram,  // creates path with mode a holding the program b
  kExec,         // runs path, gives its exit status
  kSpawn,        // runs path, which stays until kReap -> child d
  kReap,         // kills child d
};

enum class MapKind : std::uint8_t { kSharedRw, kSharedRo, kPrivateRw, kSharedExec };

constexpr int kMountRoot = -1;   // Op::dir: the path is relative to the root of mount Op::mount
constexpr int kWorkingDir = -2;  // Op::dir: relative to the actor's current directory
constexpr int kSlots = 12;
constexpr int kMaps = 3;
constexpr int kChildren = 2;
constexpr int kActors = 6;

struct Op {
  Call call{};
  int actor{};
  int mount{};
  int fd{-1}, fd2{-1};
  int dir{kMountRoot}, dir2{kMountRoot};
  std::int64_t a{}, b{}, c{}, d{};
  std::string path, path2, text;
};

[[nodiscard]] std::string_view name_of(Call call);
[[nodiscard]] std::string print(const Op& op);
// Empty unless line came from print().
[[nodiscard]] std::optional<Op> parse(std::string_view line);

// size bytes that differ for each seed and each position: any misplaced byte shows.
[[nodiscard]] std::string pattern(std::int64_t seed, std::size_t size);

// The timestamps utimensat is tried with: UTIME_NOW, UTIME_OMIT, an invalid one and fixed ones.
constexpr int kTimeChoices = 10;
[[nodiscard]] std::pair<std::int64_t, std::int64_t> time_choice(std::int64_t index);

// A system.posix_acl_* value: valid for most seeds, malformed for some.
[[nodiscard]] std::string acl_value(std::int64_t seed);

// Programs small enough to be written by a test: 0 exits with its effective uid's low 7 bits,
// 1 sleeps until killed.
[[nodiscard]] const std::string& program(std::int64_t which);

[[nodiscard]] std::string escape(std::string_view raw);
[[nodiscard]] std::string unescape(std::string_view text);

}  // namespace latchfs::fsdiff
