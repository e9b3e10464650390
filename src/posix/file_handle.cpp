#include "posix/file_handle.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <sched.h>

#include <cerrno>
#include <charconv>
#include <cstring>

namespace latchfs::posix {
namespace {

// struct file_handle ends in a flexible array; this gives it room.
struct alignas(struct file_handle) HandleBuffer {
  unsigned char raw[sizeof(struct file_handle) + MAX_HANDLE_SZ]{};
  struct file_handle* get() noexcept {
    return reinterpret_cast<struct file_handle*>(raw);
  }
  unsigned char* bytes() noexcept { return raw + sizeof(struct file_handle); }
};

}  // namespace

Result<FileHandle> FileHandle::of(int fd) noexcept {
  HandleBuffer buffer;
  buffer.get()->handle_bytes = kMostBytes;
  int mount_id = 0;
  if (::name_to_handle_at(fd, "", buffer.get(), &mount_id, AT_EMPTY_PATH) != 0) {
    return last_errno();
  }
  FileHandle handle;
  handle.type_ = buffer.get()->handle_type;
  handle.size_ = static_cast<std::uint8_t>(buffer.get()->handle_bytes);
  std::memcpy(handle.bytes_.data(), buffer.bytes(), handle.size_);
  return handle;
}

Result<FileHandle> FileHandle::make(std::int32_t type, const void* bytes,
                                    std::size_t size) noexcept {
  if (size > kMostBytes) return errno_code(EOVERFLOW);
  FileHandle handle;
  handle.type_ = type;
  handle.size_ = static_cast<std::uint8_t>(size);
  std::memcpy(handle.bytes_.data(), bytes, size);
  return handle;
}

Result<UniqueFd> FileHandle::open(int mount, int tries) const noexcept {
  if (empty()) return errno_code(ESTALE);
  HandleBuffer buffer;
  buffer.get()->handle_type = type_;
  buffer.get()->handle_bytes = size_;
  std::memcpy(buffer.bytes(), bytes_.data(), size_);
  // ENOMEM is also what the kernel says of an inode number that is just becoming another file's
  // (fs/inode.c iget_locked() of an inode that is I_CREATING): in a moment that is ESTALE.
  for (;;) {
    const int fd = ::open_by_handle_at(mount, buffer.get(), O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (fd >= 0) return UniqueFd{fd};
    if (errno != ENOMEM || --tries <= 0) return last_errno();
    ::sched_yield();
  }
}

std::string FileHandle::text() const {
  if (empty()) return {};
  std::string text = fmt::format("{:08x}", static_cast<std::uint32_t>(type_));
  for (std::size_t i = 0; i < size_; ++i) text += fmt::format("{:02x}", bytes_[i]);
  return text;
}

std::optional<FileHandle> FileHandle::parse(std::string_view text) noexcept {
  constexpr std::size_t kType = 8;
  FileHandle handle;
  if (text.empty()) return handle;
  if (text.size() <= kType || text.size() % 2 != 0 || text.size() > kType + 2 * kMostBytes) {
    return std::nullopt;
  }
  if (text.find_first_not_of("0123456789abcdef") != std::string_view::npos) return std::nullopt;
  std::uint32_t type = 0;
  std::from_chars(text.data(), text.data() + kType, type, 16);
  handle.type_ = static_cast<std::int32_t>(type);
  for (std::size_t at = kType; at < text.size(); at += 2) {
    std::from_chars(text.data() + at, text.data() + at + 2, handle.bytes_[handle.size_++], 16);
  }
  return handle;
}

std::uint32_t FileHandle::generation() const noexcept {
  struct Layout {
    std::int32_t type;
    std::size_t size, generation_at;
  };
  constexpr std::array<Layout, 3> kKnown{{
      {0x01, 8, 4},    // FILEID_INO32_GEN: inode number, generation
      {0x81, 12, 8},   // xfs_fid64: inode number of 64 bits, generation
      {0x4d, 20, 16},  // btrfs_fid: object, subvolume, generation
  }};
  for (const Layout& layout : kKnown) {
    if (type_ != layout.type || size_ != layout.size) continue;
    std::uint32_t generation = 0;
    std::memcpy(&generation, bytes_.data() + layout.generation_at, sizeof generation);
    if (generation != 0) return generation;
  }
  return hash();
}

std::uint32_t FileHandle::hash() const noexcept {
  const std::uint32_t mixed = hash32(bytes_.data(), size_) + static_cast<std::uint32_t>(type_);
  return mixed != 0 ? mixed : 1;
}

std::uint64_t hash64(const void* bytes, std::size_t size) noexcept {
  std::uint64_t h = 0xcbf29ce484222325ULL;
  const auto* at = static_cast<const unsigned char*>(bytes);
  for (std::size_t i = 0; i < size; ++i) h = (h ^ at[i]) * 0x100000001b3ULL;
  return h;
}

// Folded.
std::uint32_t hash32(const void* bytes, std::size_t size) noexcept {
  const std::uint64_t h = hash64(bytes, size);
  const auto folded = static_cast<std::uint32_t>(h ^ (h >> 32));
  return folded != 0 ? folded : 1;
}

}  // namespace latchfs::posix
