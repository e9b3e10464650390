#include "store/client_table.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <string_view>

namespace latchfs {
namespace {

constexpr auto kAcquire = std::memory_order_acquire;
constexpr auto kRelease = std::memory_order_release;

template <std::size_t N>
using Words = std::array<std::atomic<std::uint64_t>, N>;

template <std::size_t N>
void put(Words<N>& to, std::string_view text) noexcept {
  std::array<std::uint64_t, N> words{};
  std::memcpy(words.data(), text.data(), std::min(text.size(), sizeof words - 1));
  for (std::size_t i = 0; i < N; ++i) to[i].store(words[i], kRelease);
}

template <std::size_t N>
std::string get(const Words<N>& from) {
  std::array<std::uint64_t, N> words{};
  for (std::size_t i = 0; i < N; ++i) words[i] = from[i].load(kAcquire);
  // Of a slot that something wrote over, too: never beyond the end.
  const std::string_view bytes{reinterpret_cast<const char*>(words.data()), sizeof words};
  return std::string{bytes.substr(0, bytes.find('\0'))};
}

bool published(std::uint64_t state) noexcept { return (state & 1) != 0; }

// Only from the state that was seen together with the mount: the slot may be another's by now.
void take_back(ClientSlot& slot, std::uint64_t state, std::uint64_t mount) noexcept {
  if (slot.mount.load() != mount) return;
  if (published(state) && !slot.state.compare_exchange_strong(state, state + 1)) return;
  slot.mount.compare_exchange_strong(mount, 0);
}

}  // namespace

Result<std::uint32_t> ClientTable::add(std::uint64_t mount, const RemoteClient& client) noexcept {
  for (std::uint32_t i = 0; i < kMost; ++i) {
    ClientSlot& slot = slots[i];
    std::uint64_t nobody = 0;
    if (slot.mount.load(kAcquire) != 0 || !slot.mount.compare_exchange_strong(nobody, mount)) {
      continue;
    }
    put(slot.name, client.name);
    put(slot.address, client.address);
    slot.state.store(slot.state.load() | 1, kRelease);
    return i + 1;
  }
  return errno_code(ENOSPC);
}

void ClientTable::remove(std::uint32_t number) noexcept {
  if (number == 0 || number > kMost) return;
  ClientSlot& slot = slots[number - 1];
  const std::uint64_t state = slot.state.load();
  take_back(slot, state, slot.mount.load());
}

std::optional<RemoteClient> ClientTable::find(std::uint32_t number, std::uint64_t mount) const {
  if (number == 0 || number > kMost) return std::nullopt;
  const ClientSlot& slot = slots[number - 1];
  const std::uint64_t before = slot.state.load(kAcquire);
  if (!published(before) || slot.mount.load(kAcquire) != mount) return std::nullopt;
  RemoteClient client{get(slot.name), get(slot.address)};
  if (slot.state.load(kAcquire) != before) return std::nullopt;
  return client;
}

void ClientTable::forget(std::uint64_t mount) noexcept {
  for (ClientSlot& slot : slots) {
    const std::uint64_t state = slot.state.load();
    if (slot.mount.load() == mount) take_back(slot, state, mount);
  }
}

}  // namespace latchfs
