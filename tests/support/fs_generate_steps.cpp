// What a step of each kind is made of: the operands that Generator::next() asks for.
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>

#include "support/fs_generate.h"

namespace latchfs::fsdiff {

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
      op.a = slots_->limited ? 0 : near_offset();
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
      op.a = chance(10) ? -near_offset() : offset();
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
      op.a = near_offset();
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

}  // namespace latchfs::fsdiff
