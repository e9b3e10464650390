// The reply to each user's last request, for `reply` and for reading `release`.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <list>
#include <memory>
#include <string>

#include "base/mutex.h"

namespace latchfs::control {

struct Reply {
  std::shared_ptr<const std::string> text;
  std::int64_t at_ns{};  // CLOCK_REALTIME
};

// In memory, bounded: the users who asked least recently are forgotten.
class Replies {
 public:
  static constexpr std::size_t kMaxUsers = 256;
  static constexpr std::size_t kMaxBytes = std::size_t{16} << 20;

  void put(uid_t uid, Reply reply);
  // A null text: none is known.
  Reply of(uid_t uid);

 private:
  struct Entry {
    uid_t uid{};
    Reply reply;
  };
  Mutex mu_;                                  // held over no call out
  std::list<Entry> entries_ GUARDED_BY(mu_);  // the newest first
};

}  // namespace latchfs::control
