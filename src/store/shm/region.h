// The mapped table: creation, check of its identity, growth. No locking rules here.
#pragma once

#include <algorithm>
#include <boost/interprocess/mapped_region.hpp>
#include <boost/interprocess/shared_memory_object.hpp>
#include <cstdint>
#include <memory>
#include <string>

#include "latchfs/result.h"
#include "store/shm/layout.h"

namespace latchfs::shm {

class Region {
 public:
  // A new table under this shared memory name, which must not exist (O_EXCL, mode 0600): sparse,
  // only header and shards take memory. EEXIST, ENOSPC (no room for them), EINVAL (bytes).
  static Result<std::unique_ptr<Region>> create(const std::string& name, std::uint64_t bytes);

  // ENOENT; EPERM (not ours: another owner or mode); EPROTO (another format); EIO (damaged);
  // ESTALE (of an earlier boot, or never finished).
  static Result<std::unique_ptr<Region>> open(const std::string& name);

  // "1 (layout 1a2b3c4d)", of this program and of a table; of one that cannot be read "unknown".
  static std::string own_format();
  static std::string format_of(const std::string& name);

  // Takes the name away; those who have it mapped keep it. Missing is fine.
  static void remove(const std::string& name) noexcept;

  [[nodiscard]] Header& header() const { return *reinterpret_cast<Header*>(base()); }
  [[nodiscard]] Shard& shard(std::uint32_t i) const {
    return *reinterpret_cast<Shard*>(base() + kShardsAt + i * kShardStride);
  }
  [[nodiscard]] OpTable& operations() const { return *reinterpret_cast<OpTable*>(base() + kOpsAt); }
  [[nodiscard]] ChangeTable& changes() const {
    return *reinterpret_cast<ChangeTable*>(base() + kChangesAt);
  }
  [[nodiscard]] ClientTable& clients() const {
    return *reinterpret_cast<ClientTable*>(base() + kClientsAt);
  }
  [[nodiscard]] std::byte* base() const { return static_cast<std::byte*>(map_.get_address()); }
  [[nodiscard]] std::uint64_t bytes() const { return map_.get_size(); }

  [[nodiscard]] std::uint64_t secret() const { return identity_.secret; }
  // By number: as many as the region has chunks. Only those below chunk_limit() have memory.
  [[nodiscard]] ChunkRec* chunks() const { return reinterpret_cast<ChunkRec*>(base() + kChunksAt); }
  [[nodiscard]] Chunk chunk_limit() const {
    const std::uint64_t frontier = __atomic_load_n(&header().space.frontier, __ATOMIC_RELAXED);
    return static_cast<Chunk>(std::min(frontier, bytes()) / kChunkBytes);
  }

  // Commits a chunk's memory and that of its record, so that touching them cannot be SIGBUS.
  // ENOSPC: the region or the file system holding it is full. With grow_mu.
  Result<void> commit_chunk(Chunk chunk);
  // Its memory goes back to the system; read anew it is zeros. With grow_mu, when it is nobody's.
  void drop_chunk(Chunk chunk) noexcept;

  // Whether the header still says what it was made with, and the frontier can be true.
  [[nodiscard]] bool intact() const;
  // Says it again, and that nobody has any chunk, whose memory all goes back. With grow_mu and
  // every shard's mutex.
  void renew() noexcept;

  static std::string boot_id();

 private:
  Region(boost::interprocess::shared_memory_object object, boost::interprocess::mapped_region map)
      : object_{std::move(object)}, map_{std::move(map)} {}

  [[nodiscard]] int fd() const { return object_.get_mapping_handle().handle; }

  boost::interprocess::shared_memory_object object_;
  boost::interprocess::mapped_region map_;
  Identity identity_{};  // as it was when this was made or opened
};

}  // namespace latchfs::shm
