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

std::int64_t Generator::near_offset() { return pick(kOffsets); }
std::int64_t Generator::offset() { return chance(2) ? pick(kFarOffsets) : near_offset(); }
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
