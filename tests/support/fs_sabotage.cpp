// The deliberate faults of Sabotage: each rewrites a step before it is done, or undoes part of it
// afterwards, as a faulty filesystem would.
#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <array>
#include <cerrno>

#include "support/fs_exec.h"

namespace latchfs::fsdiff {
namespace {

constexpr std::array kNames = {
    "none",          "lose chmod",  "lose byte",  "flip byte",           "misplace append",
    "wrong errno",   "keep suid",   "lose xattr", "overwrite on rename", "exchange as rename",
    "whole seconds", "no punch",    "no zero",    "ignore sticky",       "ignore umask",
    "wrong group",   "follow link", "short list", "touch on read",       "deny group"};
static_assert(kNames.size() == static_cast<std::size_t>(Sabotage::kLast) + 1);

bool writes(Call call) {
  return call == Call::kWrite || call == Call::kPwrite || call == Call::kWritev;
}

// A call with no effect that reports success.
Op nothing(const Op& op) {
  Op out;
  out.call = Call::kReap;
  out.actor = op.actor;
  out.d = kChildren - 1;
  return out;
}

}  // namespace

const char* name_of(Sabotage sabotage) { return kNames.at(static_cast<std::size_t>(sabotage)); }

Op Executor::spoil_before(const Op& op) {
  Op out = op;
  switch (sabotage_) {
    case Sabotage::kLoseChmod:
      if (op.call == Call::kFchmod && slot(op.fd) < 900) return nothing(op);
      break;
    case Sabotage::kLoseByte:
      if ((op.call == Call::kWrite || op.call == Call::kPwrite) && op.a > 1) --out.a;
      break;
    case Sabotage::kMisplaceAppend:
      if (op.call == Call::kOpen) out.a &= ~O_APPEND;
      break;
    case Sabotage::kLoseXattr:
      if (op.call == Call::kSetxattr && op.b == 0 && op.a > 0 && op.fd < 0) {
        out.call = Call::kGetxattr;
        out.a = 0;
      }
      break;
    case Sabotage::kOverwriteOnRename:
      if (op.call == Call::kRename && op.a == 1) out.a = 0;
      break;
    case Sabotage::kExchangeAsRename:
      if (op.call == Call::kRename && op.a == 2) out.a = 0;
      break;
    case Sabotage::kWholeSeconds:
      if (op.call == Call::kUtimens && op.a == 6) out.a = 3;
      break;
    case Sabotage::kNoPunch:
      if (op.call == Call::kAllocate && (op.c & FALLOC_FL_PUNCH_HOLE) != 0) {
        out.c = FALLOC_FL_KEEP_SIZE;
      }
      break;
    case Sabotage::kNoZero:
      if (op.call == Call::kAllocate && (op.c & FALLOC_FL_ZERO_RANGE) != 0) {
        out.c &= ~FALLOC_FL_ZERO_RANGE;
      }
      break;
    case Sabotage::kFollowLink:
      if (op.call == Call::kChown) out.c &= ~AT_SYMLINK_NOFOLLOW;
      break;
    case Sabotage::kIgnoreUmask:
      if (op.call == Call::kUmask) out.a = 0;
      break;
    default:
      break;
  }
  return out;
}

void Executor::spoil_after(const Op& op, Outcome& outcome) {
  const At where = first(op);
  switch (sabotage_) {
    case Sabotage::kLoseByte:
      if ((op.call == Call::kWrite || op.call == Call::kPwrite) && op.a > 1 &&
          outcome.ret == op.a - 1) {
        ++outcome.ret;
      }
      break;
    case Sabotage::kWrongErrno:
      if (outcome.err == ENOTEMPTY) outcome.err = EEXIST;
      break;
    case Sabotage::kKeepSuid:
      if (writes(op.call) && outcome.ret > 0 && geteuid() != 0) {
        struct stat st {};
        if (fstat(slot(op.fd), &st) == 0) (void)fchmod(slot(op.fd), st.st_mode | S_ISUID);
      }
      break;
    case Sabotage::kLoseXattr:
      if (op.call == Call::kSetxattr && outcome.err == ENODATA) outcome = {};
      break;
    case Sabotage::kIgnoreSticky:
      if (op.call == Call::kUnlink && outcome.err == EPERM && seteuid(0) == 0) {
        outcome = answer(unlinkat(where.dir, where.c_str(), 0));
      }
      break;
    case Sabotage::kWrongGroup:
      if (op.call == Call::kMkdir && outcome.err == 0) {
        (void)fchownat(where.dir, where.c_str(), geteuid(), getegid(), AT_SYMLINK_NOFOLLOW);
      }
      break;
    case Sabotage::kShortList:
      if (op.call == Call::kList && outcome.err == 0) {
        outcome.data.erase(outcome.data.find_last_of(' '));
      }
      break;
    case Sabotage::kTouchOnRead:
      if (op.call == Call::kPread && outcome.ret > 0) (void)futimens(slot(op.fd), nullptr);
      break;
    case Sabotage::kDenyGroup:
      if (op.call == Call::kAccess && outcome.err == 0) {
        struct stat st {};
        if (fstatat(where.dir, where.c_str(), &st, 0) == 0 && st.st_uid != geteuid() &&
            st.st_gid != getegid() && geteuid() != 0 && (st.st_mode & 07) == 0) {
          outcome.ret = -1;
          outcome.err = EACCES;
        }
      }
      break;
    default:
      break;
  }
}

}  // namespace latchfs::fsdiff
