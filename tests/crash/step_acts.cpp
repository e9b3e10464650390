#include "crash/step_acts.h"

#include <sys/wait.h>
#include <unistd.h>

#include <functional>

#include "base/fault_point.h"
#include "crash/step_broken.h"

namespace latchfs::test {
namespace {

constexpr std::uint64_t kEof = ByteRange::kEof;
// Two files of two shards; which ones does not matter.
constexpr FileId kFile{1, 100};
constexpr FileId kOther{1, 7};
constexpr LockMode kEx = LockMode::kExclusive;
constexpr LockMode kSh = LockMode::kShared;

ByteRange bytes(std::uint64_t begin, std::uint64_t end) {
  return *ByteRange::from_half_open(begin, end);
}

LockRequest ask(std::uint64_t mount, std::uint64_t key, std::uint64_t begin, std::uint64_t end,
                LockMode mode, FileId file = kFile, LockKind kind = LockKind::kPosix) {
  LockRequest r;
  r.file = file;
  r.owner = {mount, key, kind == LockKind::kFlock ? OwnerSpace::kFlock : OwnerSpace::kRange};
  r.range = bytes(begin, end);
  r.mode = mode;
  r.kind = kind;
  r.holder.uid = 1000;
  r.holder.pid = 1;
  r.holder.comm = {'a', 'c', 't'};
  return r;
}

bool take(LockService& s, const LockRequest& r) {
  const auto got = s.acquire(r, OnConflict::kRefuse, {});
  return got.ok() && std::holds_alternative<Granted>(*got);
}
bool wait_for(LockService& s, const LockRequest& r, std::uint64_t token) {
  const auto got = s.acquire(r, OnConflict::kQueue, WaiterToken{token});
  return got.ok() && std::holds_alternative<Queued>(*got);
}

// Who the acts are about: owner 1 of the victim, unless they say otherwise.
std::uint64_t mine(const Stage& s) { return s.me->mount_id(); }
OwnerId owner(std::uint64_t mount, std::uint64_t key = 1) {
  return {mount, key, OwnerSpace::kRange};
}
void give_back(Stage& s, std::uint64_t begin, std::uint64_t end) {
  (void)s.store().release(kFile, owner(mine(s)), bytes(begin, end));
}

// Cells for the shards of both files, so that acts which are not about growing do not grow.
bool warm_up(Stage& s) {
  for (const FileId file : {kFile, kOther}) {
    if (!take(*s.me, ask(mine(s), 999, 0, 1, kSh, file)) ||
        !s.me->drop_owner(file, owner(mine(s), 999)).ok()) {
      return false;
    }
  }
  return true;
}
// Of one owner of the victim, with a hole; somebody else beside it.
bool some_locks(Stage& s) {
  return warm_up(s) && take(*s.me, ask(mine(s), 1, 0, 30, kEx)) &&
         take(*s.me, ask(mine(s), 1, 40, 50, kEx)) &&
         take(*s.me, ask(s.survivor, 2, 60, 70, kEx)) &&
         take(*s.me, ask(s.survivor, 3, 80, 90, kSh));
}
// Behind owner 1's [0, 30): of the survivor and of the victim, some of whom get on together.
bool some_wait(Stage& s) {
  return some_locks(s) && wait_for(*s.me, ask(s.survivor, 4, 12, 14, kEx), 900) &&
         wait_for(*s.me, ask(s.survivor, 5, 13, 20, kSh), 901) &&
         wait_for(*s.me, ask(mine(s), 6, 0, 5, kSh), 902) &&
         wait_for(*s.me, ask(s.survivor, 7, 0, kEof, kEx), 903);
}
// More of one owner than one step changes.
bool many_of(Stage& s, std::uint64_t mount) {
  for (std::uint64_t i = 0; i < 20; ++i) {
    if (!take(*s.me, ask(mount, 1, i * 10, i * 10 + 1, kEx))) return false;
  }
  return true;
}
// The file's shard has more memory than it keeps with nothing in it.
bool a_burst_is_over(Stage& s) {
  for (std::uint64_t i = 0; i < 1800; ++i) {
    if (!take(*s.me, ask(mine(s), 1, i * 10, i * 10 + 1, kEx))) return false;
  }
  return s.me->drop_owner(kFile, owner(mine(s))).ok();
}
// Behind one lock of the victim, more than one step grants.
bool crowd(Stage& s) {
  if (!warm_up(s) || !take(*s.me, ask(mine(s), 1, 0, 30, kEx))) return false;
  for (std::uint64_t i = 0; i < 14; ++i) {
    if (!wait_for(*s.me, ask(s.survivor, 100 + i, 0, 30, kSh), 900 + i)) return false;
  }
  return true;
}
// Each holds what the other is about to wait for.
bool nearly_deadlocked(Stage& s) {
  return warm_up(s) && take(*s.me, ask(mine(s), 1, 0, 1, kEx)) &&
         take(*s.me, ask(s.survivor, 2, 0, 1, kEx, kOther)) &&
         wait_for(*s.me, ask(s.survivor, 2, 0, 1, kEx), 900);
}

// Another process joins, does this, and dies as `fault` says (or where it is, with all it has).
bool somebody_dies(Stage& s, const char* fault, const std::function<void(QuietMount&)>& doing) {
  const pid_t pid = ::fork();
  if (pid == 0) {
    TellTale told;
    const auto mount = join_quietly(s.table, told);
    if (mount == nullptr) ::_exit(3);
    arm_faults(fault);
    doing(*mount);
    ::_exit(*fault == '\0' ? 0 : 3);
  }
  int status = 0;
  return pid > 0 && ::waitpid(pid, &status, 0) == pid &&
         (*fault == '\0' ? WIFEXITED(status) && WEXITSTATUS(status) == 0 : WIFSIGNALED(status));
}
// With locks and waiters of all kinds, and before it could ring for the last that it granted.
bool a_mount_died(Stage& s) {
  return somebody_dies(s, "set.below=kill@1", [&](QuietMount& m) {
    const std::uint64_t id = m.mount_id();
    (void)take(m, ask(id, 1, 0, 30, kEx));
    (void)take(m, ask(id, 1, 40, 50, kSh, kOther));
    (void)take(m, ask(id, 2, 0, kEof, kEx, kFile, LockKind::kFlock));
    (void)take(m, ask(s.survivor, 4, 60, 70, kEx));
    (void)wait_for(m, ask(s.survivor, 5, 10, 20, kSh), 900);
    (void)wait_for(m, ask(s.survivor, 6, 10, 20, kSh), 901);
    (void)wait_for(m, ask(id, 3, 60, 61, kSh), 902);
    (void)wait_for(m, ask(s.survivor, 7, 40, 41, kEx, kOther), 903);
    arm_faults("shm.committed=kill@1");
    (void)m.release(kOther, owner(id), bytes(0, kEof));
  });
}
bool join_in_earnest(Stage& s) {
  ShmStore::Options options;
  options.table = s.table;
  options.table_max = kStepTableBytes;
  auto store = ShmStore::attach(options, s.told);
  if (store) s.real = std::move(*store);
  return s.real != nullptr;
}
void join_in_the_act(Stage& s) { (void)join_in_earnest(s); }

LockService::OpRequest operation(const Stage& s, LockKind kind) {
  LockService::OpRequest op;
  op.file = kFile;
  op.op = {mine(s), 50, OwnerSpace::kOp};
  op.owner = owner(mine(s));
  op.range = bytes(5, 10);
  op.kind = kind;
  op.holder.uid = 1000;
  return op;
}

// In flight with nothing on its file, so outside of the table.
bool one_in_flight(Stage& s) {
  return warm_up(s) &&
         s.me->begin_op(operation(s, LockKind::kWriteOp), OnConflict::kRefuse, {}).ok();
}
// More of them than one step takes in.
bool many_in_flight(Stage& s) {
  if (!warm_up(s)) return false;
  for (std::uint64_t i = 0; i < 20; ++i) {
    LockService::OpRequest op = operation(s, LockKind::kWriteOp);
    op.op.key += i;
    if (!s.me->begin_op(op, OnConflict::kRefuse, {}).ok()) return false;
  }
  return true;
}

bool nothing(Stage&) { return true; }

}  // namespace

const std::vector<StepAct>& step_acts() {
  using enum Outcome;
  static const std::vector<StepAct> all = {
      {"lock", kOldOrNew, true, true, warm_up,
       [](Stage& s) { (void)take(s.store(), ask(mine(s), 1, 0, 10, kEx)); }},
      {"lock_beside", kOldOrNew, true, true, some_locks,
       [](Stage& s) { (void)take(s.store(), ask(mine(s), 1, 33, 35, kSh)); }},
      {"lock_refused", kSame, true, true, some_locks,
       [](Stage& s) { (void)take(s.store(), ask(s.survivor, 2, 20, 65, kEx)); }},
      {"first_of_a_user", kOldOrNew, true, true, some_locks,
       [](Stage& s) {
         auto r = ask(mine(s), 8, 100, 110, kEx);
         r.holder.uid = 77;
         (void)take(s.store(), r);
       }},
      {"unlock", kOldOrNew, true, true, some_locks, [](Stage& s) { give_back(s, 0, 30); }},
      {"unlock_last", kOldOrNew, true, true,
       [](Stage& s) { return warm_up(s) && take(*s.me, ask(mine(s), 1, 0, 10, kEx)); },
       [](Stage& s) { give_back(s, 0, kEof); }},
      {"split", kOldOrNew, true, true, some_locks, [](Stage& s) { give_back(s, 10, 20); }},
      {"merge", kOldOrNew, true, true, some_locks,
       [](Stage& s) { (void)take(s.store(), ask(mine(s), 1, 25, 45, kEx)); }},
      {"upgrade", kOldOrNew, true, true, some_locks,
       [](Stage& s) { (void)take(s.store(), ask(s.survivor, 3, 82, 85, kEx)); }},
      {"downgrade", kOldOrNew, true, true, some_wait,
       [](Stage& s) { (void)take(s.store(), ask(mine(s), 1, 10, 20, kSh)); }},
      {"flock_convert", kOldOrNew, true, true,
       [](Stage& s) {
         return warm_up(s) && take(*s.me, ask(mine(s), 1, 0, kEof, kSh, kFile, LockKind::kFlock));
       },
       [](Stage& s) {
         (void)take(s.store(), ask(mine(s), 1, 0, kEof, kEx, kFile, LockKind::kFlock));
       }},
      {"queue", kOldOrNew, true, true, some_wait,
       [](Stage& s) { (void)wait_for(s.store(), ask(mine(s), 9, 0, 65, kEx), 910); }},
      {"queue_ofd", kOldOrNew, true, true, some_wait,
       [](Stage& s) {
         (void)wait_for(s.store(), ask(mine(s), 9, 0, 65, kEx, kFile, LockKind::kOfd), 910);
       }},
      {"cancel", kOldOrNew, true, true, some_wait,
       [](Stage& s) { (void)s.store().cancel(kFile, WaiterToken{902}); }},
      {"grant", kOldOrNew, true, true, some_wait, [](Stage& s) { give_back(s, 0, 30); }},
      {"grant_part", kOldOrNew, true, true, some_wait, [](Stage& s) { give_back(s, 11, 15); }},
      {"crowd", kOldOrNew, true, true, crowd, [](Stage& s) { give_back(s, 0, kEof); }},
      {"wide", kOldOrNew, true, true, [](Stage& s) { return warm_up(s) && many_of(s, s.survivor); },
       [](Stage& s) { (void)s.store().release(kFile, owner(s.survivor), bytes(0, kEof)); }},
      {"wide_lock", kOldOrNew, true, true,
       [](Stage& s) {
         return warm_up(s) && many_of(s, mine(s)) &&
                wait_for(*s.me, ask(s.survivor, 4, 50, 51, kSh), 900);
       },
       [](Stage& s) { (void)take(s.store(), ask(mine(s), 1, 5, 155, kSh)); }},
      {"drop_owner", kOldOrNew, true, true, some_wait,
       [](Stage& s) { (void)s.store().drop_owner(kFile, owner(mine(s))); }},
      {"drop_if_through", kOldOrNew, true, true, some_wait,
       [](Stage& s) { (void)s.store().drop_if_through(kFile, owner(mine(s)), 0); }, false, true},
      {"break_range", kOldOrNew, true, true,
       [](Stage& s) { return some_locks(s) && wait_for(*s.me, ask(mine(s), 6, 65, 66, kEx), 900); },
       [](Stage& s) {
         (void)s.store().break_range(kFile, owner(s.survivor, 2), bytes(62, 68), true);
       }},
      {"note_closing", kSame, true, true, some_locks,
       [](Stage& s) { s.store().note_closing(kFile, owner(mine(s))); }},
      {"begin_op", kOldOrNew, true, true, some_locks,
       [](Stage& s) {
         (void)s.store().begin_op(operation(s, LockKind::kWriteOp), OnConflict::kRefuse, {});
       }},
      {"end_op", kOldOrNew, true, true,
       [](Stage& s) {
         return some_locks(s) &&
                s.me->begin_op(operation(s, LockKind::kReadOp), OnConflict::kRefuse, {}).ok();
       },
       [](Stage& s) {
         s.store().end_op(kFile, {mine(s), 50, OwnerSpace::kOp});
       }},
      {"begin_op_outside", kOldOrNew, true, true, warm_up,
       [](Stage& s) {
         (void)s.store().begin_op(operation(s, LockKind::kWriteOp), OnConflict::kRefuse, {});
       }},
      {"end_op_outside", kOldOrNew, true, true, one_in_flight,
       [](Stage& s) {
         s.store().end_op(kFile, {mine(s), 50, OwnerSpace::kOp});
       }},
      // (That they are in the table then is no difference to who lists them.)
      {"take_in", kSame, true, true, one_in_flight,
       [](Stage& s) { (void)take(s.store(), ask(s.survivor, 2, 0, 10, kEx)); }},
      {"take_in_many", kOldOrNew, true, true, many_in_flight,
       [](Stage& s) { (void)wait_for(s.store(), ask(s.survivor, 2, 0, 10, kEx), 900); }},
      {"end_op_taken_in", kOldOrNew, true, true,
       [](Stage& s) {
         return one_in_flight(s) && wait_for(*s.me, ask(s.survivor, 2, 0, 10, kEx), 900);
       },
       [](Stage& s) {
         s.store().end_op(kFile, {mine(s), 50, OwnerSpace::kOp});
       }},
      {"deadlock", kSame, true, true, nearly_deadlocked,
       [](Stage& s) {
         (void)s.store().acquire(ask(mine(s), 1, 0, 1, kEx, kOther), OnConflict::kQueue, {910});
       }},
      // A request of an OFD owner is not checked: what it closed is found when its blocker goes.
      {"deadlock_later", kTwoSteps, true, true,
       [](Stage& s) {
         return warm_up(s) && take(*s.me, ask(mine(s), 1, 0, 1, kEx)) &&
                take(*s.me, ask(mine(s), 5, 1, 2, kEx)) &&
                take(*s.me, ask(s.survivor, 2, 0, 1, kEx, kOther)) &&
                wait_for(*s.me, ask(s.survivor, 2, 0, 2, kEx), 900) &&
                wait_for(*s.me, ask(mine(s), 5, 0, 1, kEx, kOther), 901);
       },
       [](Stage& s) { give_back(s, 0, 1); }},
      // Nothing was taken in this shard before.
      {"growth", kOldOrNew, true, true, nothing,
       [](Stage& s) { (void)take(s.store(), ask(mine(s), 1, 0, 10, kEx)); }},
      {"shrink", kSame, true, true, a_burst_is_over, [](Stage& s) { s.me->backend().shrink(); }},
      // Of what another shard gave back.
      {"growth_recycled", kOldOrNew, true, true,
       [](Stage& s) {
         if (!a_burst_is_over(s)) return false;
         s.me->backend().shrink();
         return s.me->region().header().space.given_back_count != 0;
       },
       [](Stage& s) { (void)take(s.store(), ask(mine(s), 1, 0, 10, kEx, kOther)); }},
      // What another mount granted to the victim's waiters, as its doorbell thread fetches it.
      {"fetch_granted", kInSteps, true, true,
       [](Stage& s) {
         if (!crowd(s)) return false;
         TellTale theirs;
         const auto other =
             speak_for<shm::ShmBackend>(s.table, theirs, s.survivor_slot, s.survivor);
         return other != nullptr && wait_for(*s.me, ask(mine(s), 50, 10, 20, kSh), 950) &&
                other->release(kFile, owner(mine(s)), bytes(0, kEof)).ok();
       },
       [](Stage& s) {
         s.me->collect_ready();
         for (std::uint32_t i = 0; i < shm::kShardCount; ++i) {
           if (s.me->backend().has_ready(i)) s.me->backend().forget_ready(i);
         }
       }},
      // Another died in the middle, and the victim is the one who repairs.
      {"repair_step", kSame, true, true,
       [](Stage& s) {
         return some_wait(s) && somebody_dies(s, "shm.store=kill@60", [&](QuietMount& m) {
                  (void)m.release(kFile, owner(mine(s)), bytes(0, 30));
                });
       },
       [](Stage& s) { (void)s.store().test(ask(mine(s), 1, 0, 1, kEx)); }},
      {"repair_wide", kSame, true, true,
       [](Stage& s) {
         return warm_up(s) && many_of(s, s.survivor) &&
                somebody_dies(s, "shm.committed=kill@2", [&](QuietMount& m) {
                  (void)m.release(kFile, owner(s.survivor), bytes(0, kEof));
                });
       },
       [](Stage& s) { (void)s.store().test(ask(mine(s), 1, 0, 1, kEx)); }},
      {"repair_crowd", kSame, true, true,
       [](Stage& s) {
         return crowd(s) && somebody_dies(s, "shm.committed=kill@1", [&](QuietMount& m) {
                  (void)m.release(kFile, owner(mine(s)), bytes(0, kEof));
                });
       },
       [](Stage& s) { (void)s.store().test(ask(mine(s), 1, 0, 1, kEx)); }},
      {"attach", kInSteps, true, false, nothing, join_in_the_act},
      {"attach_first", kInSteps, false, false, nothing, join_in_the_act},
      {"attach_reaping", kInSteps, true, false, a_mount_died, join_in_the_act},
      {"attach_reaping_last", kInSteps, false, false, a_mount_died, join_in_the_act, false, true},
      {"detach", kInSteps, true, false,
       [](Stage& s) {
         if (!join_in_earnest(s)) return false;
         const std::uint64_t id = s.real->mount_id();
         return take(*s.real, ask(id, 1, 0, 30, kEx)) &&
                take(*s.real, ask(s.survivor, 2, 40, 50, kEx)) &&
                wait_for(*s.real, ask(s.survivor, 3, 10, 45, kSh), 900) &&
                take(*s.real, ask(id, 3, 0, 10, kSh, kOther));
       },
       [](Stage& s) { s.real.reset(); }},
      {"detach_last", kInSteps, false, false,
       [](Stage& s) {
         return join_in_earnest(s) && take(*s.real, ask(s.real->mount_id(), 1, 0, 30, kEx));
       },
       [](Stage& s) { s.real.reset(); }},
  };
  return all;
}

namespace {

template <Breakage kHow>
bool with_broken_store(Stage& s) {
  s.custom = speak_for<BrokenBackend<kHow>>(s.table, s.told, s.me->slot(), s.me->mount_id());
  return s.custom != nullptr && some_wait(s);
}
void split_and_grant(Stage& s) { give_back(s, 11, 15); }

}  // namespace

const std::vector<StepAct>& broken_acts() {
  using enum Outcome;
  static const std::vector<StepAct> all = {
      {"sound", kOldOrNew, true, true, with_broken_store<Breakage::kNone>, split_and_grant},
      {"no_log", kOldOrNew, true, true, with_broken_store<Breakage::kNoLog>, split_and_grant, true},
      {"one_type", kOldOrNew, true, true, with_broken_store<Breakage::kRefs>, split_and_grant,
       true},
      {"log_late", kOldOrNew, true, true, with_broken_store<Breakage::kLogLate>, split_and_grant,
       true},
      {"count_first", kOldOrNew, true, true, with_broken_store<Breakage::kCountFirst>,
       split_and_grant, true},
  };
  return all;
}

}  // namespace latchfs::test
