// enforce=mandatory: reads wait for other owners' byte-range locks, writes are refused by them.
//
// An operation enters the table as a short grant of its own, under the same mutex as the check, and
// leaves it when it is done: a lock can be granted neither between check and write nor while the
// write runs (the kernel's own mandatory locks, until 5.15, had that gap).
#include <string>

#include "base/log.h"
#include "fuse/lock_call.h"
#include "fuse/lock_edge.h"

namespace latchfs::fuse {
namespace {

void on_io_interrupt(fuse_req_t, void* token) {
  ParkingLot::interrupt_any(WaiterToken{reinterpret_cast<std::uintptr_t>(token)}, EINTR);
}

// The owner by which the caller's process took locks through this open file, 0 if it took none. Its
// lock may have been broken since: that owner's fence is what is looked for.
std::uint64_t owner_by_carrier(LockData& locks, pid_t process) {
  const MutexLock hold{locks.mu};
  for (const LockCarrier& c : locks.carriers) {
    if (c.pid == process && c.owner != locks.description) return c.owner;
  }
  return 0;
}

}  // namespace

// FALLOCATE and whatever else names no owner: the owner by
// which the caller's process holds POSIX locks on the file, 0 if none. A process's locks go with
// it, so a pid that holds one is not a reused one.
std::uint64_t LockEdge::owner_by_process(FileId file, pid_t tid) {
  const auto pid = static_cast<std::uint32_t>(process_of(tid));
  ListQuery query{file, {}, 256};
  while (pid != 0) {
    const auto page = locks_.list(query);
    if (!page) return 0;
    for (const Grant& g : page->grants) {
      if (g.owner.mount == locks_.mount_id() && g.owner.space == OwnerSpace::kRange &&
          g.kind != LockKind::kOfd && g.holder.client == 0 && g.holder.pid == pid) {
        return g.owner.key;
      }
    }
    if (!page->next) return 0;
    query.after = *page->next;
  }
  return 0;
}

LockService::OpRequest LockEdge::op_request(const IoRequest& io) {
  const std::uint64_t mount = locks_.mount_id();
  LockService::OpRequest op;
  op.file = io.file;
  op.op = OwnerId{mount, next_op_.fetch_add(1, std::memory_order_relaxed), OwnerSpace::kOp};
  op.owner = OwnerId{mount, io.owner, OwnerSpace::kRange};
  op.description = OwnerId{mount, 0, OwnerSpace::kRange};
  op.range = io.range;
  op.kind = io.kind == IoKind::kRead ? LockKind::kReadOp : LockKind::kWriteOp;
  op.holder.pid = static_cast<std::uint32_t>(io.caller.pid);
  op.holder.uid = io.caller.uid;
  if (io.open) {
    op.holder.fh = io.open->fh;
    op.holder.backing_fd = io.open->fd.get();
    const MutexLock hold{io.open->locks.mu};
    op.description.key = io.open->locks.description;
    for (const LockCarrier& c : io.open->locks.carriers) op.carried |= c.owner == io.owner;
  }
  if (io.open && io.owner == 0) {
    op.owner.key = owner_by_carrier(io.open->locks, process_of(io.caller.pid));
    op.carried = op.owner.key != 0;
  }
  return op;
}

Result<OpStarted> LockEdge::try_op(LockService::OpRequest& op, const IoRequest& io) {
  auto tried = locks_.begin_op(op, OnConflict::kRefuse, {});
  if (tried && std::holds_alternative<Conflict>(*tried) && op.owner.key == 0) {
    op.owner.key = owner_by_process(io.file, io.caller.pid);
    if (op.owner.key != 0) tried = locks_.begin_op(op, OnConflict::kRefuse, {});
  }
  if (tried && std::holds_alternative<Fenced>(*tried)) {
    op.process = static_cast<std::uint32_t>(process_of(io.caller.pid));
    tried = locks_.begin_op(op, OnConflict::kRefuse, {});
  }
  if (tried && std::holds_alternative<Fenced>(*tried)) {
    if (!fenced_.due()) return errno_code(EIO);
    log::warn("pid {} (uid {}) writes to {}:{} behind a lock that was broken: EIO", io.caller.pid,
              io.caller.uid, io.file.dev, io.file.ino);
    return errno_code(EIO);
  }
  return tried;
}

// The kernel holds the inode's lock during a WRITE, FALLOCATE or SETATTR (fuse_direct_write_iter(),
// fuse_file_fallocate(), do_truncate()): one that waited here would keep the lock's holder from
// writing, and so from ever giving the lock back. ADR 0008.
Result<IoPass> LockEdge::admit_write_checked(const IoRequest& io) {
  LockService::OpRequest op = op_request(io);
  const auto tried = try_op(op, io);
  if (!tried) return tried.error();
  if (!std::holds_alternative<Granted>(*tried)) return errno_code(EAGAIN);
  return IoPass{locks_, io.file, op.op};
}

Result<std::optional<IoPass>> LockEdge::admit_read_checked(
    const IoRequest& io, Reply& reply, const std::function<Resume()>& make_resume) {
  LockService::OpRequest op = op_request(io);
  const auto tried = try_op(op, io);
  if (!tried) return tried.error();
  if (std::holds_alternative<Granted>(*tried)) {
    return std::optional<IoPass>{std::in_place, locks_, io.file, op.op};
  }
  if (io.nonblocking) return errno_code(EAGAIN);

  op.holder.pid = static_cast<std::uint32_t>(process_of(io.caller.pid));
  op.holder.comm = task_name(io.caller.pid);
  struct Parked {
    std::optional<Reply> reply;
    Resume resume;
    FileId file;
    OwnerId op;
  };
  auto parked = std::make_shared<Parked>();
  parked->resume = make_resume();
  parked->file = io.file;
  parked->op = op.op;
  const WaiterToken token = lot_.open(io.file, [this, parked](int err) {
    if (err != 0) return parked->reply->error(errno_code(err));
    try {
      // Not here: this is the thread of whoever gave the lock back.
      resumer_->at(0, [this, parked] {
        parked->resume(std::move(*parked->reply), IoPass{locks_, parked->file, parked->op});
      });
    } catch (const std::bad_alloc&) {
      const IoPass over{locks_, parked->file, parked->op};
      parked->reply->error(errno_code(ENOMEM));
    }
  });
  fuse_req_interrupt_func(reply.request(), on_io_interrupt, reinterpret_cast<void*>(token.raw));
  const auto got = locks_.begin_op(op, OnConflict::kQueue, token);
  if (got && std::holds_alternative<Queued>(*got)) {
    // The completion runs in park() at the earliest.
    parked->reply.emplace(std::move(reply));
    lot_.park(token);
    return std::optional<IoPass>{};
  }
  lot_.close(token);
  if (!got) return got.error();
  if (std::holds_alternative<Fenced>(*got)) return errno_code(EIO);
  return std::optional<IoPass>{std::in_place, locks_, io.file, op.op};
}

}  // namespace latchfs::fuse
