#include "posix/node_ids.h"

namespace latchfs::posix {

std::uint64_t NodeIds::deal(FileId id) {
  const MutexLock hold{mu_};
  const auto [it, fresh] = dealt_.try_emplace(id, next_);
  if (fresh) ++next_;
  return (std::uint64_t{kDealtSlot} << kInoBits) | it->second;
}

void NodeIds::release(FileId id, std::uint64_t node) {
  const MutexLock hold{mu_};
  const auto it = dealt_.find(id);
  if (it != dealt_.end() && it->second == ino_of(node)) dealt_.erase(it);
}

bool NodeIds::keep(FileId id, std::uint64_t node) {
  const MutexLock hold{mu_};
  return dealt_.try_emplace(id, ino_of(node)).first->second == ino_of(node);
}

}  // namespace latchfs::posix
