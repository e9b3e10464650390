// Reading a listing at any offset while it is being made: one of these per open file.
//
// A listing that is small enough is one string, rendered when the file is opened: exact and
// consistent. A larger one is made as the reader goes on, with a window of its text kept around
// the place last read: forward reads cost only what they read. A read before the window starts
// again from the nearest mark, a place at which the making can be resumed; the text up to there
// is not made again.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "control/listing.h"
#include "latchfs/result.h"

namespace latchfs::control {

class ListingReader {
 public:
  // Kept behind the place last read, so that readers which keep several reads in flight (NFS) do
  // not go back and forth.
  static constexpr std::size_t kKeepBehind = std::size_t{256} << 10;
  static constexpr std::size_t kMaxRead = std::size_t{1} << 20;
  static constexpr std::size_t kMaxMarks = 512;

  // Where the making can be resumed.
  struct Mark {
    std::uint64_t offset{};
    Listing::Position position;
  };
  static constexpr std::uint64_t kMarkEvery = std::uint64_t{64} << 10;  // bytes

  // The whole text.
  explicit ListingReader(std::shared_ptr<const std::string> text) : text_{std::move(text)} {}
  // A listing that stands right behind `begun`, the text it has made so far, with the marks
  // passed on the way, ascending, but for its start.
  ListingReader(std::unique_ptr<Listing> listing, std::string begun, std::vector<Mark> marks);

  // Up to `size` bytes (at most kMaxRead); fewer only at the end.
  Result<std::string> read(std::uint64_t offset, std::size_t size);
  // Memory held now.
  [[nodiscard]] std::size_t footprint() const { return text_ ? text_->size() : window_.capacity(); }

 private:
  void go_to(const Mark& mark);
  void remember_place();
  void trim(std::uint64_t offset);

  std::shared_ptr<const std::string> text_;  // or, if null:
  std::unique_ptr<Listing> listing_;
  std::string window_;
  std::uint64_t window_at_{};             // offset of the window's first byte
  std::vector<Mark> marks_;               // ascending; the first is offset 0
  std::uint64_t mark_every_{kMarkEvery};  // doubles when there are too many
};

}  // namespace latchfs::control
