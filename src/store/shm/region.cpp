#include "store/shm/region.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <new>

#include "base/clock.h"
#include "base/fault_point.h"
#include "base/log.h"

namespace latchfs::shm {
namespace {

namespace bip = boost::interprocess;

std::error_code from_boost(const bip::interprocess_exception& e) {
  const int native = e.get_native_error();
  return errno_code(native != 0 ? native : EIO);
}

// Commits [offset, offset + bytes): a full file system is ENOSPC here and not SIGBUS later.
Result<void> commit_memory(int fd, std::uint64_t offset, std::uint64_t bytes) {
  int rc = 0;
  do {
    rc = ::posix_fallocate(fd, static_cast<off_t>(offset), static_cast<off_t>(bytes));
  } while (rc == EINTR);
  if (rc != 0) return errno_code(rc);
  return {};
}

std::string format_text(std::uint32_t format, std::uint32_t layout) {
  return fmt::format("{} (layout {:08x})", format, layout);
}

}  // namespace

std::string Region::boot_id() {
  std::ifstream in{"/proc/sys/kernel/random/boot_id"};
  std::string id;
  std::getline(in, id);
  return id;
}

Result<std::unique_ptr<Region>> Region::create(const std::string& name, std::uint64_t bytes) {
  bytes = round_up(bytes, kPage);
  if (bytes < kMinRegion || bytes > kMaxRegion) return errno_code(EINVAL);
  try {
    bip::permissions only_us;
    only_us.set_permissions(0600);
    bip::shared_memory_object object{bip::create_only, name.c_str(), bip::read_write, only_us};
    const int fd = object.get_mapping_handle().handle;
    // Not object.truncate(): Boost commits the whole size, ours is sparse.
    if (::ftruncate(fd, static_cast<off_t>(bytes)) != 0) {
      const auto ec = last_errno();
      remove(name);
      return ec;
    }
    if (const auto r = commit_memory(fd, 0, kChunksAt); !r) {
      remove(name);
      return r.error();
    }
    bip::mapped_region map{object, bip::read_write, 0, bytes};
    std::unique_ptr<Region> region{new Region{std::move(object), std::move(map)}};
    // Fresh tmpfs pages are zero: what needs no other value is already there.
    auto& h = *new (region->base()) Header;
    Identity& id = region->identity_;
    id.magic = kMagic;
    id.format = kTableFormat;
    id.layout_hash = kLayoutHash;
    id.region_bytes = bytes;
    const std::string boot = boot_id();
    std::memcpy(id.boot_id.data(), boot.data(), std::min(boot.size(), id.boot_id.size() - 1));
    id.created_at = realtime_ns();
    if (::getrandom(&id.secret, sizeof id.secret, 0) != sizeof id.secret) {
      remove(name);
      return errno_code(EIO);
    }
    id.checksum = checksum_of(id);
    h.identity = id;
    h.changed_at.store(id.created_at);
    // Owner ids must not come back in a later table: they carry the mount's number.
    h.next_mount_id.store(static_cast<std::uint64_t>(id.created_at / 1'000'000'000) << 20);
    h.space.frontier = cells_at(bytes);
    int err = h.grow_mu.init();
    for (std::uint32_t i = 0; i < kShardCount && err == 0; ++i) err = region->shard(i).mu.init();
    if (err != 0) {
      remove(name);
      return errno_code(err);
    }
    fault_point("shm.create");
    h.ready.store(kMagic, std::memory_order_release);
    return region;
  } catch (const bip::interprocess_exception& e) {
    return from_boost(e);
  }
}

Result<std::unique_ptr<Region>> Region::open(const std::string& name) {
  try {
    bip::shared_memory_object object{bip::open_only, name.c_str(), bip::read_write};
    struct stat st {};
    if (::fstat(object.get_mapping_handle().handle, &st) != 0) return last_errno();
    if (st.st_uid != ::geteuid() || (st.st_mode & 0777) != 0600) return errno_code(EPERM);
    const auto bytes = static_cast<std::uint64_t>(st.st_size);
    if (bytes < sizeof(Header)) return errno_code(ESTALE);
    bip::mapped_region map{object, bip::read_write, 0, bytes};
    std::unique_ptr<Region> region{new Region{std::move(object), std::move(map)}};
    const Header& h = region->header();
    const Identity id = h.identity;  // what is checked is what is kept
    // Before anything whose place in the header another format may have changed.
    if (id.magic == kMagic && id.format != kTableFormat) return errno_code(EPROTO);
    if (h.ready.load(std::memory_order_acquire) != kMagic) return errno_code(ESTALE);
    if (id.magic != kMagic || id.checksum != checksum_of(id)) return errno_code(EIO);
    if (id.layout_hash != kLayoutHash) return errno_code(EPROTO);
    if (id.region_bytes != bytes || bytes < kMinRegion) return errno_code(EIO);
    if (boot_id() != id.boot_id.data()) return errno_code(ESTALE);
    region->identity_ = id;
    return region;
  } catch (const bip::interprocess_exception& e) {
    return from_boost(e);
  }
}

std::string Region::own_format() { return format_text(kTableFormat, kLayoutHash); }

std::string Region::format_of(const std::string& name) {
  try {
    const bip::shared_memory_object object{bip::open_only, name.c_str(), bip::read_only};
    const bip::mapped_region map{object, bip::read_only, 0, sizeof(Header)};
    const Identity& id = static_cast<const Header*>(map.get_address())->identity;
    if (id.magic == kMagic) return format_text(id.format, id.layout_hash);
  } catch (const bip::interprocess_exception&) {
    // Gone, or not ours to read.
  }
  return "unknown";
}

void Region::remove(const std::string& name) noexcept {
  bip::shared_memory_object::remove(name.c_str());
}

Result<void> Region::commit_chunk(Chunk chunk) {
  const std::uint64_t offset = std::uint64_t{chunk} * kChunkBytes;
  if (offset + kChunkBytes > bytes()) return errno_code(ENOSPC);
  const std::uint64_t record = kChunksAt + std::uint64_t{chunk} * sizeof(ChunkRec);
  if (const auto r = commit_memory(fd(), record, sizeof(ChunkRec)); !r) return r;
  return commit_memory(fd(), offset, kChunkBytes);
}

// Refused: then it stays ours, to be used again.
void Region::drop_chunk(Chunk chunk) noexcept {
  (void)::fallocate(fd(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                    static_cast<off_t>(chunk) * static_cast<off_t>(kChunkBytes),
                    static_cast<off_t>(kChunkBytes));
}

bool Region::intact() const {
  const Header& h = header();
  const std::uint64_t frontier = __atomic_load_n(&h.space.frontier, __ATOMIC_RELAXED);
  return std::memcmp(&h.identity, &identity_, sizeof identity_) == 0 &&
         h.ready.load(std::memory_order_acquire) == kMagic && frontier % kChunkBytes == 0 &&
         frontier >= cells_at(bytes()) && frontier <= bytes();
}

void Region::renew() noexcept {
  Header& h = header();
  h.ready.store(0);  // who opens it meanwhile, or after a death in here, finds it unfinished
  h.identity = identity_;
  h.space = {};
  __atomic_store_n(&h.space.frontier, cells_at(bytes()), __ATOMIC_RELAXED);
  (void)::fallocate(fd(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(kChunksAt),
                    static_cast<off_t>(bytes() - kChunksAt));
  h.ready.store(kMagic, std::memory_order_release);
}

}  // namespace latchfs::shm
