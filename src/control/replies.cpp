#include "control/replies.h"

#include <utility>

namespace latchfs::control {

void Replies::put(uid_t uid, Reply reply) {
  const MutexLock lock{mu_};
  entries_.remove_if([uid](const Entry& entry) { return entry.uid == uid; });
  entries_.push_front({uid, std::move(reply)});
  std::size_t users = 0;
  std::size_t bytes = 0;
  entries_.remove_if([&users, &bytes](const Entry& entry) {
    bytes += entry.reply.text->size();
    return ++users > 1 && (users > kMaxUsers || bytes > kMaxBytes);
  });
}

Reply Replies::of(uid_t uid) {
  const MutexLock lock{mu_};
  for (const Entry& entry : entries_) {
    if (entry.uid == uid) return entry.reply;
  }
  return {};
}

}  // namespace latchfs::control
