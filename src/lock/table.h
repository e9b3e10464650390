// The rules of locking on one shard's records: who conflicts, what a lock call does to the owner's
// own grants (fs/locks.c: posix_lock_inode, flock_lock_inode), in what order waiters are granted.
//
// Pure: no I/O, threads, clocks or shared memory. The arena stores; time comes in as a number;
// what must happen outside (replies, doorbells) comes out in Effects.
//
// Arena: get<T>(Ref) -> const T&; set(const Field&, value); alloc<T>() -> Ref, zeroed, throws
// NeedCells when it has none, as reserve<T>(n) does without taking; can_take<T>(n); free<T>(Ref);
// get, alloc and free may throw Damaged (treap.h); could_be<T>(Ref): whether get may be asked about
// a Ref that may have been freed since;
// file_appears(FileId) when a file gets its record, file_goes(FileId) when that goes;
// file_expected(FileId): whether the arena has been told; take_in_operations(FileId, fn) and
// files_of_operations(): what is in flight outside of the table (table_operations.h).
// secret(): a number that nobody outside can know, the same as long as the records live.
// commit() ends one atomic step, all sets since the last one come true together. The caller commits
// after each public call; calls that change more than kWideGrants grants commit by themselves in
// between, guarded by TableRoot::intent.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "latchfs/lock_service.h"
#include "latchfs/types.h"
#include "lock/records.h"
#include "lock/trees.h"
#include "lock/wait_search.h"

namespace latchfs::lock {

// Thrown by Arena::alloc: the caller rolls back, gets memory and calls again.
struct NeedCells {};

// What a call wants done once the shard's mutex is dropped.
struct Effects {
  struct Finished {
    WaiterToken token;
    int err;  // 0 granted
  };
  struct Recheck {
    FileId file;
    std::uint64_t mount;
    WaiterToken token;
  };
  std::vector<Finished> finished;   // waiters of this mount that are over
  std::vector<std::uint64_t> ring;  // other mounts with waiters on the ready list
  std::uint64_t ready_shards{};     // the store's: where those are
  std::uint64_t repaired{};         // the store's: shards whose holder had died
  bool lost{};                      // the store's: a damaged shard was emptied
  std::vector<Recheck> recheck;     // POSIX waiters whose blocker changed: deadlock again?
  std::vector<std::pair<std::uint32_t, std::int64_t>> uid_delta;  // grants and waiters by uid
  bool changed{};                                                 // something a listing shows
  std::int64_t now{};                                             // in: CLOCK_REALTIME ns
  std::int64_t mono{};                                            // in: CLOCK_MONOTONIC ns
  std::uint64_t looked_at{};                                      // waiters, by posix_blockers_of
  bool no_growth{};  // in: no more cells are to be had, refuse instead

  // This mount's waiters that are over hear of it. Nothing is locked.
  void tell(GrantSink& sink) const noexcept {
    for (const auto& done : finished) {
      if (done.err == 0) {
        sink.granted(done.token);
      } else {
        sink.refused(done.token, done.err);
      }
    }
  }

  // What was done up to a commit must be delivered, what a rollback undid must not.
  void mark() { marked_ = {finished.size(), ring.size(), recheck.size(), uid_delta}; }
  void back_to_mark() {
    finished.resize(marked_.finished);
    ring.resize(marked_.ring);
    recheck.resize(marked_.recheck);
    uid_delta = marked_.uid_delta;
  }
  void clear() {
    finished.clear();
    ring.clear();
    ready_shards = 0;
    recheck.clear();
    uid_delta.clear();
    looked_at = 0;
    changed = false;
    repaired = 0;
    lost = false;
    mark();
  }

 private:
  struct Mark {
    std::size_t finished, ring, recheck;
    std::vector<std::pair<std::uint32_t, std::int64_t>> uid_delta;
  };
  Mark marked_{};
};

template <class Arena>
class LockTable {
 public:
  // Own grants touched by one atomic step; bounds the log.
  static constexpr int kWideGrants = 8;
  // Waiters that one atomic step refuses or points at another blocker: bounds the log too.
  static constexpr int kWideWaiters = 32;
  // Up to as many waiters on a file their order is the kernel's own in all that it shows.
  static constexpr std::uint32_t kTreeWaiters = 64;

  LockTable(Arena& arena, const TableRoot& root, Effects& effects, std::uint64_t self_mount)
      : a_{arena}, root_{root}, fx_{effects}, self_{self_mount} {}

  // ---- requests (table_requests.h) ----
  struct Attempt {
    Ref blocker{};     // 0: granted
    bool transient{};  // all that is in the way is I/O in flight or closing
    bool closing{};    // the blocker named may be closing, others are not
  };
  // Takes the lock or tells what is in the way (after flock's loss of the old lock).
  Attempt attempt(const LockRequest& req, std::int64_t now, std::int64_t mono);
  void enqueue(const LockRequest& req, Ref blocker, bool settle, WaiterToken token,
               std::int64_t now);
  void release(FileId file, OwnerId owner, ByteRange range);
  // Whether that would make two grants of one: the uid they count for.
  [[nodiscard]] std::optional<std::uint32_t> splits(FileId file, OwnerId owner,
                                                    ByteRange range) const;
  // fence: whether that goes too.
  void drop_owner(FileId file, OwnerId owner, bool fence);
  void drop_if_through(FileId file, OwnerId owner, std::uint64_t fh);
  void note_closing(FileId file, OwnerId owner, std::int64_t mono);
  Broken break_range(FileId file, OwnerId owner, ByteRange range, bool fence);
  Attempt test(const LockRequest& req, std::int64_t mono) const;

  enum class OpOutcome : std::uint8_t { kGranted, kBlocked, kFenced };
  std::pair<OpOutcome, Attempt> attempt_op(const LockService::OpRequest& req, std::int64_t now,
                                           std::int64_t mono);
  void enqueue_op(const LockService::OpRequest& req, Ref blocker, WaiterToken token,
                  std::int64_t now);

  // ---- operations in flight outside of the table (table_operations.h) ----
  void bring_in_operations(const std::optional<FileId>& only);

  // ---- waits (table_waits.h) ----
  bool cancel(FileId file, std::uint64_t mount, WaiterToken token);
  // Ends a wait with err, if it still waits.
  bool refuse(FileId file, std::uint64_t mount, WaiterToken token, int err);
  // Ready waiters of this mount: into Effects::finished, records freed. True if some are left.
  bool collect_ready(int at_most);
  // All that a dead mount held or waited for. True if there is more to do (bounded step; `at` goes
  // on from there).
  bool reap(std::uint64_t mount, FileId& at, bool& at_start);
  // After a rollback: completes what a dead holder, or a call that ran out of cells, had announced.
  void recover();
  [[nodiscard]] bool recovery_due() const {
    return root_.intent.owner != 0 || root_.regrant.file != 0;
  }
  // What the waiting byte-range requests of an owner wait for: (mount, key) of the blockers that
  // are POSIX owners. Of more than WaitSearch::kMaxFollowed, so many.
  void posix_blockers_of(std::uint64_t mount, std::uint64_t key, std::vector<WaitNode>& out) const;
  struct Waiting {
    OwnerId owner;
    Ref blocker;  // its current one; 0: none
  };
  // Each of `items`, which are of this file, if it still waits.
  std::vector<std::optional<Waiting>> waiting(FileId file,
                                              std::span<const Effects::Recheck> items) const;

  // ---- listing (table_list.h) ----
  [[nodiscard]] Grant to_grant(Ref grant) const;
  // Appends at most `budget` steps' worth; true if there is more, then `at` says where it goes on.
  bool list(const std::optional<FileId>& only, ListCursor& at, std::uint32_t limit,
            std::vector<Grant>& out) const;
  bool list_waiters(const std::optional<FileId>& only, ListCursor& at, std::uint32_t limit,
                    std::vector<Waiter>& out) const;
  // "" or the first broken invariant. `at` walks file by file: true if there is more. A file with
  // more than `most` grants and waiters is passed over.
  bool verify(FileId& at, bool& at_start, std::string& wrong,
              std::uint64_t most = ~std::uint64_t{0}) const;

 private:
  using Files = Treap<Arena, FileTraits<Arena>>;
  using Owners = Treap<Arena, OwnerTraits<Arena>>;
  using FileGrants = Treap<Arena, FileGrantTraits<Arena>>;
  using OwnerGrants = Treap<Arena, OwnerGrantTraits<Arena>>;

  // Who asks, for the question "is this mine?".
  struct Asker {
    std::uint64_t mount, key, alias_owner, alias_description;
    OwnerSpace space;
  };
  enum class Lasting : std::uint8_t { kOnly, kAny };

  [[nodiscard]] const FileRec& file(Ref r) const { return a_.template get<FileRec>(r); }
  [[nodiscard]] const OwnerRec& owner(Ref r) const { return a_.template get<OwnerRec>(r); }
  [[nodiscard]] const GrantRec& grant(Ref r) const { return a_.template get<GrantRec>(r); }
  [[nodiscard]] const WaiterRec& waiter(Ref r) const { return a_.template get<WaiterRec>(r); }
  template <class T>
  void bump(const T& counter, int by) {
    a_.set(counter, static_cast<T>(counter + static_cast<T>(by)));
  }

  void commit_step() {
    a_.commit();
    fx_.mark();
  }

  // table_operations.h
  void take_in_operations(Ref f);
  bool take_in(Ref f, const LockService::OpRequest& op, std::int64_t started);

  // table_ranges.h: owners' own grants
  Ref file_for(FileId id);
  Ref owner_for(Ref f, const OwnerId& id, const Holder& holder, LockKind kind);
  void settle_owner(Ref o);  // frees owner and file records that nothing needs any more
  void settle_file(Ref f);
  static const Ref& tree_of(const FileRec& f, OwnerSpace space) {
    return space == OwnerSpace::kFlock ? f.flock_grants : f.range_grants;
  }
  void link_grant(Ref o, Ref g);
  void unlink_grant(Ref o, Ref g);
  void set_grant_end(Ref o, Ref g, std::uint64_t end);
  Ref first_touching(Ref o, std::uint64_t begin) const;
  Ref next_grant(Ref o, Ref g) const {
    return OwnerGrants::after(a_, owner(o).grants, grant(g).begin);
  }
  struct Change {
    bool weakened{};  // others may now get what they could not
    bool any{};
  };
  // Sets [begin, end) of the owner to mode, or to nothing. Commits in between when wide.
  Change set_range(Ref o, std::uint64_t begin, std::uint64_t end, std::optional<LockMode> mode,
                   std::int64_t now, Ref granting);
  Change set_piece(Ref o, std::uint64_t begin, std::uint64_t end, std::optional<LockMode> mode,
                   std::int64_t now);

  // table_conflict.h
  [[nodiscard]] static Asker asker(const OwnerRec& o) {
    return {o.mount, o.key, o.alias_owner, o.alias_description, o.space};
  }
  [[nodiscard]] static bool same(const Asker& me, const OwnerRec& other);
  [[nodiscard]] bool lasting(const OwnerRec& o, std::int64_t mono) const;
  [[nodiscard]] Ref scan(Ref t, const Asker& me, std::uint64_t begin, std::uint64_t end,
                         LockMode mode, Lasting want, std::int64_t mono, int room = kDeepest) const;
  [[nodiscard]] Ref in_owner(Ref o, std::uint64_t begin, std::uint64_t end, LockMode mode) const;
  [[nodiscard]] Attempt conflict(Ref f, const Asker& me, std::uint64_t begin, std::uint64_t end,
                                 LockMode mode, std::int64_t mono) const;
  [[nodiscard]] Attempt blocker_of(Ref w) const;

  // table_waits.h
  void push_waiter(Ref f, Ref o, std::uint64_t begin, std::uint64_t end, LockMode mode, Ref blocker,
                   bool settle, WaiterToken token, std::int64_t now);
  void take_from_queue(Ref w, bool granted);
  [[nodiscard]] bool in_tree(Ref f) const;
  [[nodiscard]] Ref leader(Ref w) const;
  void line_up(Ref w);  // behind its leader
  void retry(Ref w, std::uint32_t room = kTreeWaiters);
  void leave_tree(Ref w, bool granted);
  void finish(Ref w, int err);
  [[nodiscard]] Ref find_waiter(FileId id, std::uint64_t mount, WaiterToken token) const;
  [[nodiscard]] const Ref& bucket(std::uint64_t mount, std::uint64_t key) const;
  // Grants, in order, the waiters of f that overlap [begin, end) and conflict with nothing. by: the
  // owner whose grants in there became less, 0 if not known.
  void grant_waiters(Ref f, Ref by, std::uint64_t begin, std::uint64_t end, std::int64_t now,
                     std::int64_t mono);
  [[nodiscard]] bool retried(const WaiterRec& w, Ref by, std::uint64_t begin) const;
  void settle_and_grant(Ref f, Ref o, const Change& change, std::uint64_t begin, std::uint64_t end);
  void count_uid(std::uint32_t uid, std::int64_t by);

  static constexpr std::int64_t kLongAgo = 0;

  Arena& a_;
  const TableRoot& root_;
  Effects& fx_;
  std::uint64_t self_;
};

}  // namespace latchfs::lock

#include "lock/table_conflict.h"
#include "lock/table_list.h"
#include "lock/table_operations.h"
#include "lock/table_ranges.h"
#include "lock/table_requests.h"
#include "lock/table_waits.h"
