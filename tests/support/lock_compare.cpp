#include "support/lock_compare.h"

#include <algorithm>

namespace latchfs::locktest {
namespace {

bool asks_fcntl(const Step& step, Kind kind) {
  return (step.verb == Verb::kLock || step.verb == Verb::kGet) && step.kind == kind;
}

// The one holder that F_GETLK names, if both name one.
bool both_name_one(const Outcome& native, const Outcome& mount) {
  return native.locks.size() == 1 && mount.locks.size() == 1;
}

void forgive_ofd_getlk_pid(const Step& step, const Outcome& native, Outcome& mount) {
  if (!asks_fcntl(step, Kind::kOfd) || !both_name_one(native, mount)) return;
  if (mount.locks[0].who == "ofd") mount.locks[0].who = native.locks[0].who;
}

void forgive_ofd_holder_pid(const Step& step, const Outcome& native, Outcome& mount) {
  if (!asks_fcntl(step, Kind::kPosix) || !both_name_one(native, mount)) return;
  if (native.locks[0].who == "ofd" && mount.locks[0].who == "pid 0") mount.locks[0].who = "ofd";
}

void forgive_unknown_kind(const Step& step, const Outcome& native, Outcome& mount) {
  if (step.verb != Verb::kList || native.locks.size() != mount.locks.size()) return;
  for (std::size_t i = 0; i < native.locks.size(); ++i) {
    if (mount.locks[i].who == "?") mount.locks[i].who = native.locks[i].who;
  }
}

void forgive_unlisted(const Step& step, const Outcome& native, Outcome& mount) {
  if (step.verb == Verb::kList && native.result == "unlisted") mount = native;
}

}  // namespace

const std::vector<Deviation>& deviations() {
  static const std::vector<Deviation> all{
      {"F_OFD_GETLK never names a process",
       "fs/locks.c fcntl_getlk() marks the question FL_OFDLCK; fs/fuse/file.c "
       "convert_fuse_file_lock() copies type, range and pid of the answer but not its flags, so "
       "locks_translate_pid() gives -1 for a POSIX holder too",
       forgive_ofd_getlk_pid},
      {"F_GETLK gives l_pid 0 for an OFD holder",
       "the other way round: the flag that makes locks_translate_pid() say -1 cannot be set from "
       "outside, and convert_fuse_file_lock() turns a pid that is no process (-1) into 0",
       forgive_ofd_holder_pid},
      {"a lock's kind is not always known",
       "fs/fuse/file.c fuse_lk_fill() sends the same request for POSIX and OFD locks; `list` says "
       "kind \"\" where the edge could not find out",
       forgive_unknown_kind},
      {"(the oracle cannot be listed)",
       "/proc/locks names files by the device of their super block, which on overlayfs and btrfs "
       "is not what stat(2) says: nothing to compare with",
       forgive_unlisted},
  };
  return all;
}

bool agree(const Step& step, const Outcome& native, const Outcome& mount) {
  if (native == mount) return true;
  Outcome forgiven = mount;
  for (const Deviation& deviation : deviations()) deviation.forgive(step, native, forgiven);
  return native == forgiven;
}

bool Comparison::agree(const Step& step, const Outcome& native, const Outcome& mount) {
  const bool names_holder = step.verb == Verb::kLock || step.verb == Verb::kGet;
  const auto granted = std::count_if(native.completed.begin(), native.completed.end(),
                                     [](const Completion& c) { return c.result == "granted"; });
  const bool order_was_open = order_open_;
  order_open_ = order_open_ || granted > 1;
  if (locktest::agree(step, native, mount)) return true;
  if (!order_was_open || !names_holder || !both_name_one(native, mount)) return false;
  Outcome same_holder = mount;
  same_holder.locks = native.locks;
  return locktest::agree(step, native, same_holder);
}

}  // namespace latchfs::locktest
