// Machines on the network that own locks: the memory behind LockService::enter_client(). In shared
// memory (store/shm/layout.h), or on a heap.
//
// A slot is the mount's whose id it holds:
//
//   free -> claimed: mount, by compare-and-swap -> published: state's low bit -> free
//
// Above that bit is a count, so that who read the texts and then the state again knows whose they
// were. All fields are atomics: other processes read them while they change. No mutex, no log; a
// death at any instruction leaves a slot that its mount's reaper clears (forget()).
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <optional>

#include "latchfs/result.h"
#include "latchfs/types.h"

namespace latchfs {

struct alignas(64) ClientSlot {
  std::atomic<std::uint64_t> state;
  std::atomic<std::uint64_t> mount;
  std::array<std::atomic<std::uint64_t>, 24> name;
  std::array<std::atomic<std::uint64_t>, 6> address;
};
static_assert(sizeof(ClientSlot) == 256);

struct ClientTable {
  static constexpr std::uint32_t kMost = 4096;
  std::array<ClientSlot, kMost> slots;

  // ---- one thread of the mount at a time ----

  // A number from 1 on; texts are cut to what has room, less a NUL. ENOSPC.
  Result<std::uint32_t> add(std::uint64_t mount, const RemoteClient& client) noexcept;
  void remove(std::uint32_t number) noexcept;

  // ---- anybody ----

  // None: number is 0 or names no machine of this mount (any more).
  [[nodiscard]] std::optional<RemoteClient> find(std::uint32_t number, std::uint64_t mount) const;
  // A dead mount's. Harmless when done twice, or late.
  void forget(std::uint64_t mount) noexcept;
};

}  // namespace latchfs
