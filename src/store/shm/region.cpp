#include "store/shm/region.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
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
    if (const auto r = commit_memory(fd, 0, kCellsAt); !r) {
      remove(name);
      return r.error();
    }
    bip::mapped_region map{object, bip::read_write, 0, bytes};
    std::unique_ptr<Region> region{new Region{std::move(object), std::move(map)}};
    // Fresh tmpfs pages are zero: what needs no other value is already there.
    auto& h = *new (region->base()) Header;
    h.magic = kMagic;
    h.format = kTableFormat;
    h.layout_hash = kLayoutHash;
    h.region_bytes = bytes;
    const std::string boot = boot_id();
    std::memcpy(h.boot_id.data(), boot.data(), std::min(boot.size(), h.boot_id.size() - 1));
    h.created_at = realtime_ns();
    h.checksum = header_checksum(h);
    h.changed_at.store(h.created_at);
    // Owner ids must not come back in a later table: they carry the mount's number.
    h.next_mount_id.store(static_cast<std::uint64_t>(h.created_at / 1'000'000'000) << 20);
    h.frontier.store(kCellsAt);
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
    // Before anything whose place in the header another format may have changed.
    if (h.magic == kMagic && h.format != kTableFormat) return errno_code(EPROTO);
    if (h.ready.load(std::memory_order_acquire) != kMagic) return errno_code(ESTALE);
    if (h.magic != kMagic || h.checksum != header_checksum(h)) return errno_code(EIO);
    if (h.layout_hash != kLayoutHash) return errno_code(EPROTO);
    if (h.region_bytes != bytes || bytes < kMinRegion) return errno_code(EIO);
    if (boot_id() != h.boot_id.data()) return errno_code(ESTALE);
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
    const auto& h = *static_cast<const Header*>(map.get_address());
    if (h.magic == kMagic) return format_text(h.format, h.layout_hash);
  } catch (const bip::interprocess_exception&) {
    // Gone, or not ours to read.
  }
  return "unknown";
}

void Region::remove(const std::string& name) noexcept {
  bip::shared_memory_object::remove(name.c_str());
}

Result<std::uint64_t> Region::commit_chunk() {
  const std::uint64_t offset = header().frontier.load();
  if (offset + kChunkBytes > bytes()) return errno_code(ENOSPC);
  if (const auto r = commit_memory(fd(), offset, kChunkBytes); !r) return r.error();
  return offset;
}

}  // namespace latchfs::shm
