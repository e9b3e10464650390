#include "fuse/backing_files.h"

#include "posix/credentials.h"
#include "posix/sys.h"

namespace latchfs::fuse {

bool BackingFiles::suits(int fd) noexcept { return posix::is_local(fd); }

std::int32_t BackingFiles::number_for(int fd) noexcept {
  if (!suits(fd)) return 0;
  const auto id = channel_.open_backing(fd);
  return id ? *id : 0;
}

BackingFiles::Use BackingFiles::enter(std::uint64_t node, int fd) {
  Shard& shard = shard_of(node);
  {
    const MutexLock hold{shard.mu};
    const auto found = shard.nodes.find(node);
    if (found != shard.nodes.end()) {
      ++found->second.opens;
      return {*this, node, found->second.id};
    }
  }
  posix::become_daemon();
  const std::int32_t mine = number_for(fd);
  std::int32_t result{};
  try {
    const MutexLock hold{shard.mu};
    Backing& backing = shard.nodes.try_emplace(node, Backing{mine, 0}).first->second;
    ++backing.opens;
    result = backing.id;
  } catch (...) {
    if (mine != 0) channel_.close_backing(mine);
    throw;
  }
  // Another thread was first.
  if (result != mine && mine != 0) channel_.close_backing(mine);
  return {*this, node, result};
}

void BackingFiles::close_all() noexcept {
  posix::become_daemon();
  for (Shard& shard : shards_) {
    std::unordered_map<std::uint64_t, Backing> nodes;
    {
      const MutexLock hold{shard.mu};
      nodes.swap(shard.nodes);
    }
    for (const auto& [node, backing] : nodes) {
      if (backing.id != 0) channel_.close_backing(backing.id);
    }
  }
}

void BackingFiles::leave(std::uint64_t node) noexcept {
  std::int32_t id = 0;
  Shard& shard = shard_of(node);
  {
    const MutexLock hold{shard.mu};
    const auto found = shard.nodes.find(node);
    if (found == shard.nodes.end() || --found->second.opens != 0) return;
    id = found->second.id;
    shard.nodes.erase(found);
  }
  if (id == 0) return;
  posix::become_daemon();
  channel_.close_backing(id);
}

}  // namespace latchfs::fuse
