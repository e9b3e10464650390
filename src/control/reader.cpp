#include "control/reader.h"

#include <algorithm>
#include <iterator>
#include <utility>

namespace latchfs::control {
namespace {

std::string part(const std::string& text, std::uint64_t offset, std::size_t size) {
  if (offset >= text.size()) return {};
  return text.substr(static_cast<std::size_t>(offset), size);
}

}  // namespace

ListingReader::ListingReader(std::unique_ptr<Listing> listing, std::string begun,
                             std::vector<Mark> marks)
    : listing_{std::move(listing)}, window_{std::move(begun)}, marks_{std::move(marks)} {
  marks_.insert(marks_.begin(), {0, listing_->start()});
}

void ListingReader::go_to(const Mark& mark) {
  listing_->resume(mark.position);
  window_.clear();
  window_at_ = mark.offset;
}

// Notes where the listing stands now, if the last mark is long gone.
void ListingReader::remember_place() {
  const std::uint64_t offset = window_at_ + window_.size();
  if (offset < marks_.back().offset + mark_every_) return;
  marks_.push_back({offset, listing_->position()});
  if (marks_.size() <= kMaxMarks) return;
  mark_every_ *= 2;
  std::vector<Mark> kept;
  for (std::size_t i = 0; i < marks_.size(); i += 2) kept.push_back(marks_[i]);
  marks_ = std::move(kept);
}

// Forgets what lies too far before `offset`.
void ListingReader::trim(std::uint64_t offset) {
  if (offset <= window_at_ + kKeepBehind) return;
  const std::uint64_t spare = std::min<std::uint64_t>(offset - kKeepBehind - window_at_,  //
                                                      window_.size());
  // In big steps: each one moves the rest of the window.
  if (spare < kKeepBehind && spare < window_.size()) return;
  window_.erase(0, static_cast<std::size_t>(spare));
  window_at_ += spare;
  if (window_.capacity() > 4 * (window_.size() + kKeepBehind)) window_.shrink_to_fit();
}

Result<std::string> ListingReader::read(std::uint64_t offset, std::size_t size) {
  size = std::min(size, kMaxRead);
  if (text_) return part(*text_, offset, size);
  const auto after =
      std::upper_bound(marks_.begin(), marks_.end(), offset,
                       [](std::uint64_t at, const Mark& mark) { return at < mark.offset; });
  const Mark& nearest = *std::prev(after);
  if (offset < window_at_ || nearest.offset > window_at_ + window_.size()) go_to(nearest);
  while (window_at_ + window_.size() < offset + size) {
    trim(offset);
    const auto more = listing_->more(window_);
    if (!more) return more.error();
    if (!*more) break;
    remember_place();
  }
  std::string out = offset < window_at_ ? std::string{} : part(window_, offset - window_at_, size);
  trim(offset + out.size());
  return out;
}

}  // namespace latchfs::control
