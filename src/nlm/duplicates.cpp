#include "nlm/duplicates.h"

#include "base/clock.h"

namespace latchfs::nlm {

Duplicates::Seen Duplicates::ask(std::uint64_t request, Said& said) {
  const std::int64_t now = monotonic_ns();
  const MutexLock hold{mu_};
  while (!done_.empty() && (done_.size() > most_ || now - done_.front().at > age_ns_)) {
    by_request_.erase(done_.front().request);
    done_.pop_front();
  }
  const auto it = by_request_.find(request);
  if (it != by_request_.end()) {
    if (!it->second->done) return Seen::kUnderWay;
    said = it->second->said;
    return Seen::kAnswered;
  }
  under_way_.push_back({request, 0, false, {}});
  try {
    by_request_.emplace(request, std::prev(under_way_.end()));
  } catch (...) {
    under_way_.pop_back();
    throw;
  }
  return Seen::kNew;
}

void Duplicates::answered(std::uint64_t request, Said said) noexcept {
  const MutexLock hold{mu_};
  const auto it = by_request_.find(request);
  if (it == by_request_.end() || it->second->done) return;
  it->second->at = monotonic_ns();
  it->second->done = true;
  it->second->said = std::move(said);
  done_.splice(done_.end(), under_way_, it->second);
}

void Duplicates::dropped(std::uint64_t request) noexcept {
  const MutexLock hold{mu_};
  const auto it = by_request_.find(request);
  if (it == by_request_.end() || it->second->done) return;
  under_way_.erase(it->second);
  by_request_.erase(it);
}

}  // namespace latchfs::nlm
