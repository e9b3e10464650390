#include "nlm/places.h"

#include <algorithm>
#include <chrono>

#include "base/clock.h"

namespace latchfs::nlm {

std::int64_t Places::oldest_locked() const {
  std::int64_t oldest = monotonic_ns();
  for (const auto& [place, since] : in_) {
    if (!since.empty()) oldest = std::min(oldest, since.front());
  }
  return oldest;
}

Places::Stay Places::enter(const std::string& place) {
  const MutexLock hold{mu_};
  for (;;) {
    const auto it = in_.find(place);
    const bool one_full = it != in_.end() && it->second.size() >= options_.of_one;
    if (!one_full && all_ < options_.of_all) break;
    const std::int64_t oldest = one_full ? it->second.front() : oldest_locked();
    const std::int64_t left = oldest + options_.patience_ns - monotonic_ns();
    if (left <= 0) return Stay{};
    left_.wait_for(mu_, std::chrono::nanoseconds{left});
  }
  // (The number last: what throws has changed nothing that counts.)
  Stay stay;
  stay.place_ = in_.try_emplace(place).first;
  stay.at_ = stay.place_->second.insert(stay.place_->second.end(), monotonic_ns());
  stay.places_ = this;
  ++all_;
  return stay;
}

Places::Stay::~Stay() {
  if (places_ == nullptr) return;
  const MutexLock hold{places_->mu_};
  place_->second.erase(at_);
  if (place_->second.empty()) places_->in_.erase(place_);
  --places_->all_;
  places_->left_.notify_all();
}

}  // namespace latchfs::nlm
