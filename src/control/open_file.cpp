#include "control/open_file.h"

#include <algorithm>
#include <utility>

#include "base/clock.h"

namespace latchfs::control {

std::string text_part(const std::string& text, std::uint64_t offset, std::size_t size) {
  if (offset >= text.size()) return {};
  return text.substr(static_cast<std::size_t>(offset), std::min(size, ListingReader::kMaxRead));
}

std::shared_ptr<const std::string> no_reply() {
  static const auto text = std::make_shared<const std::string>("{}\n");
  return text;
}

Result<std::string> OpenText::read(std::uint64_t offset, std::size_t size, const Caller&) {
  if (offset == 0) {
    auto now = make_();
    if (!now) return now.error();
    const MutexLock lock{mu_};
    text_ = std::move(*now);
  }
  const auto text = [this] {
    const MutexLock lock{mu_};
    return text_;
  }();
  return text_part(*text, offset, size);
}

bool Budget::take(std::size_t bytes) noexcept {
  std::size_t used = used_.load(std::memory_order_relaxed);
  do {
    if (bytes > limit_ - used) return false;
  } while (!used_.compare_exchange_weak(used, used + bytes, std::memory_order_relaxed));
  return true;
}

void Budget::give_back(std::size_t bytes) noexcept {
  used_.fetch_sub(bytes, std::memory_order_relaxed);
}

OpenListing::OpenListing(Begun begun, Budget& budget, Begin begin)
    : begun_{std::move(begun)},
      begun_at_{monotonic_ns()},
      budget_{budget},
      begin_{std::move(begin)} {}

Result<std::string> OpenListing::read(std::uint64_t offset, std::size_t size, const Caller&) {
  const MutexLock lock{mu_};
  if (offset == 0 && monotonic_ns() - begun_at_ > kFresh) {
    auto again = begin_();
    if (!again) return again.error();
    budget_.give_back(std::exchange(begun_, *std::move(again)).charged);
    begun_at_ = monotonic_ns();
  }
  return begun_.reader->read(offset, size);
}

}  // namespace latchfs::control
