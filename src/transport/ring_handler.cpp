#include "transport/ring_handler.h"

#include <linux/fuse.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/log.h"
#include "transport/ring_group.h"

namespace latchfs::transport {
namespace {

// Messages up to here are copied out of the entry, so that handlers may look at what was asked
// after they answered into the same memory. Larger ones carry data of WRITE and SETXATTR, which
// nobody looks at again.
constexpr std::size_t kSmall = 8192;

thread_local RingEntry* t_handled = nullptr;

fuse_in_header header_of(const RingEntry& entry) noexcept {
  fuse_in_header header;
  std::memcpy(&header, entry.headers.in_out.data(), sizeof header);
  return header;
}

bool is_of_regular_file(std::uint32_t opcode) {
  return opcode == FUSE_READ || opcode == FUSE_WRITE || opcode == FUSE_FLUSH ||
         opcode == FUSE_SETLK || opcode == FUSE_SETLKW;
}

}  // namespace

RingHandler::RingHandler(RingShared& shared, RingGroup& group)
    : shared_{shared}, group_{group}, small_(kSmall / sizeof(std::uint64_t)) {}

std::span<char> RingHandler::answer_space() noexcept {
  if (t_handled == nullptr) return {};
  return {t_handled->payload, t_handled->capacity};
}

bool RingHandler::is_kick(const RingEntry& entry) noexcept {
  return header_of(entry).opcode == FUSE_NOTIFY_REPLY;
}

std::span<char> RingHandler::assemble(RingEntry& entry, const fuse_in_header& header) noexcept {
  const std::size_t data = entry.headers.entry.payload_size;
  if (header.len < sizeof header + data || data > entry.capacity) return {};
  entry.used = std::max(entry.used, data);
  const std::size_t argument = header.len - sizeof header - data;
  if (argument > entry.headers.op_in.size()) return {};
  const bool in_place = header.len > kSmall && argument % alignof(fuse_in_header) == 0;
  if (!in_place && header.len > kSmall) return {};
  char* const message =
      in_place ? entry.payload - argument - sizeof header : reinterpret_cast<char*>(small_.data());
  std::memcpy(message, &header, sizeof header);
  std::memcpy(message + sizeof header, entry.headers.op_in.data(), argument);
  if (!in_place) std::memcpy(message + sizeof header + argument, entry.payload, data);
  return {message, header.len};
}

RingHandler::Outcome RingHandler::handle(RingEntry& entry) {
  fuse_in_header header = header_of(entry);
  const Outcome answered{Outcome::What::kAnswered, header.nodeid};
  header.unique = RingEntries::begin(entry, header.unique, entry.headers.entry.commit_id);
  if (is_kick(entry)) {
    entry.answer_nothing(0);
    return {Outcome::What::kKicked, header.nodeid};
  }
  const std::span<char> message = assemble(entry, header);
  if (message.empty()) {
    log::error("a request of {} bytes with {} of data (opcode {}) makes no sense", header.len,
               entry.headers.entry.payload_size, header.opcode);
    entry.answer_nothing(-EIO);
    return answered;
  }
  if (is_of_regular_file(header.opcode)) group_.note_file(header.nodeid);
  t_handled = &entry;
  shared_.handle(message.data(), message.size());
  t_handled = nullptr;
  // Has no answer, and yet wants a commit: the kernel sends it in person where it took a name of
  // READDIRPLUS's that it cannot keep (fs/fuse/readdir.c fuse_force_forget()).
  if (header.opcode == FUSE_FORGET || header.opcode == FUSE_BATCH_FORGET) {
    entry.answer_nothing(0);
    return answered;
  }
  if ((entry.progress.load(std::memory_order_acquire) & RingEntry::kFilled) != 0) return answered;
  shared_.park(entry, header);
  const unsigned before = entry.progress.fetch_or(RingEntry::kLeft, std::memory_order_acq_rel);
  if ((before & RingEntry::kFilled) != 0) {
    shared_.unpark(entry);
    return answered;
  }
  return {Outcome::What::kParked, header.nodeid};
}

}  // namespace latchfs::transport
