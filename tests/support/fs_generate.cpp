#include "support/fs_generate.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>

namespace latchfs::fsdiff {
namespace {

struct Weight {
  Call call;
  int weight;
};

constexpr Weight kWeights[] = {
    {Call::kOpen, 130},      {Call::kClose, 30},      {Call::kDup, 8},       {Call::kSetfl, 4},
    {Call::kGetfl, 3},       {Call::kChdir, 6},       {Call::kFchdir, 4},    {Call::kUmask, 10},
    {Call::kFileSize, 2},    {Call::kRead, 25},       {Call::kPread, 30},    {Call::kReadv, 8},
    {Call::kWrite, 40},      {Call::kPwrite, 45},     {Call::kWritev, 12},   {Call::kSeek, 20},
    {Call::kTruncate, 18},   {Call::kFtruncate, 18},  {Call::kAllocate, 28}, {Call::kAdvise, 4},
    {Call::kCopyRange, 14},  {Call::kSendfile, 8},    {Call::kSplice, 8},    {Call::kFsync, 10},
    {Call::kMap, 14},        {Call::kMapPeek, 14},    {Call::kMapPoke, 14},  {Call::kUnmap, 4},
    {Call::kMkdir, 30},      {Call::kRmdir, 14},      {Call::kMknod, 14},    {Call::kSymlink, 18},
    {Call::kReadlink, 10},   {Call::kLink, 18},       {Call::kLinkFd, 5},    {Call::kUnlink, 24},
    {Call::kRename, 40},     {Call::kReaddir, 16},    {Call::kList, 16},     {Call::kStat, 40},
    {Call::kFstat, 20},      {Call::kStatfs, 4},      {Call::kAccess, 20},   {Call::kChmod, 30},
    {Call::kFchmod, 10},     {Call::kChown, 24},      {Call::kFchown, 8},    {Call::kUtimens, 18},
    {Call::kFutimens, 8},    {Call::kSetxattr, 20},   {Call::kGetxattr, 12}, {Call::kListxattr, 8},
    {Call::kRemovexattr, 8}, {Call::kSetacl, 20},     {Call::kGetflags, 5},  {Call::kSetflags, 4},
    {Call::kIoctl, 4},       {Call::kMakeProgram, 8}, {Call::kExec, 12},     {Call::kSpawn, 4},
    {Call::kReap, 4}};

constexpr std::int64_t kModes[] = {0644,  0600, 0666, 0755, 0777,  0700,  0640,  0770,
                                   0444,  0222, 0111, 0,    04755, 02755, 06777, 01777,
                                   02770, 0660, 0666, 0777, 0777,  0666,  0755,  02777};

std::string long_name(std::size_t size) { return std::string(size - 1, 'L') + "x"; }

constexpr std::int64_t kSizes[] = {0,    1,    7,    64,   100,   511,   512,   1000,
                                   4095, 4096, 4097, 8192, 10000, 16384, 65536, 70001};
constexpr std::int64_t kOffsets[] = {0,     1,      100,  511,   512,   4095,  4096,
                                     4097,  8191,   8192, 10000, 12288, 16384, 65536,
                                     70001, 131072, 4096, 8192,  0,     0};
constexpr std::int64_t kFarOffsets[] = {std::int64_t{1} << 20,   (std::int64_t{1} << 32) + 5,
                                        (std::int64_t{1} << 43), (std::int64_t{1} << 44) - 4096,
                                        std::int64_t{1} << 44,   INT64_MAX,
                                        INT64_MAX - 4095,        -1};

}  // namespace

Generator::Generator(std::uint64_t seed, int mounts, std::vector<int> actors)
    : random_{seed}, mounts_{mounts}, actors_{std::move(actors)} {}

int Generator::number(int below) {
  // Not std::uniform_int_distribution: its results differ between libraries.
  return static_cast<int>(random_() % static_cast<std::uint64_t>(std::max(below, 1)));
}

std::string Generator::name() {
  static const std::vector<std::string> names = {"a",
                                                 "b",
                                                 "c",
                                                 "d",
                                                 "e",
                                                 "f",
                                                 "g",
                                                 "h",
                                                 "ln",
                                                 "ln2",
                                                 "s p",
                                                 "n\nl",
                                                 "\xff\xfe\x80",
                                                 ".hid",
                                                 "..x",
                                                 long_name(255)};
  if (chance(1)) return long_name(256);
  return pick(names);
}

std::string Generator::decorate(std::string path) {
  switch (number(60)) {
    case 0:
      return path + "/";
    case 1:
      return path + "/.";
    case 2:
      return path + "/..";
    case 3:
      return "./" + path;
    case 4: {
      const auto slash = path.find('/');
      return slash == std::string::npos ? path : path.replace(slash, 1, "//");
    }
    default:
      return path;
  }
}

std::string Generator::fresh_path(const std::vector<Known>& existing) {
  if (chance(1)) {
    switch (number(3)) {
      case 0:
        return "";
      case 1: {
        std::string deep = "a";
        while (deep.size() < 4080) deep += "/a";
        return deep;
      }
      default:
        return std::string(5000, 'p');
    }
  }
  const std::string parent = path(existing, 75, Want::kDirectory);
  return chance(75) ? parent + "/" + name() : name();
}

bool Generator::fits(const Known& known, Want want) {
  switch (want) {
    case Want::kFile:
      return known.regular;
    case Want::kDirectory:
      return known.directory;
    case Want::kLink:
      return known.link;
    case Want::kProgram:
      return known.executable;
    default:
      return true;
  }
}

std::string Generator::path(const std::vector<Known>& existing, int existing_percent, Want want) {
  if (!existing.empty() && chance(existing_percent)) {
    Known known = pick(existing);
    for (int i = 0; i < 20 && !fits(known, want) && !chance(5); ++i) known = pick(existing);
    const std::string& found = known.path;
    return decorate(chance(2) ? "/m" + std::to_string(number(mounts_)) + "/" + found : found);
  }
  return decorate(want == Want::kDirectory ? name() : fresh_path(existing));
}

int Generator::any_slot(bool directory) {
  std::vector<int> open;
  for (int i = 0; i < kSlots; ++i) {
    const auto n = static_cast<std::size_t>(i);
    if (slots_->open.at(n) && slots_->directory.at(n) == directory && !slots_->direct.at(n)) {
      open.push_back(i);
    }
  }
  if (!open.empty() && chance(96)) return pick(open);
  const int any = number(kSlots);
  return slots_->direct.at(static_cast<std::size_t>(any)) ? kSlots : any;
}

bool Generator::has_slot(bool directory) const {
  for (std::size_t i = 0; i < kSlots; ++i) {
    if (slots_->open.at(i) && slots_->directory.at(i) == directory && !slots_->direct.at(i)) {
      return true;
    }
  }
  return false;
}

int Generator::free_slot() {
  for (int i = 0; i < kSlots; ++i) {
    if (!slots_->open.at(static_cast<std::size_t>(i)) && chance(70)) return i;
  }
  return number(kSlots);
}

std::int64_t Generator::offset() { return chance(2) ? pick(kFarOffsets) : pick(kOffsets); }
std::int64_t Generator::size() { return pick(kSizes); }
std::int64_t Generator::mode() { return pick(kModes); }

std::int64_t Generator::user() {
  static const std::int64_t users[] = {-1, -1, 0, 61001, 61002, 61003, 61010, 61011, 61001, 61004};
  return pick(users);
}

std::int64_t Generator::open_flags() {
  static const int access[] = {O_RDONLY, O_RDONLY, O_WRONLY, O_RDWR, O_RDWR, O_RDWR};
  std::int64_t flags = pick(access);
  if (chance(1)) flags |= O_ACCMODE;
  if (chance(45)) flags |= O_CREAT;
  if (chance(8)) flags |= O_EXCL;
  if (chance(14)) flags |= O_TRUNC;
  if (chance(14)) flags |= O_APPEND;
  if (chance(8)) flags |= O_DIRECTORY;
  if (chance(8)) flags |= O_NOFOLLOW;
  if (chance(4)) flags |= O_PATH;
  if (chance(5)) flags |= O_NOATIME;
  if (chance(4)) flags |= O_SYNC;
  if (chance(3)) flags |= O_DSYNC;
  if (chance(5)) flags = (flags & ~O_APPEND) | O_DIRECT;
  if (chance(4)) flags = (flags & ~(O_CREAT | O_DIRECTORY)) | O_TMPFILE;
  return flags;
}

std::int64_t Generator::allocate_mode() {
  static const int modes[] = {0,
                              FALLOC_FL_KEEP_SIZE,
                              FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                              FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                              FALLOC_FL_PUNCH_HOLE,
                              FALLOC_FL_ZERO_RANGE,
                              FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
                              FALLOC_FL_COLLAPSE_RANGE,
                              FALLOC_FL_INSERT_RANGE,
                              FALLOC_FL_UNSHARE_RANGE,
                              0x100};
  return pick(modes);
}

void Generator::place(int& dir, std::string& where, const std::vector<Known>& existing, int percent,
                      Want want) {
  where = path(existing, percent, want);
  if (chance(8) && has_slot(true)) {
    dir = any_slot(true);
    where = chance(85) ? name() : where;
  } else if (chance(5)) {
    dir = kWorkingDir;
    where = chance(70) ? name() : where;
  }
}

Op Generator::next(const std::vector<Known>& existing) {
  static const int total = [] {
    int sum = 0;
    for (const Weight& w : kWeights) sum += w.weight;
    return sum;
  }();
  Op op;
  // The first two do most: sharing descriptors and files needs somebody to be there often.
  const auto all = static_cast<int>(actors_.size());
  op.actor = actors_[static_cast<std::size_t>(chance(60) ? number(std::min(2, all)) : number(all))];
  op.mount = number(mounts_);
  slots_ = &state_.at(static_cast<std::size_t>(op.actor));
  int left = number(total);
  for (const Weight& w : kWeights) {
    left -= w.weight;
    op.call = w.call;
    if (left < 0) break;
  }
  if (slots_->limited) {  // a file size limit lasts for a few steps only
    op.call = chance(60) ? op.call : Call::kFileSize;
  }
  if (op.call >= Call::kMakeProgram) {
    programs(op, existing);
  } else if (op.call >= Call::kStat) {
    attributes(op, existing);
  } else if (op.call >= Call::kMkdir) {
    names(op, existing);
  } else {
    data(op, existing);
  }
  return op;
}

void Generator::open_something(Op& op, const std::vector<Known>& existing, bool directory) {
  op.call = Call::kOpen;
  op.fd2 = -1;
  op.c = op.d = 0;
  op.a = open_flags();
  op.b = mode();
  if (directory) op.a = O_RDONLY | O_DIRECTORY | (chance(10) ? O_PATH : 0);
  const bool into = directory || (op.a & O_TMPFILE) == O_TMPFILE;
  place(op.dir, op.path, existing, (op.a & O_CREAT) != 0 ? 45 : 94,
        into ? Want::kDirectory : Want::kFile);
  op.fd = free_slot();
}

void Generator::data(Op& op, const std::vector<Known>& existing) {
  const bool by_descriptor = op.call != Call::kChdir && op.call != Call::kUmask &&
                             op.call != Call::kFileSize && op.call != Call::kTruncate &&
                             op.call != Call::kFchdir;
  if (by_descriptor && !has_slot(false) && chance(95)) return open_something(op, existing, false);
  op.fd = any_slot(false);
  op.c = number(1'000'000);
  const auto direct = std::find(slots_->direct.begin(), slots_->direct.end(), true);
  if (direct != slots_->direct.end() && chance(15)) {
    op.call = chance(50) ? Call::kPread : Call::kPwrite;
    op.fd = static_cast<int>(direct - slots_->direct.begin());
    op.a = (1 + number(5)) * 4096;
    op.b = number(20) * 4096;
    return;
  }
  switch (op.call) {
    case Call::kOpen: {
      open_something(op, existing, chance(20));
      break;
    }
    case Call::kDup:
      op.fd2 = free_slot();
      break;
    case Call::kSetfl: {
      static const int flags[] = {0, O_APPEND, O_NOATIME, O_APPEND | O_NOATIME};
      op.a = pick(flags);
      break;
    }
    case Call::kChdir:
      op.path = path(existing, 95, Want::kDirectory);
      break;
    case Call::kFchdir:
      op.fd = any_slot(true);
      break;
    case Call::kUmask: {
      static const int masks[] = {0, 022, 027, 077, 0777, 02, 0123};
      op.a = pick(masks);
      break;
    }
    case Call::kFileSize:
      op.a = slots_->limited ? 0 : pick(kOffsets);
      break;
    case Call::kRead:
    case Call::kWrite:
      op.a = size();
      break;
    case Call::kPread:
    case Call::kPwrite:
      op.a = size();
      op.b = offset();
      break;
    case Call::kReadv:
    case Call::kWritev:
      op.a = std::min<std::int64_t>(size(), 20000);
      op.b = chance(50) ? -1 : offset();
      break;
    case Call::kSeek: {
      static const int whence[] = {SEEK_SET, SEEK_CUR, SEEK_END, SEEK_DATA, SEEK_HOLE, 7};
      op.a = chance(10) ? -pick(kOffsets) : offset();
      op.b = pick(whence);
      if (chance(5)) op.fd = any_slot(true);
      break;
    }
    case Call::kTruncate:
      op.path = path(existing, 94, Want::kFile);
      op.a = offset();
      break;
    case Call::kFtruncate:
      op.a = offset();
      break;
    case Call::kAllocate:
      op.c = allocate_mode();
      op.a = chance(70) ? number(24) * 4096 : offset();
      op.b = chance(70) ? (1 + number(16)) * 4096 : offset();
      // A far end would really be allocated, and the disk is not ours alone.
      if (op.b > (1 << 20)) op.b = 1 << 20;
      break;
    case Call::kAdvise:
      op.a = offset();
      op.b = size();
      op.c = number(7);
      break;
    case Call::kCopyRange:
      op.fd2 = any_slot(false);
      op.a = chance(30) ? -1 : offset();
      op.b = chance(30) ? -1 : offset();
      op.c = size();
      break;
    case Call::kSendfile:
      op.fd2 = any_slot(false);
      op.a = chance(30) ? -1 : offset();
      op.b = size();
      break;
    case Call::kSplice:
      op.fd2 = any_slot(false);
      op.a = offset();
      op.b = offset();
      op.c = size();
      break;
    case Call::kFsync:
      op.a = number(2);
      if (chance(10)) op.fd = any_slot(true);
      break;
    case Call::kMap:
      op.a = chance(90) ? number(8) * 4096 : offset();
      op.b = (1 + number(6)) * 4096;
      op.c = number(4);
      op.d = number(kMaps);
      break;
    case Call::kMapPeek:
    case Call::kMapPoke:
      op.a = pick(kOffsets);
      op.b = std::min<std::int64_t>(size(), 9000);
      op.d = number(kMaps);
      break;
    case Call::kUnmap:
      op.d = number(kMaps);
      break;
    default:
      break;
  }
}

void Generator::names(Op& op, const std::vector<Known>& existing) {
  op.a = mode();
  if ((op.call == Call::kReaddir || op.call == Call::kList) && !has_slot(true) && chance(95)) {
    return open_something(op, existing, true);
  }
  if (op.call == Call::kLinkFd && !has_slot(false)) return open_something(op, existing, false);
  switch (op.call) {
    case Call::kMkdir:
      place(op.dir, op.path, existing, 15);
      break;
    case Call::kRmdir:
      place(op.dir, op.path, existing, 94, Want::kDirectory);
      break;
    case Call::kUnlink:
      place(op.dir, op.path, existing, 94, chance(75) ? Want::kFile : Want::kAny);
      break;
    case Call::kMknod: {
      static const int types[] = {S_IFIFO, S_IFIFO, S_IFSOCK, S_IFCHR,
                                  S_IFBLK, S_IFREG, 0,        S_IFDIR};
      op.a |= pick(types);
      op.b = static_cast<std::int64_t>(makedev(1, chance(50) ? 3 : 5));
      place(op.dir, op.path, existing, 10);
      break;
    }
    case Call::kSymlink:
      place(op.dir, op.path, existing, 10);
      op.a = 0;
      switch (number(8)) {
        case 0:
          op.text = name();
          break;
        case 1:
          op.text = "../" + name();
          break;
        case 2:
          op.text = path(existing, 90, Want::kAny);
          break;
        case 3:
          op.text = op.path;
          break;
        case 4:
          op.text = "/m0/" + path(existing, 90, Want::kAny);
          break;
        case 5:
          op.text = std::string(static_cast<std::size_t>(4090 + number(8)), 't');
          break;
        case 6:
          op.text = "ln";
          break;
        default:
          op.text = chance(20) ? "" : path(existing, 95, Want::kAny);
          break;
      }
      break;
    case Call::kReadlink:
      op.a = chance(80) ? 4096 : number(12);
      place(op.dir, op.path, existing, 92, Want::kLink);
      break;
    case Call::kLink: {
      static const int flags[] = {0, 0, 0, AT_SYMLINK_FOLLOW, AT_EMPTY_PATH};
      op.a = pick(flags);
      place(op.dir, op.path, existing, 94, chance(75) ? Want::kFile : Want::kAny);
      place(op.dir2, op.path2, existing, 12);
      break;
    }
    case Call::kLinkFd:
      op.fd = any_slot(false);
      place(op.dir2, op.path2, existing, 12);
      break;
    case Call::kRename: {
      static const int flags[] = {0, 0, 0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT,
                                  3};
      op.a = chance(94) ? pick(flags) & ~RENAME_WHITEOUT : pick(flags);
      place(op.dir, op.path, existing, 94);
      place(op.dir2, op.path2, existing, chance(60) ? 5 : 90);
      break;
    }
    case Call::kReaddir: {
      static const int sizes[] = {32, 100, 300, 4096, 32768, 0};
      op.fd = any_slot(true);
      op.a = pick(sizes);
      break;
    }
    default:
      op.fd = any_slot(true);
      break;
  }
}

void Generator::attributes(Op& op, const std::vector<Known>& existing) {
  static const std::string xattrs[] = {"user.a",   "user.b", "user.a", "trusted.t", "security.s",
                                       "system.x", "user.",  "plain",  "user.tail"};
  static const std::string acls[] = {"system.posix_acl_access", "system.posix_acl_default"};
  const bool by_descriptor = op.call == Call::kFstat || op.call == Call::kFchmod ||
                             op.call == Call::kFchown || op.call == Call::kFutimens ||
                             op.call == Call::kGetflags || op.call == Call::kSetflags ||
                             op.call == Call::kIoctl;
  if (by_descriptor && !has_slot(false) && chance(95)) {
    return open_something(op, existing, chance(20));
  }
  place(op.dir, op.path, existing, 94);
  switch (op.call) {
    case Call::kStat: {
      static const int flags[] = {0, AT_SYMLINK_NOFOLLOW, AT_SYMLINK_NOFOLLOW, AT_EMPTY_PATH};
      op.a = pick(flags);
      break;
    }
    case Call::kFstat:
      op.fd = any_slot(chance(30));
      break;
    case Call::kStatfs:
      op.fd = chance(50) ? any_slot(chance(30)) : -1;
      break;
    case Call::kAccess: {
      static const int flags[] = {0, AT_EACCESS, AT_SYMLINK_NOFOLLOW};
      op.a = number(9);
      op.b = pick(flags);
      break;
    }
    case Call::kChmod:
      op.a = mode();
      break;
    case Call::kFchmod:
      op.a = mode();
      op.fd = any_slot(chance(20));
      break;
    case Call::kChown:
      op.a = user();
      op.b = user();
      op.c = chance(50) ? AT_SYMLINK_NOFOLLOW : 0;
      break;
    case Call::kFchown:
      op.a = user();
      op.b = user();
      op.fd = any_slot(chance(20));
      break;
    case Call::kUtimens:
      op.c = chance(30) ? AT_SYMLINK_NOFOLLOW : 0;
      [[fallthrough]];
    case Call::kFutimens:
      op.a = number(kTimeChoices);
      op.b = chance(30) ? op.a : number(kTimeChoices);
      op.fd = op.call == Call::kFutimens ? any_slot(chance(20)) : -1;
      break;
    case Call::kSetxattr:
    case Call::kGetxattr:
    case Call::kListxattr:
    case Call::kRemovexattr: {
      static const std::int64_t sizes[] = {1, 20, 20, 60, 60, 200, 300, 1000, 3000, 0, 65536};
      op.text = chance(10) ? pick(acls) : pick(xattrs);
      if (chance(2))
        op.text = "user." + std::string(static_cast<std::size_t>(250 + number(2)), 'x');
      op.a = op.call == Call::kListxattr ? (chance(80) ? 65536 : number(60)) : pick(sizes);
      op.b = chance(85) ? 0 : number(4);
      if (chance(1)) op.a = 65537;
      if (chance(60)) op.text = "user." + std::string(1, static_cast<char>('a' + number(3)));
      if (op.call == Call::kGetxattr && chance(70)) op.a = 65536;
      op.c = number(1'000'000);
      op.d = chance(30) ? 1 : 0;
      op.fd = chance(25) ? any_slot(chance(20)) : -1;
      break;
    }
    case Call::kSetacl:
      op.text = acls[chance(40) ? 1 : 0];
      op.b = 0;
      op.c = static_cast<std::int64_t>(random_() & 0x1fffffff);
      op.fd = chance(20) ? any_slot(chance(20)) : -1;
      break;
    case Call::kGetflags:
      op.fd = any_slot(chance(30));
      break;
    case Call::kSetflags: {
      static const int flags[] = {0, 0, FS_APPEND_FL, FS_IMMUTABLE_FL, FS_NODUMP_FL, FS_NOATIME_FL};
      op.fd = any_slot(chance(30));
      op.a = pick(flags);
      break;
    }
    default:
      op.fd = any_slot(chance(20));
      op.a = number(5);
      break;
  }
}

void Generator::programs(Op& op, const std::vector<Known>& existing) {
  static const std::int64_t modes[] = {0755, 0711, 04755, 0700, 02755};
  switch (op.call) {
    case Call::kMakeProgram:
      place(op.dir, op.path, existing, 30);
      op.a = pick(modes);
      op.b = number(2);
      break;
    case Call::kExec:
    case Call::kSpawn:
      // Always from the mount's root: the runner looks at the program before it lets it run.
      op.path = path(existing, 97, Want::kProgram);
      op.d = number(kChildren);
      break;
    default:
      op.d = number(kChildren);
      break;
  }
}

void Generator::learn(const Op& op, const Outcome& outcome) {
  Slots& slots = state_.at(static_cast<std::size_t>(op.actor));
  auto at = [](auto& list, std::int64_t n) -> bool& {
    return list.at(static_cast<std::size_t>(n));
  };
  if (op.call == Call::kFileSize) slots.limited = op.a != 0;
  if (outcome.ret < 0) return;
  if (op.call == Call::kOpen) {
    at(slots.direct, op.fd) = (op.a & O_DIRECT) != 0;
    at(slots.open, op.fd) = true;
    at(slots.directory, op.fd) = (op.a & O_DIRECTORY) != 0 && (op.a & O_TMPFILE) != O_TMPFILE;
  } else if (op.call == Call::kDup) {
    at(slots.open, op.fd2) = true;
    at(slots.direct, op.fd2) = false;
    at(slots.directory, op.fd2) = op.fd >= 0 && at(slots.directory, op.fd);
  } else if (op.call == Call::kClose && op.fd >= 0) {
    at(slots.open, op.fd) = false;
    at(slots.direct, op.fd) = false;
  }
}

}  // namespace latchfs::fsdiff
