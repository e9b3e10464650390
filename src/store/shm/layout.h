// The shared table's format. Fixed widths, offsets and Refs instead of pointers, no vtables.
//
// Survives the death of any process at any instruction; not a reboot (nor need it: no lock does).
// Everything from a shard on is changed only under that shard's mutex and through its log; but the
// filter's bits, which follow from what is (file_filter.h).
//
//   0              Header: identity, who has which memory, mounts, users
//   kOpsAt         operations in flight outside of the table: changed without mutex or log
//   kChangesAt     modifications in flight, transitions of filelocks: likewise
//   kClientsAt     machines on the network that own locks: likewise
//   kShardsAt      kShardCount shards: mutex, undo log, slabs, roots, filter of files
//   kChunksAt      a ChunkRec for each chunk of the region
//   cells_at()     chunks of 256 cells of 64 bytes, given to shards and back; a Ref is offset / 64
//
// What a wild write may have changed is believed only as far as it makes sense (lock::Damaged):
// docs/recovery.md, "A damaged table".
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include "base/robust_mutex.h"
#include "lock/records.h"
#include "store/client_table.h"
#include "store/shm/change_table.h"
#include "store/shm/file_filter.h"
#include "store/shm/op_slots.h"

namespace latchfs::shm {

inline constexpr std::uint64_t kMagic = 0x6c61746368667331ULL;  // "latchfs1"
inline constexpr std::uint32_t kTableFormat = 5;
inline constexpr std::uint32_t kShardCount = 64;
inline constexpr std::uint32_t kMaxMounts = 256;
inline constexpr std::uint32_t kMaxUsers = 4096;
// Entries of one step's undo log. A step changes at most LockTable::kWideGrants grants in two trees
// (about 200 words each at a million grants) and grants at most as many waiters.
inline constexpr std::uint32_t kLogEntries = 8192;
inline constexpr std::uint64_t kCellBytes = 64;
inline constexpr std::uint64_t kChunkBytes = 16 * 1024;
inline constexpr std::uint32_t kChunkCells = kChunkBytes / kCellBytes;
inline constexpr std::uint64_t kPage = 4096;

// A chunk's number: its offset in the region / kChunkBytes. The first ones are header and shards,
// so that 0 is "none".
using Chunk = std::uint32_t;

struct MountSlot {
  std::atomic<std::uint64_t> id;        // 0: free. Stored last when registering
  std::atomic<std::uint32_t> doorbell;  // futex: rung when something waits for this mount's daemon
  std::uint32_t pid;
  std::atomic<std::uint32_t> is_service;   // 1: holds locks and changes no files
  std::atomic<std::uint32_t> believes_ms;  // how long its kernel believes what it was told, alone
  std::int64_t started_at;                 // CLOCK_REALTIME ns
  std::array<char, 256> source, mountpoint;
};

struct UserSlot {
  std::atomic<std::uint64_t> uid_plus_one;  // 0: free
  std::atomic<std::int64_t> count;          // grants and waiters
};

struct Identity {
  std::uint64_t magic;
  std::uint32_t format;
  std::uint32_t layout_hash;  // sizes of all records: another build of the same format differs
  std::uint64_t region_bytes;
  std::array<char, 40> boot_id;
  std::int64_t created_at;
  std::uint64_t secret;    // of the trees: lock/treap.h
  std::uint64_t checksum;  // of the fields above
};

// Whose memory is which. Changed with grow_mu and the mutex of the shard that gains or loses,
// through that one's log: so a death in the middle is undone with the shard's own part.
struct Space {
  std::uint64_t frontier;  // bytes; no chunk behind it was ever given away
  Chunk given_back;        // below it, nobody's: the first one; ChunkRec::next leads on
  std::uint32_t given_back_count;
};

struct Header {
  Identity identity;
  std::atomic<std::uint64_t> ready;  // kMagic once everything is initialised
  std::atomic<std::uint64_t> next_mount_id;
  std::atomic<std::int64_t> changed_at;
  std::atomic<std::uint32_t> mount_count;             // slots in use, but for services
  std::atomic<std::uint64_t> pid_namespace;           // of who made it: inode of its namespace file
  std::atomic<std::uint32_t> several_pid_namespaces;  // 1: who joined since was in another one
  std::atomic<std::uint64_t> ready_shards;            // bit i: shard i may have ready waiters
  RobustMutex grow_mu;
  Space space;
  std::array<MountSlot, kMaxMounts> mounts;
  std::array<UserSlot, kMaxUsers> users;
};
static_assert(std::atomic<std::uint64_t>::is_always_lock_free);
static_assert(std::atomic<std::uint32_t>::is_always_lock_free);
static_assert(kShardCount <= 64, "ready_shards has a bit a shard");
static_assert(kOpMounts == kMaxMounts);

// One store to be undone: `old` goes back to `offset` (bytes from the region's start).
struct LogEntry {
  std::uint64_t offset_and_size;  // offset << 8 | size in bytes (1, 2, 4 or 8)
  std::uint64_t old;
};

// Changed under the mutex of the shard that has the chunk, by its log; where it is nobody's: Space.
struct ChunkRec {
  Chunk next, prev;     // in the list it is in; 0: the end
  std::uint16_t free;   // cell given back last, counted in records from 1; 0: none. Each leads on
  std::uint16_t used;   // records in use
  std::uint16_t fresh;  // records ever used since it was opened: those behind need no list
  std::uint8_t owner;   // shard + 1; 0: nobody's
  std::uint8_t width;   // cells of a record: 1 or 2
};
static_assert(sizeof(ChunkRec) == 16);

// A shard's records of one size.
struct Slab {
  Chunk head;  // its chunks with room for one more
  std::uint32_t pad;
  std::uint64_t room;  // for how many more, in all of them
};

struct alignas(64) Shard {
  RobustMutex mu;
  std::uint32_t log_count;            // valid entries; 0 between steps
  std::uint32_t emptying;             // 1: found damaged, being made an empty one
  std::atomic<std::uint32_t> losses;  // how often it was; who waited in it before waits in vain
  Chunk empty;                        // its chunks with nothing in them, of any width
  std::uint32_t empty_count;
  std::uint32_t chunks;  // how many it has
  Slab small, large;     // records of 64 and of 128 bytes
  lock::TableRoot root;
  FileFilter filter;
  std::array<LogEntry, kLogEntries> log;
};

inline constexpr std::uint64_t round_up(std::uint64_t n, std::uint64_t to) {
  return (n + to - 1) / to * to;
}
inline constexpr std::uint64_t kOpsAt = round_up(sizeof(Header), kPage);
inline constexpr std::uint64_t kChangesAt = kOpsAt + round_up(sizeof(OpTable), kPage);
inline constexpr std::uint64_t kClientsAt = kChangesAt + round_up(sizeof(ChangeTable), kPage);
inline constexpr std::uint64_t kShardsAt = kClientsAt + round_up(sizeof(ClientTable), kPage);
inline constexpr std::uint64_t kShardStride = round_up(sizeof(Shard), kPage);
inline constexpr std::uint64_t kChunksAt = kShardsAt + kShardCount * kShardStride;
// Where the cells of a region of this size begin.
inline constexpr std::uint64_t cells_at(std::uint64_t region_bytes) {
  return round_up(kChunksAt + region_bytes / kChunkBytes * sizeof(ChunkRec), kChunkBytes);
}
inline constexpr Chunk first_chunk(std::uint64_t region_bytes) {
  return static_cast<Chunk>(cells_at(region_bytes) / kChunkBytes);
}
inline constexpr std::uint64_t kMinRegion =
    round_up(kChunksAt, kChunkBytes) + (kShardCount * 2 + 16) * kChunkBytes;
static_assert(cells_at(kMinRegion) + kShardCount * 2 * kChunkBytes <= kMinRegion);
[[nodiscard]] inline constexpr std::uint64_t shard_at(std::uint32_t i) {
  return kShardsAt + i * kShardStride;
}
[[nodiscard]] inline std::uint32_t shard_of(FileId file) {
  static_assert(kShardCount == 64);
  return static_cast<std::uint32_t>(file_hash(file) >> 58);
}
// A Ref is 32 bits of 64-byte cells.
inline constexpr std::uint64_t kMaxRegion = (std::uint64_t{1} << 32) * kCellBytes;

inline constexpr std::uint32_t kLayoutHash = static_cast<std::uint32_t>(
    sizeof(Header) * 31 + sizeof(Shard) * 37 + sizeof(MountSlot) * 41 + sizeof(ChunkRec) * 71 +
    sizeof(lock::TableRoot) * 43 + sizeof(lock::GrantRec) * 47 + sizeof(lock::OwnerRec) * 53 +
    sizeof(lock::FileRec) * 59 + sizeof(lock::WaiterRec) * 61 + kShardCount * 67 +
    sizeof(OpTable) * 79 + sizeof(FileFilter) * 73 + sizeof(ChangeTable) * 83 +
    sizeof(ClientTable) * 89);

// FNV-1a over the identity fields.
inline std::uint64_t checksum_of(const Identity& h) {
  std::uint64_t sum = 0xcbf29ce484222325ULL;
  const auto mix = [&sum](std::uint64_t v) { sum = (sum ^ v) * 0x100000001b3ULL; };
  mix(h.magic);
  mix(h.format);
  mix(h.layout_hash);
  mix(h.region_bytes);
  mix(static_cast<std::uint64_t>(h.created_at));
  mix(h.secret);
  for (const char c : h.boot_id) mix(static_cast<unsigned char>(c));
  return sum;
}

}  // namespace latchfs::shm
