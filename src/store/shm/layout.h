// The shared table's format. Fixed widths, offsets and Refs instead of pointers, no vtables.
//
// Survives the death of any process at any instruction; not a reboot (nor need it: no lock does).
// Everything from a shard on is changed only under that shard's mutex and through its log; but the
// filter's bits, which follow from what is (file_filter.h).
//
//   0              Header: identity, mounts, users
//   kOpsAt         operations in flight outside of the table: changed without mutex or log
//   kShardsAt      kShardCount shards: mutex, undo log, free lists, roots, filter of files
//   kCellsAt       cells of 64 bytes, handed to shards in chunks; a Ref is offset / 64
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include "base/robust_mutex.h"
#include "lock/records.h"
#include "store/shm/file_filter.h"
#include "store/shm/op_slots.h"

namespace latchfs::shm {

inline constexpr std::uint64_t kMagic = 0x6c61746368667331ULL;  // "latchfs1"
inline constexpr std::uint32_t kTableFormat = 2;
inline constexpr std::uint32_t kShardCount = 64;
inline constexpr std::uint32_t kMaxMounts = 256;
inline constexpr std::uint32_t kMaxUsers = 4096;
// Entries of one step's undo log. A step changes at most LockTable::kWideGrants grants in two trees
// (about 200 words each at a million grants) and grants at most as many waiters.
inline constexpr std::uint32_t kLogEntries = 8192;
inline constexpr std::uint64_t kCellBytes = 64;
inline constexpr std::uint64_t kChunkBytes = 16 * 1024;
inline constexpr std::uint64_t kPage = 4096;

struct MountSlot {
  std::atomic<std::uint64_t> id;        // 0: free. Stored last when registering
  std::atomic<std::uint32_t> doorbell;  // futex: rung when something waits for this mount's daemon
  std::uint32_t pid;
  std::atomic<std::uint32_t> believes_ms;  // how long its kernel believes what it was told, alone
  std::int64_t started_at;                 // CLOCK_REALTIME ns
  std::array<char, 256> source, mountpoint;
};

struct UserSlot {
  std::atomic<std::uint64_t> uid_plus_one;  // 0: free
  std::atomic<std::int64_t> count;          // grants and waiters
};

struct Header {
  std::uint64_t magic;
  std::uint32_t format;
  std::uint32_t layout_hash;  // sizes of all records: another build of the same format differs
  std::uint64_t region_bytes;
  std::array<char, 40> boot_id;
  std::int64_t created_at;
  std::uint64_t checksum;            // of the fields above
  std::atomic<std::uint64_t> ready;  // kMagic once everything is initialised
  std::atomic<std::uint64_t> next_mount_id;
  std::atomic<std::int64_t> changed_at;
  std::atomic<std::uint32_t> mount_count;   // slots in use
  std::atomic<std::uint64_t> ready_shards;  // bit i: shard i may have ready waiters
  RobustMutex grow_mu;                      // for changes of frontier and Shard::cells
  // Bytes of the region in use: kCellsAt and all shards' cells, whenever grow_mu is free.
  std::atomic<std::uint64_t> frontier;
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

struct FreeList {
  lock::Ref head;
  std::uint32_t count;
};

struct alignas(64) Shard {
  RobustMutex mu;
  std::uint32_t log_count;  // valid entries; 0 between steps
  std::uint32_t broken;     // 1: found damaged, refuses service
  FreeList small, large;    // cells of 64 and of 128 bytes
  std::uint64_t cells;      // bytes of cells it was given
  lock::TableRoot root;
  FileFilter filter;
  std::array<LogEntry, kLogEntries> log;
};

inline constexpr std::uint64_t round_up(std::uint64_t n, std::uint64_t to) {
  return (n + to - 1) / to * to;
}
inline constexpr std::uint64_t kOpsAt = round_up(sizeof(Header), kPage);
inline constexpr std::uint64_t kShardsAt = kOpsAt + round_up(sizeof(OpTable), kPage);
inline constexpr std::uint64_t kShardStride = round_up(sizeof(Shard), kPage);
inline constexpr std::uint64_t kCellsAt =
    round_up(kShardsAt + kShardCount * kShardStride, kChunkBytes);
inline constexpr std::uint64_t kMinRegion = kCellsAt + kShardCount * 2 * kChunkBytes;
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
    sizeof(Header) * 31 + sizeof(Shard) * 37 + sizeof(MountSlot) * 41 +
    sizeof(lock::TableRoot) * 43 + sizeof(lock::GrantRec) * 47 + sizeof(lock::OwnerRec) * 53 +
    sizeof(lock::FileRec) * 59 + sizeof(lock::WaiterRec) * 61 + kShardCount * 67 +
    sizeof(OpTable) * 71 + sizeof(FileFilter) * 73);

// FNV-1a over the identity fields.
inline std::uint64_t header_checksum(const Header& h) {
  std::uint64_t sum = 0xcbf29ce484222325ULL;
  const auto mix = [&sum](std::uint64_t v) { sum = (sum ^ v) * 0x100000001b3ULL; };
  mix(h.magic);
  mix(h.format);
  mix(h.layout_hash);
  mix(h.region_bytes);
  mix(static_cast<std::uint64_t>(h.created_at));
  for (const char c : h.boot_id) mix(static_cast<unsigned char>(c));
  return sum;
}

}  // namespace latchfs::shm
