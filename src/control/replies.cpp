#include "control/replies.h"

#include <utility>

namespace latchfs::control {

void Replies::put(uid_t uid, RequestKind kind, Reply reply) {
  const MutexLock lock{mu_};
  entries_.remove_if(
      [uid, kind](const Entry& entry) { return entry.uid == uid && entry.kind == kind; });
  entries_.push_front({uid, kind, std::move(reply)});
  std::size_t count = 0;
  std::size_t bytes = 0;
  entries_.remove_if([&count, &bytes](const Entry& entry) {
    bytes += entry.reply.text->size();
    return ++count > 1 && (count > kMaxReplies || bytes > kMaxBytes);
  });
}

Reply Replies::of(uid_t uid, std::optional<RequestKind> kind) {
  const MutexLock lock{mu_};
  for (const Entry& entry : entries_) {
    if (entry.uid == uid && (!kind || entry.kind == *kind)) return entry.reply;
  }
  return {};
}

}  // namespace latchfs::control
