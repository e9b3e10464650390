// The records the lock rules work on. Shared format: fixed widths, 32-bit references instead of
// pointers, no constructors with effects. What they mean is here; where they lie is the arena's
// business (store/shm or a heap).
//
// A record is only ever changed through Arena::set, so that a store can log each old value.
#pragma once

#include <array>
#include <cstdint>
#include <type_traits>

#include "latchfs/types.h"

namespace latchfs::lock {

// A record's number in its arena; 0 is "none".
using Ref = std::uint32_t;

// A lock held, or an operation in flight. In two trees: the file's, by (begin, owner), with the
// greatest end of any and of exclusive grants below each node; the owner's, by begin (an owner's
// grants on one file never overlap and never touch in equal mode).
struct GrantRec {
  std::uint64_t begin, end;  // bytes, as ByteRange
  std::uint64_t max_end;     // over the file-tree subtree rooted here
  std::uint64_t max_ex_end;  // likewise, exclusive grants only; 0 if there are none
  std::int64_t acquired_at;  // CLOCK_REALTIME ns
  Ref owner;
  Ref file_left, file_right;
  Ref owner_left, owner_right;
  LockMode mode;
  std::uint8_t pad[3];
};
static_assert(sizeof(GrantRec) == 64 && std::is_trivially_copyable_v<GrantRec>,
              "changed? bump kTableFormat");

// One owner on one file: exists while it holds, waits or is fenced there.
struct OwnerRec {
  std::uint64_t mount, key;
  std::uint64_t fh;
  std::uint64_t alias_owner, alias_description;  // space kOp: whose operation it is; 0 none
  std::int64_t closing_at;                       // CLOCK_MONOTONIC ns of the last flush; 0 none
  std::array<char, 16> comm;
  std::uint32_t pid, uid;
  std::int32_t backing_fd;
  Ref file;
  Ref left, right;   // the file's owners by (mount, key, space)
  Ref older, newer;  // the file's owners that hold something, in order of their first grant
  Ref grants;        // root of the owner's tree
  std::uint32_t grant_count, waiter_count;
  OwnerSpace space;
  LockKind kind;
  std::uint8_t fenced;  // 1: a lock of its was broken and it took none since
  std::uint8_t pad[1];
  std::uint32_t client;  // Holder::client
  std::uint8_t reserve[8];
};
static_assert(sizeof(OwnerRec) == 128 && std::is_trivially_copyable_v<OwnerRec>,
              "changed? bump kTableFormat");

struct FileRec {
  std::uint64_t dev, ino;
  std::uint64_t hull_begin, hull_end;  // contains the ranges of all waiters
  Ref left, right;                     // the shard's files by (dev, ino)
  Ref range_grants, flock_grants;      // roots of the two file trees; operations are in the first
  Ref owners;                          // root of the tree of owners
  Ref oldest, newest;                  // ends of the list of holding owners
  Ref wait_head, wait_tail;            // waiters in order of arrival
  std::uint32_t grant_count, waiter_count, op_count;
  std::uint32_t next_seq;            // of the next waiter
  std::uint32_t flock_waiter_count;  // of waiter_count
  std::uint8_t
      taking_in;  // 1: operations in flight may be to be taken in still (table_operations.h)
  std::uint8_t reserve[39];
};
static_assert(sizeof(FileRec) == 128 && std::is_trivially_copyable_v<FileRec>,
              "changed? bump kTableFormat");

enum class WaiterState : std::uint8_t {
  kWaiting = 0,
  kReady = 1,  // granted or refused, its mount's daemon has not fetched it yet
};

// A blocked request.
struct WaiterRec {
  std::uint64_t begin, end;
  std::uint64_t token;
  std::int64_t since;  // CLOCK_REALTIME ns
  Ref owner;
  Ref prev, next;        // the file's queue; when ready, next alone: the shard's ready list
  Ref same_bucket;       // the shard's hash of waiting byte-range owners
  Ref blocker;           // owner it was last seen blocked by: tells when to look for deadlock again
  std::uint32_t behind;  // seq + 1 of the waiter it queued behind (LockTable::leader()), 0: none
  LockMode mode;
  WaiterState state;
  std::uint8_t settle;  // 1: waits only for what is about to go away (OnConflict::kSettle)
  std::uint8_t result;  // when ready: 0 granted, else errno
  std::uint32_t seq;    // ascending within the file's queue
};
static_assert(sizeof(WaiterRec) == 64 && std::is_trivially_copyable_v<WaiterRec>,
              "changed? bump kTableFormat");

// Changes too wide for one bounded log are announced here before they begin and taken back when
// they are done; who finds the mutex of a dead holder completes them (LockTable::recover).
struct Intent {
  Ref owner;   // 0: none
  Ref waiter;  // the waiter being granted, 0 if none
  std::uint64_t begin, end;
  std::uint8_t unlock;  // 1: release the range; 0: set it to mode
  LockMode mode;
  std::uint8_t pad[6];
};
struct Regrant {
  Ref file;  // 0: none. Else: its waiters over [begin, end) are being looked through
  std::uint32_t pad;
  std::uint64_t begin, end;
};

inline constexpr std::size_t kWaiterBuckets = 1024;

// Entry point to one shard's records.
struct TableRoot {
  Ref files;  // root of the tree of files
  Ref ready;  // waiters in state kReady
  std::uint32_t range_waiters;
  std::uint32_t pad;
  std::uint64_t file_count, owner_count, grant_count, waiter_count;
  Intent intent;
  Regrant regrant;
  std::array<Ref, kWaiterBuckets> waiting;  // waiting byte-range owners by hash of (mount, key)
};
static_assert(std::is_trivially_copyable_v<TableRoot>);

}  // namespace latchfs::lock
