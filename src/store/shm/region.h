// The mapped table: creation, check of its identity, growth. No locking rules here.
#pragma once

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
  [[nodiscard]] std::byte* base() const { return static_cast<std::byte*>(map_.get_address()); }
  [[nodiscard]] std::uint64_t bytes() const { return map_.get_size(); }

  // Commits the memory of the chunk at the frontier, so that touching it cannot be SIGBUS; its
  // offset. It is the caller's when he has moved the frontier; he holds grow_mu.
  // ENOSPC: the region or the file system holding it is full.
  Result<std::uint64_t> commit_chunk();

  static std::string boot_id();

 private:
  Region(boost::interprocess::shared_memory_object object, boost::interprocess::mapped_region map)
      : object_{std::move(object)}, map_{std::move(map)} {}

  [[nodiscard]] int fd() const { return object_.get_mapping_handle().handle; }

  boost::interprocess::shared_memory_object object_;
  boost::interprocess::mapped_region map_;
};

}  // namespace latchfs::shm
