#include "nlm/duplicates.h"

#include "base/clock.h"

namespace latchfs::nlm {

Duplicates::Seen Duplicates::ask(std::uint64_t request, Said& said) {
  const std::int64_t now = monotonic_ns();
  const MutexLock hold{mu_};
  while (!entries_.empty() && entries_.front().done &&
         (entries_.size() >= most_ || now - entries_.front().at > age_ns_)) {
    by_request_.erase(entries_.front().request);
    entries_.pop_front();
  }
  const auto it = by_request_.find(request);
  if (it != by_request_.end()) {
    if (!it->second->done) return Seen::kUnderWay;
    said = it->second->said;
    return Seen::kAnswered;
  }
  if (entries_.size() >= most_) return Seen::kUnderWay;
  entries_.push_back({request, now, false, {}});
  try {
    by_request_.emplace(request, std::prev(entries_.end()));
  } catch (...) {
    entries_.pop_back();
    throw;
  }
  return Seen::kNew;
}

void Duplicates::answered(std::uint64_t request, Said said) {
  const MutexLock hold{mu_};
  const auto it = by_request_.find(request);
  if (it == by_request_.end()) return;
  it->second->done = true;
  it->second->said = std::move(said);
}

void Duplicates::dropped(std::uint64_t request) noexcept {
  const MutexLock hold{mu_};
  const auto it = by_request_.find(request);
  if (it == by_request_.end()) return;
  entries_.erase(it->second);
  by_request_.erase(it);
}

}  // namespace latchfs::nlm
