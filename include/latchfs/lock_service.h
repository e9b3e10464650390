// THE seam: edges (FUSE, the control tree, NLM) stand above it, stores below.
//
// Every method is thread-safe, takes bounded time (never waits for a lock to come free) and
// never calls a GrantSink while holding a lock of its own. Errors: ENOLCK (table full or the
// user's share used up, logged once a second at most). What is found damaged is emptied and the
// call goes on (GrantSink::lost).
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "latchfs/result.h"
#include "latchfs/types.h"

namespace latchfs {

// A parked request, named by the edge that parked it: unique among the edge's live waiters.
struct WaiterToken {
  std::uint64_t raw{};
  auto operator<=>(const WaiterToken&) const = default;
};

// Told about the end of waits, from any thread, holding no lock of the store. Exactly one
// call for each Queued request whose cancel() did not return kCancelled, unless lost() came. May
// come before acquire() itself has returned Queued.
class GrantSink {
 public:
  virtual ~GrantSink() = default;
  virtual void granted(WaiterToken token) noexcept = 0;
  // err: EDEADLK (a cycle closed while it waited), ENOLCK (no room when its turn came), EAGAIN
  // (kSettle only).
  virtual void refused(WaiterToken token, int err) noexcept = 0;
  // What the store knew of these files' locks was damaged and is gone: whoever waits for one of
  // them hears no more of it, but for grants that are on their way.
  virtual void lost(const std::function<bool(FileId)>& concerns) noexcept { (void)concerns; }
};

enum class OnConflict : std::uint8_t {
  kRefuse,  // F_SETLK, LOCK_NB: answer Conflict
  kQueue,   // F_SETLKW: answer Queued, tell the sink later
  // F_SETLK, LOCK_NB where the edge can wait a moment: like kRefuse, but when all that is in the
  // way is about to go (I/O in flight, a description whose last close is under way) answer Queued;
  // the sink hears EAGAIN as soon as something lasting is in the way. The edge cancels it when its
  // patience (kClosingWindowNs) ends.
  kSettle,
};

struct Granted {};
// The first conflicting grant in the kernel's order: oldest owner on the file, lowest start.
// `closing`: the blocker is a per-description lock whose description is being closed right now
// (a flush came within the last kClosingWindowNs, its release has not): asking again shortly will
// likely succeed.
struct Conflict {
  Grant holder;
  bool closing{};
};
struct Queued {};
struct Deadlock {};  // POSIX owners only (fcntl(2), EDEADLK)
using Acquired = std::variant<Granted, Conflict, Queued, Deadlock>;

// Answers of begin_op().
struct Fenced {};  // the owner's lock on this file was broken: its writes get EIO
using OpStarted = std::variant<Granted, Conflict, Queued, Fenced>;

enum class Cancelled : std::uint8_t {
  kCancelled,    // it waits no more, the sink will not be called
  kAlreadyOver,  // granted or refused already, or never queued: the sink was or will be called
};

// What break_range() did.
struct Broken {
  std::vector<Grant> grants;  // the pieces taken away, at most kMaxBrokenListed of them
  std::uint64_t count{};      // how many there were
};

// Where a listing goes on. Opaque; to_string form travels in `after`/`next`.
struct ListCursor {
  std::uint32_t shard{};
  FileId file{};
  std::uint8_t part{};
  std::uint64_t begin{};
  std::uint64_t tie{};
  bool at_start{true};
};
[[nodiscard]] std::string to_string(const ListCursor& cursor);
// EINVAL unless text came from to_string; "" is the start.
[[nodiscard]] Result<ListCursor> parse_list_cursor(std::string_view text);

struct ListQuery {
  std::optional<FileId> file;  // only this file's
  ListCursor after;
  std::uint32_t limit{128};  // grants a page, at least 1; the store may cut to fewer
};
struct GrantPage {
  std::vector<Grant> grants;
  std::optional<ListCursor> next;  // empty: that was all
};

// A blocked request and the grant that blocks it (none if it is about to be granted).
struct Waiter {
  Grant request;  // acquired_at_ns: when it began to wait
  std::optional<Grant> blocker;
};
struct WaiterPage {
  std::vector<Waiter> waiters;
  std::optional<ListCursor> next;
};

struct MountInfo {
  std::uint64_t id{};  // OwnerId::mount
  std::uint32_t pid{};
  std::int64_t started_at_ns{};
  std::string source;      // as given when it registered, cut at 255 bytes
  std::string mountpoint;  // likewise
  bool self{};
};

struct TableStats {
  std::string table;  // name
  std::uint32_t format{};
  std::uint64_t bytes_used{};       // in use by records
  std::uint64_t bytes_committed{};  // taken from the system
  std::uint64_t bytes_max{};        // table_max
  std::uint64_t files{}, grants{}, owners{}, waiters{};
  std::int64_t changed_at_ns{};  // CLOCK_REALTIME of the last change a listing would show
  std::string last_verify;       // "", "ok" or what was wrong
  std::vector<MountInfo> mounts;
};

class LockService {
 public:
  // How long after a flush a description counts as being closed.
  static constexpr std::int64_t kClosingWindowNs = 50'000'000;
  static constexpr std::size_t kMaxBrokenListed = 1000;

  virtual ~LockService() = default;

  // The number this mount is registered under; edges put it into OwnerId::mount.
  [[nodiscard]] virtual std::uint64_t mount_id() const = 0;

  // Do other mounts share the locks? Then a file may have changed without this mount's kernel
  // knowing. A few nanoseconds.
  [[nodiscard]] virtual bool shared() const noexcept { return false; }

  // The number under which locks of a machine on the network are held (Holder::client), the same
  // for the same two texts; cut at 191 and 47 bytes. Each call is one use, which leave_client()
  // gives back: when nobody of this mount uses it any more, nor holds locks under it (the caller's
  // care), it names another machine one day. ENOSPC: 4096 machines of all mounts together. EINVAL:
  // no address. EOPNOTSUPP: a store for this machine alone.
  [[nodiscard]] virtual Result<std::uint32_t> enter_client(const RemoteClient& client) {
    (void)client;
    return errno_code(EOPNOTSUPP);
  }
  virtual void leave_client(std::uint32_t number) noexcept { (void)number; }
  // The machine of a grant of any mount; none: this one, or it is not known any more.
  [[nodiscard]] virtual std::optional<RemoteClient> client_of(const Grant& grant) const {
    (void)grant;
    return std::nullopt;
  }

  // Takes the lock: splits, merges, upgrades and downgrades the owner's own grants exactly as
  // the kernel's fs/locks.c does. Held grants alone decide (a new request overtakes waiters it
  // does not conflict with grants of, as in the kernel); waiters are granted in order of arrival.
  // flock: range must be the whole file; a conversion first loses the old lock, also when refused
  // (flock(2)). A fence on the owner is lifted by a grant.
  [[nodiscard]] virtual Result<Acquired> acquire(const LockRequest&, OnConflict, WaiterToken) = 0;

  // Gives the owner's locks within range back. Waiters are granted. Releasing nothing is fine.
  [[nodiscard]] virtual Result<void> release(FileId, OwnerId, ByteRange) = 0;

  // The grant acquire() would conflict with, if any. Takes nothing.
  [[nodiscard]] virtual Result<std::optional<Conflict>> test(const LockRequest&) = 0;

  [[nodiscard]] virtual Cancelled cancel(FileId, WaiterToken) = 0;

  // FLUSH: all that the owner holds on the file goes. A fence stays: the description that carried
  // the broken lock may live on.
  [[nodiscard]] virtual Result<void> drop_owner(FileId, OwnerId) = 0;

  // RELEASE, for a process's locks: drops the owner's locks on the file, and its fence, if the last
  // request for them came through this open file. What a request that was granted after its
  // descriptor had been closed left behind: nobody else will give it back.
  [[nodiscard]] virtual Result<void> drop_if_through(FileId, OwnerId, std::uint64_t fh) = 0;

  // FLUSH of a description that may hold OFD or flock locks: stamps them as closing.
  virtual void note_closing(FileId, OwnerId) noexcept = 0;

  // Breaks another owner's lock (control tree). The old owner is fenced if fence is set.
  [[nodiscard]] virtual Result<Broken> break_range(FileId, OwnerId, ByteRange, bool fence) = 0;

  // enforce=mandatory: publishes a read or write of [range) by the process `owner` through the
  // description `description` (each may be absent: key 0), both of space kRange; `op` is a
  // space-kOp owner unique to the call. kQueue parks it until conflicting locks are gone. Ended by
  // end_op() once granted.
  struct OpRequest {
    FileId file;
    OwnerId op;
    OwnerId owner;
    OwnerId description;
    ByteRange range;
    LockKind kind{};  // kReadOp or kWriteOp
    Holder holder;
    // Whether `owner` took locks through this very description: its fence holds there.
    bool carried{};
    // The asking process where it has been looked up, else 0. Owner values are given out again: a
    // fence of an owner that was another process then is lifted instead of answered.
    std::uint32_t process{};
  };
  [[nodiscard]] virtual Result<OpStarted> begin_op(const OpRequest&, OnConflict, WaiterToken) = 0;
  virtual void end_op(FileId, OwnerId op) noexcept = 0;

  // Pages in a fixed order (shard, file, kind, offset): grants that stay are neither skipped nor
  // repeated by concurrent changes. A page holds the shard's mutex for at most 256 grants.
  [[nodiscard]] virtual Result<GrantPage> list(const ListQuery&) = 0;
  [[nodiscard]] virtual Result<WaiterPage> list_waiters(const ListQuery&) = 0;

  [[nodiscard]] virtual Result<TableStats> stats() = 0;

  // Checks every invariant of the table, shard by shard, on the live table. The result is what
  // is wrong, "" if nothing; also kept for stats().last_verify.
  [[nodiscard]] virtual Result<std::string> verify() = 0;
};

}  // namespace latchfs
