// Which bytes of one file somebody holds, whatever the modes: what is left to give back.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <vector>

#include "latchfs/types.h"

namespace latchfs::nlm {

// A value; not thread-safe.
class RangeUnion {
 public:
  void add(ByteRange range) {
    std::uint64_t begin = range.begin();
    std::uint64_t end = range.end();
    auto it = parts_.upper_bound(begin);
    if (it != parts_.begin() && std::prev(it)->second >= begin) --it;
    while (it != parts_.end() && it->first <= end) {
      begin = std::min(begin, it->first);
      end = std::max(end, it->second);
      it = parts_.erase(it);
    }
    parts_.emplace(begin, end);
  }

  void remove(ByteRange range) {
    auto it = parts_.upper_bound(range.begin());
    if (it != parts_.begin() && std::prev(it)->second > range.begin()) --it;
    while (it != parts_.end() && it->first < range.end()) {
      const auto [begin, end] = *it;
      it = parts_.erase(it);
      if (begin < range.begin()) parts_.emplace(begin, range.begin());
      if (end > range.end()) it = parts_.emplace(range.end(), end).first;
    }
  }

  [[nodiscard]] bool covers(ByteRange range) const {
    const auto it = parts_.upper_bound(range.begin());
    return it != parts_.begin() && std::prev(it)->second >= range.end();
  }
  // What of `range` is in it, in order.
  [[nodiscard]] std::vector<ByteRange> within(ByteRange range) const {
    std::vector<ByteRange> out;
    auto it = parts_.upper_bound(range.begin());
    if (it != parts_.begin() && std::prev(it)->second > range.begin()) --it;
    for (; it != parts_.end() && it->first < range.end(); ++it) {
      out.push_back(*ByteRange::from_half_open(std::max(it->first, range.begin()),
                                               std::min(it->second, range.end())));
    }
    return out;
  }
  [[nodiscard]] bool empty() const { return parts_.empty(); }
  [[nodiscard]] std::size_t parts() const { return parts_.size(); }

 private:
  std::map<std::uint64_t, std::uint64_t> parts_;  // begin, end; apart from each other
};

}  // namespace latchfs::nlm
