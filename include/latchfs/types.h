// The public vocabulary of locking: who, what, where. Plain values, no behaviour
// beyond comparison and range arithmetic. Terms: docs/glossary.md.
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <string>
#include <string_view>

#include "latchfs/result.h"

namespace latchfs {

// A backing file: st_dev and st_ino of the file system under the mount, so every
// mount and every hard link of one file has the same id.
struct FileId {
  std::uint64_t dev{};
  std::uint64_t ino{};
  auto operator<=>(const FileId&) const = default;
};

// Which kernel interface a lock belongs to. POSIX and OFD locks conflict with each
// other; flock locks conflict only among themselves (fcntl(2), flock(2)).
// The *Op kinds are I/O in flight under enforce=mandatory: they conflict with byte-range
// locks of other owners and never with each other.
enum class LockKind : std::uint8_t {
  kPosix = 0,
  kOfd = 1,
  kFlock = 2,
  kFcntl = 3,  // POSIX or OFD, the edge could not tell: no deadlock detection, listed as ""
  kReadOp = 4,
  kWriteOp = 5,
};

[[nodiscard]] constexpr bool is_op(LockKind k) {
  return k == LockKind::kReadOp || k == LockKind::kWriteOp;
}

enum class LockMode : std::uint8_t { kShared = 0, kExclusive = 1 };

// Who holds or asks. Opaque outside the edge that made it; equal means "the same owner".
//
// mount: the mount's registration number in the table: never 0, never reused while the
// table lives, so an owner of a dead mount is never taken for a new one.
// key: the edge's number (FUSE lock_owner, the kernel's hash of the files table or open file).
// space: key spaces that must not meet: byte-range owners, flock owners, I/O in flight.
enum class OwnerSpace : std::uint8_t { kRange = 0, kFlock = 1, kOp = 2 };
struct OwnerId {
  std::uint64_t mount{};
  std::uint64_t key{};
  OwnerSpace space{};
  auto operator<=>(const OwnerId&) const = default;
};

// The owner_id users see in listings and give back to `release`: fixed-width hex, 35 characters
// "mmmmmmmmmmmmmmmm-s-kkkkkkkkkkkkkkkk".
[[nodiscard]] std::string to_string(const OwnerId& owner);
// EINVAL unless text is exactly what to_string prints (lower-case hex).
[[nodiscard]] Result<OwnerId> parse_owner_id(std::string_view text);

// Half-open byte interval [begin, end) of one file.
//
// Invariant: begin < end <= kEof. kEof is 2^63, one past the last byte an off_t can name:
// "to end of file" is an ordinary value, and no end or adjacency test can overflow.
// fcntl(2), FUSE and NLM spell ranges their own way; they convert at the edge.
class ByteRange {
 public:
  static constexpr std::uint64_t kEof = std::uint64_t{1} << 63;

  // The whole file.
  constexpr ByteRange() = default;

  // Half-open. EINVAL unless begin < end <= kEof.
  static Result<ByteRange> from_half_open(std::uint64_t begin, std::uint64_t end);
  // FUSE's fuse_file_lock / struct flock resolved by the kernel: inclusive last byte;
  // 2^63-1 and anything above mean end of file. EINVAL if last < first or first > 2^63-1.
  static Result<ByteRange> from_inclusive(std::uint64_t first, std::uint64_t last);
  // The seed's offset and size: size 0 means to the maximum file size; a size that reaches
  // beyond it is EINVAL, as is an offset above 2^63-1.
  static Result<ByteRange> from_offset_size(std::uint64_t offset, std::uint64_t size);

  [[nodiscard]] constexpr std::uint64_t begin() const { return begin_; }
  [[nodiscard]] constexpr std::uint64_t end() const { return end_; }
  // Inclusive last byte, as fcntl(2) and FUSE spell it: 2^63-1 for "to end of file".
  [[nodiscard]] constexpr std::uint64_t last() const { return end_ - 1; }
  // The seed's size: 0 for "to the maximum file size".
  [[nodiscard]] constexpr std::uint64_t size_or_zero() const {
    return end_ == kEof ? 0 : end_ - begin_;
  }
  [[nodiscard]] constexpr bool overlaps(ByteRange o) const {
    return begin_ < o.end_ && o.begin_ < end_;
  }
  [[nodiscard]] constexpr bool adjoins(ByteRange o) const {
    return begin_ == o.end_ || o.begin_ == end_;
  }
  auto operator<=>(const ByteRange&) const = default;

 private:
  constexpr ByteRange(std::uint64_t b, std::uint64_t e) : begin_{b}, end_{e} {}
  std::uint64_t begin_{0};
  std::uint64_t end_{kEof};
};

// What is known about the process or description behind an owner, for people and for
// finding the path: never compared, never trusted for a decision about conflicts.
struct Holder {
  std::uint32_t pid{};  // thread group id in the daemon's pid namespace; 0 unknown
  std::uint32_t uid{};
  std::array<char, 16> comm{};  // task name, NUL-padded as the kernel gives it
  std::uint64_t fh{};           // the edge's open-file number, unique per mount; 0 none
  std::int32_t backing_fd{-1};  // descriptor of the backing file in the owner's daemon; -1 none
  // The machine on the network that the lock is held for: LockService::enter_client(). 0: this one.
  // With it pid is the client's own number for its process (NLM: svid), of no meaning here.
  std::uint32_t client{};
};

[[nodiscard]] inline std::string_view comm_of(const Holder& holder) {
  const std::string_view whole{holder.comm.data(), holder.comm.size()};
  return whole.substr(0, whole.find('\0'));
}

// A machine that owns locks over the network: as it calls itself, and its numeric IP address. For
// people, like the rest of Holder.
struct RemoteClient {
  std::string name, address;
  auto operator<=>(const RemoteClient&) const = default;
};

// A request for one lock.
struct LockRequest {
  FileId file;
  OwnerId owner;
  ByteRange range;
  LockMode mode{};
  LockKind kind{};
  Holder holder;
};

// A lock held (or, in Waiter, asked for).
struct Grant {
  FileId file;
  OwnerId owner;
  ByteRange range;
  LockMode mode{};
  LockKind kind{};
  Holder holder;
  std::int64_t acquired_at_ns{};  // CLOCK_REALTIME, ns since the epoch
  std::uint32_t waiters{};        // blocked requests that conflict with it; filled by list only
};

}  // namespace latchfs
