// Text and range conversions of include/latchfs/types.h and lock_service.h.
#include "latchfs/types.h"

#include <fmt/core.h>

#include <charconv>
#include <optional>

#include "latchfs/lock_service.h"

namespace latchfs {
namespace {

// Exactly `text`, lower-case hex, no sign, no prefix.
std::optional<std::uint64_t> parse_hex(std::string_view text) {
  std::uint64_t value = 0;
  for (const char ch : text) {
    if (!((ch >= '0' && ch <= '9') || (ch >= 'a' && ch <= 'f'))) return std::nullopt;
  }
  const auto [end, ec] = std::from_chars(text.data(), text.data() + text.size(), value, 16);
  if (ec != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  return value;
}

}  // namespace

std::string to_string(const OwnerId& owner) {
  return fmt::format("{:016x}-{:x}-{:016x}", owner.mount, static_cast<unsigned>(owner.space),
                     owner.key);
}

Result<OwnerId> parse_owner_id(std::string_view text) {
  if (text.size() != 35 || text[16] != '-' || text[18] != '-') return errno_code(EINVAL);
  const auto mount = parse_hex(text.substr(0, 16));
  const auto space = parse_hex(text.substr(17, 1));
  const auto key = parse_hex(text.substr(19));
  if (!mount || !space || !key || *space > static_cast<std::uint64_t>(OwnerSpace::kOp)) {
    return errno_code(EINVAL);
  }
  return OwnerId{*mount, *key, static_cast<OwnerSpace>(*space)};
}

Result<ByteRange> ByteRange::from_half_open(std::uint64_t begin, std::uint64_t end) {
  if (begin >= end || end > kEof) return errno_code(EINVAL);
  return ByteRange{begin, end};
}

Result<ByteRange> ByteRange::from_inclusive(std::uint64_t first, std::uint64_t last) {
  if (first >= kEof || last < first) return errno_code(EINVAL);
  return ByteRange{first, last >= kEof - 1 ? kEof : last + 1};
}

Result<ByteRange> ByteRange::from_offset_size(std::uint64_t offset, std::uint64_t size) {
  if (offset >= kEof || size > kEof - offset) return errno_code(EINVAL);
  return ByteRange{offset, size == 0 ? kEof : offset + size};
}

std::string to_string(const ListCursor& cursor) {
  if (cursor.at_start) return cursor.shard == 0 ? "" : fmt::format("s{:x}", cursor.shard);
  return fmt::format("{:x}.{:x}.{:x}.{:x}.{:x}.{:x}", cursor.shard, cursor.file.dev,
                     cursor.file.ino, cursor.part, cursor.begin, cursor.tie);
}

Result<ListCursor> parse_list_cursor(std::string_view text) {
  ListCursor cursor;
  if (text.empty()) return cursor;
  if (text.front() == 's') {
    const auto shard = text.size() > 9 ? std::nullopt : parse_hex(text.substr(1));
    if (!shard || *shard == 0) return errno_code(EINVAL);
    cursor.shard = static_cast<std::uint32_t>(*shard);
    return cursor;
  }
  std::uint64_t fields[6]{};
  for (std::size_t i = 0; i < 6; ++i) {
    const auto stop = i == 5 ? text.size() : text.find('.');
    if (stop == std::string_view::npos || stop == 0 || stop > 16) return errno_code(EINVAL);
    const auto value = parse_hex(text.substr(0, stop));
    if (!value) return errno_code(EINVAL);
    fields[i] = *value;
    text.remove_prefix(std::min(text.size(), stop + 1));
  }
  if (fields[0] > UINT32_MAX || fields[3] > UINT8_MAX) return errno_code(EINVAL);
  cursor.shard = static_cast<std::uint32_t>(fields[0]);
  cursor.file = FileId{fields[1], fields[2]};
  cursor.part = static_cast<std::uint8_t>(fields[3]);
  cursor.begin = fields[4];
  cursor.tie = fields[5];
  cursor.at_start = false;
  return cursor;
}

}  // namespace latchfs
