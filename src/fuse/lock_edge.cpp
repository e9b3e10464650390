// The lock calls. Operations that locks hold up: lock_edge_io.cpp.
#include "fuse/lock_edge.h"

#include <sys/file.h>

#include <algorithm>

#include "base/clock.h"
#include "base/log.h"
#include "fuse/lock_call.h"
#include "posix/credentials.h"

namespace latchfs::fuse {
namespace {

constexpr std::int64_t kAskAgainNs = 1'000'000;

// libfuse gives FUSE's inclusive range as a struct flock: len 0, or what overflowed, is "to the end
// of file".
Result<ByteRange> range_of(const struct flock& lk) {
  if (lk.l_start < 0) return errno_code(EINVAL);
  const auto begin = static_cast<std::uint64_t>(lk.l_start);
  const std::uint64_t end =
      lk.l_len <= 0 ? ByteRange::kEof
                    : std::min(begin + static_cast<std::uint64_t>(lk.l_len), ByteRange::kEof);
  return ByteRange::from_half_open(begin, end);
}

// What F_GETLK answers: the lock, or that there is none.
struct flock describe(const Grant* grant) {
  struct flock lk {};
  lk.l_whence = SEEK_SET;
  lk.l_type = F_UNLCK;
  if (grant == nullptr) return lk;
  lk.l_type = grant->mode == LockMode::kExclusive ? F_WRLCK : F_RDLCK;
  lk.l_start = static_cast<off_t>(grant->range.begin());
  lk.l_len = static_cast<off_t>(grant->range.size_or_zero());
  // fcntl(2) says -1 for an OFD lock; the kernel lets FUSE say only a pid or nothing (0).
  // Another machine's process is none here: somebody might kill what has its number.
  const bool has_pid = grant->kind != LockKind::kOfd && grant->holder.client == 0;
  lk.l_pid = has_pid ? static_cast<pid_t>(grant->holder.pid) : 0;
  return lk;
}

std::uint32_t flushes_of(LockData& locks, std::uint64_t owner) {
  const MutexLock hold{locks.mu};
  for (const LockCarrier& c : locks.carriers) {
    if (c.owner == owner) return c.flushes;
  }
  return 0;
}

void on_interrupt(fuse_req_t, void* token) {
  ParkingLot::interrupt_any(WaiterToken{reinterpret_cast<std::uintptr_t>(token)}, EINTR);
}

}  // namespace

LockEdge::LockEdge(LockService& locks, ParkingLot& lot, bool mandatory)
    : locks_{locks},
      lot_{lot},
      mandatory_{mandatory},
      timer_{std::make_unique<Timer>()},
      resumer_{std::make_unique<Timer>()} {
  lot_.serve(locks);
}

LockEdge::~LockEdge() { shutdown(); }

void LockEdge::shutdown() noexcept {
  // (EINTR would have the kernel restart a call that no signal interrupted: errno 512.)
  lot_.drain(ECONNABORTED);
  // What they still had to do is dropped, and with it its Reply, which answers.
  timer_.reset();
  resumer_.reset();
}

Holder LockEdge::holder_of(OpenFile& file, std::uint64_t owner, pid_t pid, const Caller& caller,
                           LockKind& kind) {
  Holder holder;
  holder.pid = static_cast<std::uint32_t>(pid);
  holder.uid = caller.uid;
  holder.fh = file.fh;
  holder.backing_fd = file.fd.get();
  bool known = false;
  {
    const MutexLock hold{file.locks.mu};
    if (owner == file.locks.description) {
      kind = LockKind::kOfd;
      known = true;
    }
    for (const LockCarrier& c : file.locks.carriers) {
      if (c.owner != owner) continue;
      kind = known ? LockKind::kOfd : c.kind;
      known = true;
      if (pid != 0 ? c.pid == pid : c.tid == caller.pid) {
        holder.pid = static_cast<std::uint32_t>(c.pid);
        holder.comm = c.comm;
        return holder;
      }
    }
  }
  // Reading /proc is no work for under a lock: two threads may find out the same.
  posix::become_daemon();
  if (!known) kind = lock_call_of(caller.pid);
  if (pid == 0) pid = process_of(caller.pid);
  holder.pid = static_cast<std::uint32_t>(pid);
  holder.comm = task_name(pid);
  const MutexLock hold{file.locks.mu};
  if (kind == LockKind::kOfd) file.locks.description = owner;
  auto& all = file.locks.carriers;
  const auto it = std::find_if(all.begin(), all.end(),
                               [owner](const LockCarrier& c) { return c.owner == owner; });
  if (it != all.end()) {
    *it = {owner, kind, pid, caller.pid, it->flushes, holder.comm};
  } else {
    all.push_back({owner, kind, pid, caller.pid, 0, holder.comm});
  }
  return holder;
}

// Two GETATTRs under way at once leave the older size behind if they cross (fs/fuse/inode.c
// fuse_change_attributes(): the later answer is taken for the older one). Seen as a stale read
// under a lock that another mount had just given back.
void LockEdge::granted(Reply& reply, OpenFile& file, OwnerId owner,
                       std::uint32_t flushes) noexcept {
  if (refresh_ && locks_.shared()) {
    handovers_[file.node % handovers_.size()].fetch_add(1, std::memory_order_release);
    refresh_(file.node);
  }
  // The descriptor was closed while its request waited: fcntl(2) will say EBADF and tell us nothing
  // (fs/locks.c fcntl_setlk(), locks_remove_posix()); RELEASE gives the lock back.
  if (flushes_of(file.locks, owner.key) != flushes) locks_.note_closing(file.id, owner);
  reply.done();
}

void LockEdge::take(Reply reply, const OpenFilePtr& file, const LockRequest& request, bool wait) {
  const std::uint32_t flushes = flushes_of(file->locks, request.owner.key);
  const fuse_req_t req = reply.request();
  const auto shared = std::make_shared<Reply>(std::move(reply));
  const WaiterToken token =
      lot_.open(request.file, [this, shared, file, owner = request.owner, flushes](int err) {
        if (err == 0) {
          granted(*shared, *file, owner, flushes);
        } else {
          shared->error(errno_code(err));
        }
      });
  // Before the store can make a waiter of it, or an early interrupt would find nothing to end.
  fuse_req_interrupt_func(req, on_interrupt, reinterpret_cast<void*>(token.raw));
  const auto got = locks_.acquire(request, wait ? OnConflict::kQueue : OnConflict::kSettle, token);
  if (got && std::holds_alternative<Queued>(*got)) {
    lot_.park(token);
    if (!wait) {
      timer_->at(monotonic_ns() + LockService::kClosingWindowNs,
                 [this, token] { lot_.interrupt(token, EAGAIN); });
    }
    return;
  }
  lot_.close(token);
  if (!got) {
    shared->error(got.error());
  } else if (std::holds_alternative<Granted>(*got)) {
    granted(*shared, *file, request.owner, flushes);
  } else {
    shared->error(errno_code(std::holds_alternative<Deadlock>(*got) ? EDEADLK : EAGAIN));
  }
}

void LockEdge::setlk(Reply reply, const OpenFilePtr& file, std::uint64_t owner,
                     const struct flock& lk, bool wait, const Caller& caller) {
  const auto range = range_of(lk);
  if (!range) return reply.error(range.error());
  const OwnerId who{locks_.mount_id(), owner, OwnerSpace::kRange};
  if (lk.l_type == F_UNLCK) {
    const auto r = locks_.release(file->id, who, *range);
    return r ? reply.done() : reply.error(r.error());
  }
  if (lk.l_type != F_RDLCK && lk.l_type != F_WRLCK) return reply.error(errno_code(EINVAL));
  LockRequest request;
  request.file = file->id;
  request.owner = who;
  request.range = *range;
  request.mode = lk.l_type == F_WRLCK ? LockMode::kExclusive : LockMode::kShared;
  request.holder = holder_of(*file, owner, lk.l_pid, caller, request.kind);
  take(std::move(reply), file, request, wait);
}

void LockEdge::flock(Reply reply, const OpenFilePtr& file, std::uint64_t owner, int operation,
                     const Caller& caller) {
  const OwnerId who{locks_.mount_id(), owner, OwnerSpace::kFlock};
  const int what = operation & ~LOCK_NB;
  if (what == LOCK_UN) {
    const auto r = locks_.release(file->id, who, ByteRange{});
    return r ? reply.done() : reply.error(r.error());
  }
  if (what != LOCK_SH && what != LOCK_EX) return reply.error(errno_code(EINVAL));
  LockRequest request;
  request.file = file->id;
  request.owner = who;
  request.mode = what == LOCK_EX ? LockMode::kExclusive : LockMode::kShared;
  LockKind kind = LockKind::kOfd;
  {
    // flock's owner is the description's: the same value as its OFD locks'.
    const MutexLock hold{file->locks.mu};
    file->locks.description = owner;
    file->locks.took_flock = true;
  }
  // libfuse passes no process on for flock: 0, found out by the thread.
  request.holder = holder_of(*file, owner, 0, caller, kind);
  request.kind = LockKind::kFlock;
  take(std::move(reply), file, request, (operation & LOCK_NB) == 0);
}

void LockEdge::test(const std::shared_ptr<Reply>& reply, const LockRequest& request,
                    std::int64_t deadline) noexcept {
  try {
    const auto found = locks_.test(request);
    if (!found) return reply->error(found.error());
    const bool in_the_way = found->has_value() && !is_op((*found)->holder.kind);
    if (in_the_way && (*found)->closing && monotonic_ns() < deadline) {
      timer_->at(monotonic_ns() + kAskAgainNs,
                 [this, reply, request, deadline] { test(reply, request, deadline); });
      return;
    }
    reply->lock(describe(in_the_way ? &(*found)->holder : nullptr));
  } catch (const std::bad_alloc&) {
    reply->error(errno_code(ENOMEM));
  }
}

// F_OFD_GETLK with F_UNLCK (Linux 6.5) asks for the description's own locks in the range:
// fs/locks.c posix_test_locks_conflict().
void LockEdge::answer_own(Reply reply, const LockRequest& request) {
  ListQuery query{request.file, {}, 256};
  for (;;) {
    const auto page = locks_.list(query);
    if (!page) return reply.error(page.error());
    for (const Grant& g : page->grants) {
      if (g.owner == request.owner && g.range.overlaps(request.range)) {
        return reply.lock(describe(&g));
      }
    }
    if (!page->next) return reply.lock(describe(nullptr));
    query.after = *page->next;
  }
}

void LockEdge::getlk(Reply reply, const OpenFilePtr& file, std::uint64_t owner,
                     const struct flock& lk, const Caller& caller) {
  static_cast<void>(caller);
  const auto range = range_of(lk);
  if (!range) return reply.error(range.error());
  LockRequest request;
  request.file = file->id;
  request.owner = OwnerId{locks_.mount_id(), owner, OwnerSpace::kRange};
  request.range = *range;
  if (lk.l_type == F_UNLCK) return answer_own(std::move(reply), request);
  request.mode = lk.l_type == F_RDLCK ? LockMode::kShared : LockMode::kExclusive;
  test(std::make_shared<Reply>(std::move(reply)), request,
       monotonic_ns() + LockService::kClosingWindowNs);
}

void LockEdge::on_flush(OpenFile& file, std::uint64_t owner, const Caller& caller) {
  static_cast<void>(caller);
  const std::uint64_t mount = locks_.mount_id();
  // POSIX fcntl(): closing any descriptor of a file drops all the process's locks on it.
  if (!locks_.drop_owner(file.id, OwnerId{mount, owner, OwnerSpace::kRange})) {
    log::error("a closing process's locks on {}:{} could not be dropped", file.id.dev, file.id.ino);
  }
  std::uint64_t description = 0;
  bool flock = false;
  bool ranges = false;
  {
    const MutexLock hold{file.locks.mu};
    // A flush names the process: the value is not a description's.
    for (LockCarrier& c : file.locks.carriers) {
      if (c.owner != owner) continue;
      if (c.kind == LockKind::kFcntl) c.kind = LockKind::kPosix;
      ++c.flushes;
    }
    description = file.locks.description;
    flock = file.locks.took_flock;
    ranges = std::any_of(file.locks.carriers.begin(), file.locks.carriers.end(),
                         [&](const LockCarrier& c) { return c.owner == description; });
  }
  if (description == 0) return;
  // Perhaps its last descriptor: RELEASE then is on its way, but close(2) does not wait for it.
  if (ranges) locks_.note_closing(file.id, OwnerId{mount, description, OwnerSpace::kRange});
  if (flock) locks_.note_closing(file.id, OwnerId{mount, description, OwnerSpace::kFlock});
}

void LockEdge::on_release(OpenFile& file, std::optional<std::uint64_t> flock_owner) {
  const std::uint64_t mount = locks_.mount_id();
  // A process's own too: closing dropped them, but for what came after the close.
  std::vector<OwnerId> left;
  {
    const MutexLock hold{file.locks.mu};
    for (const LockCarrier& c : file.locks.carriers) {
      left.push_back({mount, c.owner, OwnerSpace::kRange});
    }
    if (file.locks.took_flock) left.push_back({mount, file.locks.description, OwnerSpace::kFlock});
  }
  if (flock_owner) left.push_back({mount, *flock_owner, OwnerSpace::kFlock});
  for (const OwnerId& owner : left) {
    // By open file and not by owner alone: this comes late, and the value may be a new one's.
    if (!locks_.drop_if_through(file.id, owner, file.fh)) {
      log::error("a closed description's locks on {}:{} could not be dropped", file.id.dev,
                 file.id.ino);
    }
  }
}

}  // namespace latchfs::fuse
