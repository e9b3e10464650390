// Ring entries: the memory through which the kernel hands one request at a time to the daemon.
//
// An entry is in the kernel (waiting for a request), with the worker that handles its request,
// parked (the handler is done, the answer comes later and from any thread), or kept by its group,
// with a request of no meaning. It is never given up before the session ends; the kernel has no
// call for that.
#pragma once

#include <sys/uio.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "base/mutex.h"
#include "latchfs/result.h"
#include "transport/wire.h"

namespace latchfs::transport {

struct RingEntry {
  // Bits of `progress`. Whoever sets the second one gives the entry back to the kernel.
  static constexpr unsigned kFilled = 1U;  // the answer is in the entry's memory
  static constexpr unsigned kLeft = 2U;    // the worker has parked the request

  std::uint32_t index{};
  std::uint16_t queue{};
  // (Not in the payload's mapping: of a request that waits this is all that was touched.)
  wire::RingHeaders headers{};
  char* payload{};  // with kFront bytes before it that may be written
  std::size_t capacity{};
  std::array<iovec, 2> vectors{};  // the same, as registering wants it

  // Of the request it carries.
  std::uint64_t commit_id{};
  std::uint64_t unique{};  // the kernel's
  std::uint32_t generation{};
  std::size_t used{};  // bytes of the payload that were, at most
  // What libfuse takes for the request's unique, 0 once it is answered. Exactly one answer gets to
  // swap it for 0.
  std::atomic<std::uint64_t> number{0};
  std::atomic<unsigned> progress{0};

  // Writes the answer's header: error 0 or -errno, and the size of what the payload holds of it.
  void put_answer(std::int32_t error, std::size_t size) noexcept;
  // The whole answer is a header, and nobody else may answer. For the handler.
  void answer_nothing(std::int32_t error) noexcept;

  // Of the memory that a large request used only what the answer needs stays.
  void give_memory_back() noexcept;

  // A message's headers are put together right before its payload.
  static constexpr std::size_t kFront = 256;
};

// Whether a unique is that of a ring entry's request: the kernel's own never get so far.
[[nodiscard]] constexpr bool is_ring_number(std::uint64_t unique) noexcept {
  return (unique >> 63) != 0;
}

// All entries of a session. Thread-safe; addresses are stable.
class RingEntries {
 public:
  // payload: bytes each must hold.
  explicit RingEntries(std::size_t payload) : payload_{payload} {}
  ~RingEntries();
  RingEntries(const RingEntries&) = delete;
  RingEntries& operator=(const RingEntries&) = delete;

  // One more. ENOMEM, ENFILE (too many; see kMost).
  [[nodiscard]] Result<RingEntry*> add(std::uint16_t queue) noexcept EXCLUDES(mu_);

  // Before a request is handled: gives it its number.
  static std::uint64_t begin(RingEntry& entry, std::uint64_t unique,
                             std::uint64_t commit_id) noexcept;
  // The entry that carries (or carried) the request of this number, or null for nonsense.
  [[nodiscard]] RingEntry* find(std::uint64_t number) const noexcept;

  static constexpr std::size_t kMost = std::size_t{1} << 20;

 private:
  static constexpr std::size_t kChunk = 256;
  using Chunk = std::array<RingEntry, kChunk>;

  const std::size_t payload_;
  Mutex mu_;  // leaf
  std::size_t size_ GUARDED_BY(mu_){0};
  // Read without the lock: a number is known only after its chunk was stored.
  std::array<std::atomic<Chunk*>, kMost / kChunk> chunks_{};
};

}  // namespace latchfs::transport
