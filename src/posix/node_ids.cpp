#include "posix/node_ids.h"

namespace latchfs::posix {

std::uint64_t NodeIds::deal(FileId id) {
  const MutexLock hold{mu_};
  const auto [it, fresh] = dealt_.try_emplace(id, next_);
  if (fresh) ++next_;
  return (std::uint64_t{kDealtSlot} << kInoBits) | it->second;
}

void NodeIds::release(FileId id) {
  const MutexLock hold{mu_};
  dealt_.erase(id);
}

}  // namespace latchfs::posix
