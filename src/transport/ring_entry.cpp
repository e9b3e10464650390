#include "transport/ring_entry.h"

#include <linux/fuse.h>
#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <new>

namespace latchfs::transport {
namespace {

constexpr std::uint64_t kTag = 1ULL << 63;
constexpr std::uint32_t kGenerations = 0x7fffffff;
constexpr std::size_t kPage = 4096;
constexpr std::size_t kLarge = 65536;
static_assert(RingEntry::kFront <= kPage);

}  // namespace

void RingEntry::put_answer(std::int32_t error, std::size_t size) noexcept {
  const fuse_out_header header{static_cast<std::uint32_t>(sizeof header + size), error, unique};
  std::memcpy(headers.in_out.data(), &header, sizeof header);
  headers.entry.payload_size = static_cast<std::uint32_t>(size);
}

void RingEntry::answer_nothing(std::int32_t error) noexcept {
  number.store(0, std::memory_order_relaxed);
  put_answer(error, 0);
}

void RingEntry::give_memory_back() noexcept {
  if (used <= kLarge) return;
  const std::size_t answer = headers.entry.payload_size;
  const std::size_t from = (answer + kPage - 1) / kPage * kPage;
  if (from < capacity) ::madvise(payload + from, capacity - from, MADV_DONTNEED);
  used = 0;
}

RingEntries::~RingEntries() {
  for (auto& slot : chunks_) {
    Chunk* chunk = slot.load(std::memory_order_relaxed);
    if (chunk == nullptr) break;
    for (const RingEntry& entry : *chunk) {
      if (entry.payload != nullptr) ::munmap(entry.payload - kPage, kPage + entry.capacity);
    }
    delete chunk;
  }
}

Result<RingEntry*> RingEntries::add(std::uint16_t queue) noexcept {
  const MutexLock hold{mu_};
  if (size_ == kMost) return errno_code(ENFILE);
  std::atomic<Chunk*>& slot = chunks_[size_ / kChunk];
  Chunk* chunk = slot.load(std::memory_order_relaxed);
  if (chunk == nullptr) {
    chunk = new (std::nothrow) Chunk;
    if (chunk == nullptr) return errno_code(ENOMEM);
    slot.store(chunk, std::memory_order_release);
  }
  // One mapping each, with the front before it: neighbours become one in the kernel's books, of
  // which a process may have 65,530. What was never used takes no memory.
  void* memory = ::mmap(nullptr, kPage + payload_, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return last_errno();
  RingEntry& entry = (*chunk)[size_ % kChunk];
  entry.index = static_cast<std::uint32_t>(size_++);
  entry.queue = queue;
  entry.payload = static_cast<char*>(memory) + kPage;
  entry.capacity = payload_;
  entry.vectors = {iovec{&entry.headers, sizeof entry.headers},
                   iovec{entry.payload, entry.capacity}};
  return &entry;
}

std::uint64_t RingEntries::begin(RingEntry& entry, std::uint64_t unique,
                                 std::uint64_t commit_id) noexcept {
  entry.unique = unique;
  entry.commit_id = commit_id;
  entry.generation = (entry.generation + 1) & kGenerations;
  const std::uint64_t number =
      kTag | (static_cast<std::uint64_t>(entry.generation) << 32) | entry.index;
  entry.progress.store(0, std::memory_order_relaxed);
  entry.number.store(number, std::memory_order_release);
  return number;
}

RingEntry* RingEntries::find(std::uint64_t number) const noexcept {
  const auto index = static_cast<std::uint32_t>(number);
  if (!is_ring_number(number) || index >= kMost) return nullptr;
  Chunk* chunk = chunks_[index / kChunk].load(std::memory_order_acquire);
  return chunk == nullptr ? nullptr : &(*chunk)[index % kChunk];
}

}  // namespace latchfs::transport
