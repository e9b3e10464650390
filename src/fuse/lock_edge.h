// Where requests about locks, and requests that locks may hold up, meet the lock service.
//
// Called by the handlers in op_locks, op_open, op_data and op_attr. The calling thread may be
// acting as any caller (posix/credentials.h): say posix::become_daemon() before anything that needs
// the daemon's rights.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <utility>

#include "base/caller.h"
#include "base/seldom.h"
#include "fuse/open_file.h"
#include "fuse/parking_lot.h"
#include "fuse/reply.h"
#include "fuse/timer.h"
#include "latchfs/lock_service.h"
#include "latchfs/result.h"
#include "latchfs/types.h"

namespace latchfs::fuse {

enum class IoKind : std::uint8_t {
  kRead,
  kWrite,     // write, fallocate, the target of copy_file_range
  kTruncate,  // truncate, ftruncate, O_TRUNC: range is [the new size, end of file)
};

// An operation about to touch a file's bytes.
struct IoRequest {
  IoKind kind{};
  FileId file;
  ByteRange range;
  OpenFilePtr open;       // null: truncate(2), by name
  std::uint64_t owner{};  // the request's lock owner, 0 where it carries none
  bool nonblocking{};     // O_NONBLOCK, now: of reads
  Caller caller;
};

// Leave to go on with an operation; its destruction is the operation's end. Destroy it before
// answering, where the operation does not itself answer.
class IoPass {
 public:
  IoPass() = default;  // nothing to end
  IoPass(LockService& locks, FileId file, OwnerId op) : locks_{&locks}, file_{file}, op_{op} {}
  IoPass(IoPass&& o) noexcept
      : locks_{std::exchange(o.locks_, nullptr)}, file_{o.file_}, op_{o.op_} {}
  IoPass& operator=(IoPass&&) = delete;
  IoPass(const IoPass&) = delete;
  IoPass& operator=(const IoPass&) = delete;
  ~IoPass() {
    if (locks_ != nullptr) locks_->end_op(file_, op_);
  }

 private:
  LockService* locks_{};
  FileId file_;
  OwnerId op_;
};

class LockEdge {
 public:
  // Before the first request: makes the kernel forget the attributes it has of a node, at once.
  // Then a lock granted where other mounts share the table lets its holder see what the one before
  // it wrote through another mount.
  using Refresh = std::function<void(std::uint64_t node)>;
  void refresh_by(Refresh refresh) { refresh_ = std::move(refresh); }
  // Another value than ever before (but for wrapping) after each such grant on the node; 0 if there
  // was none. Any thread.
  [[nodiscard]] std::uint32_t handovers(std::uint64_t node) const {
    return handovers_[node % handovers_.size()].load(std::memory_order_acquire);
  }

  // lot: the sink that `locks` tells. Both must outlive this.
  LockEdge(LockService& locks, ParkingLot& lot, bool mandatory);
  ~LockEdge();
  LockEdge(const LockEdge&) = delete;
  LockEdge& operator=(const LockEdge&) = delete;

  // lock owners are fuse_file_info::lock_owner.
  void getlk(Reply reply, const OpenFilePtr& file, std::uint64_t owner, const struct flock& lk,
             const Caller& caller);
  void setlk(Reply reply, const OpenFilePtr& file, std::uint64_t owner, const struct flock& lk,
             bool wait, const Caller& caller);
  void flock(Reply reply, const OpenFilePtr& file, std::uint64_t owner, int operation,
             const Caller& caller);

  // Once for each close(2) of a descriptor, before it returns.
  void on_flush(OpenFile& file, std::uint64_t owner, const Caller& caller);
  // The last one, some time after. flock_owner: of the description's flock lock, if it may have
  // one. The file is out of the table already.
  void on_release(OpenFile& file, std::optional<std::uint64_t> flock_owner);

  // Asks leave to change a file's bytes; keep the pass until it is done. EAGAIN: another owner's
  // lock is in the way, EIO: the caller's own lock was broken. It never waits (ADR 0008). Any
  // thread.
  Result<IoPass> admit_write(const IoRequest& io) {
    if (!mandatory_) return IoPass{};
    return admit_write_checked(io);
  }

  // Asks leave to read. A value: go on, and keep it until done. Nothing: the read is parked,
  // `reply` was moved away, and what make_resume() returned will be called with both, from any
  // thread, once it may go on. Error: refused. make_resume is called only to park: it copies what
  // the handler's arguments will not keep.
  using Resume = std::function<void(Reply, IoPass)>;
  template <class MakeResume>
  Result<std::optional<IoPass>> admit_read(const IoRequest& io, Reply& reply,
                                           MakeResume&& make_resume) {
    if (!mandatory_) return std::optional<IoPass>{IoPass{}};
    return admit_read_checked(io, reply,
                              std::function<Resume()>{std::forward<MakeResume>(make_resume)});
  }

  // No more requests come. Whoever still waits is answered here: after this returns no Reply of
  // this mount may exist.
  void shutdown() noexcept;

 private:
  Result<IoPass> admit_write_checked(const IoRequest& io);
  Result<std::optional<IoPass>> admit_read_checked(const IoRequest& io, Reply& reply,
                                                   const std::function<Resume()>& make_resume);
  LockService::OpRequest op_request(const IoRequest& io);
  // Asks once, without waiting.
  Result<OpStarted> try_op(LockService::OpRequest& op, const IoRequest& io);
  std::uint64_t owner_by_process(FileId file, pid_t tid);
  // Asks for the lock and answers, now or when the wait is over.
  void take(Reply reply, const OpenFilePtr& file, const LockRequest& request, bool wait);
  void granted(Reply& reply, OpenFile& file, OwnerId owner, std::uint32_t flushes) noexcept;
  // Asks again until the deadline while all that is in the way is about to go.
  void test(const std::shared_ptr<Reply>& reply, const LockRequest& request,
            std::int64_t deadline) noexcept;
  void answer_own(Reply reply, const LockRequest& request);
  // pid: of the process, 0 if only the thread is known.
  Holder holder_of(OpenFile& file, std::uint64_t owner, pid_t pid, const Caller& caller,
                   LockKind& kind);

  LockService& locks_;
  ParkingLot& lot_;
  const bool mandatory_;
  Refresh refresh_;
  // By node; those that share one count too often, which costs no more than a page read anew.
  std::array<std::atomic<std::uint32_t>, 1024> handovers_{};
  std::atomic<std::uint64_t> next_op_{1};
  Seldom fenced_{1'000'000'000};    // the log says it once a second
  std::unique_ptr<Timer> timer_;    // deadlines
  std::unique_ptr<Timer> resumer_;  // runs operations that waited
};

}  // namespace latchfs::fuse
