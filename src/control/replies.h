// The replies to each user's last requests, for `reply` and for reading `release` and the like.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <list>
#include <memory>
#include <optional>
#include <string>

#include "base/mutex.h"

namespace latchfs::control {

// What was asked for: of each, a user's last reply is kept.
enum class RequestKind : std::uint8_t { kRelease, kFilelock, kUnfilelock };

struct Reply {
  std::shared_ptr<const std::string> text;
  std::int64_t at_ns{};  // CLOCK_REALTIME
};

// In memory, bounded: the users who asked least recently are forgotten.
class Replies {
 public:
  static constexpr std::size_t kMaxReplies = 256;
  static constexpr std::size_t kMaxBytes = std::size_t{16} << 20;

  void put(uid_t uid, RequestKind kind, Reply reply);
  // To the last request of that kind; without one, of any kind. A null text: none is known.
  Reply of(uid_t uid, std::optional<RequestKind> kind = std::nullopt);

 private:
  struct Entry {
    uid_t uid{};
    RequestKind kind{};
    Reply reply;
  };
  Mutex mu_;                                  // held over no call out
  std::list<Entry> entries_ GUARDED_BY(mu_);  // the newest first
};

}  // namespace latchfs::control
