// What one owner holds of one file, grant for grant as the lock table has it.
#pragma once

#include <cstddef>

#include "latchfs/types.h"
#include "nlm/range_union.h"

namespace latchfs::nlm {

// A value; not thread-safe.
class HeldRanges {
 public:
  void hold(ByteRange range, LockMode mode) {
    of(mode == LockMode::kExclusive ? LockMode::kShared : LockMode::kExclusive).remove(range);
    of(mode).add(range);
  }
  void give(ByteRange range) {
    shared_.remove(range);
    exclusive_.remove(range);
  }
  // All of it, in this mode.
  [[nodiscard]] bool covers(ByteRange range, LockMode mode) const {
    return (mode == LockMode::kExclusive ? exclusive_ : shared_).covers(range);
  }
  [[nodiscard]] HeldRanges within(ByteRange range) const {
    HeldRanges out;
    for (const ByteRange part : shared_.within(range)) out.shared_.add(part);
    for (const ByteRange part : exclusive_.within(range)) out.exclusive_.add(part);
    return out;
  }
  [[nodiscard]] const RangeUnion& shared() const { return shared_; }
  [[nodiscard]] const RangeUnion& exclusive() const { return exclusive_; }
  [[nodiscard]] bool empty() const { return shared_.empty() && exclusive_.empty(); }
  // As many as the table has for them: equal ones that adjoin are one.
  [[nodiscard]] std::size_t grants() const { return shared_.parts() + exclusive_.parts(); }

 private:
  RangeUnion& of(LockMode mode) { return mode == LockMode::kExclusive ? exclusive_ : shared_; }

  RangeUnion shared_;
  RangeUnion exclusive_;
};

}  // namespace latchfs::nlm
