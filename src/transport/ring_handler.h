// What a thread does with a request that came by a ring entry: puts it together as one message,
// has it handled, and says what became of it.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "transport/ring_entry.h"

struct fuse_in_header;

namespace latchfs::transport {

class RingGroup;

// What all that serves a session's rings shares.
struct RingShared {
  // Handles one message: fuse_in_header with its number in place of the unique, arguments, data.
  // Called by the thread that has the request; the message may be written to.
  std::function<void(char* message, std::size_t size)> handle;
  // The handler of this entry's request is done, its answer was not given. Called before the
  // entry's kLeft is set, and unpark() if the answer came in between.
  std::function<void(RingEntry&, const fuse_in_header&)> park;
  std::function<void(RingEntry&)> unpark;
  const int device;
  RingEntries& entries;
  std::atomic<bool> quiet{false};  // handle no further request, commit only
  // Uniques of the requests that RingGroup::kick() asks for: beyond all of the kernel's, and even
  // like those.
  std::atomic<std::uint64_t> next_kick{1ULL << 62};
};

// One thread's own.
class RingHandler {
 public:
  struct Outcome {
    enum class What : std::uint8_t {
      kAnswered,  // the entry wants to be committed
      kParked,    // it is whoever's answers it
      kKicked,    // as answered; the request was one that RingGroup::kick() had asked for
    } what{};
    std::uint64_t node{};  // the request's
  };

  RingHandler(RingShared& shared, RingGroup& group);
  RingHandler(const RingHandler&) = delete;
  RingHandler& operator=(const RingHandler&) = delete;

  [[nodiscard]] Outcome handle(RingEntry& entry);

  // Whether an entry carries a request that RingGroup::kick() asked for.
  [[nodiscard]] static bool is_kick(const RingEntry& entry) noexcept;

  // Where the request that the calling thread is handling wants its answer's bytes, if it came by
  // a ring; they may overlap the request's own data.
  [[nodiscard]] static std::span<char> answer_space() noexcept;

 private:
  // What a message is handed over in; empty: the entry makes no sense.
  [[nodiscard]] std::span<char> assemble(RingEntry& entry, const fuse_in_header& header) noexcept;

  RingShared& shared_;
  RingGroup& group_;
  std::vector<std::uint64_t> small_;  // messages that are copied are put together here, aligned
};

}  // namespace latchfs::transport
