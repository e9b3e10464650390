#include "nlm/nfs_handle.h"

#include <fmt/core.h>

#include <charconv>
#include <cstring>

namespace latchfs::nlm {
namespace {

constexpr unsigned char kVersion = 1;
constexpr unsigned char kNoAuthentication = 0;
constexpr unsigned char kFsidNumber = 1;
constexpr unsigned char kFsidUuid = 6;
constexpr unsigned char kRoot = 0;
constexpr unsigned char kNode = 0x81;
constexpr unsigned char kNodeAndParent = 0x82;
constexpr std::size_t kHeader = 4;
constexpr std::size_t kFileBytes = 12;  // three words
constexpr std::size_t kMostBytes = 64;  // NFS3_FHSIZE

std::optional<unsigned> digit(char c) {
  if (c >= '0' && c <= '9') return static_cast<unsigned>(c - '0');
  if (c >= 'a' && c <= 'f') return static_cast<unsigned>(c - 'a' + 10);
  if (c >= 'A' && c <= 'F') return static_cast<unsigned>(c - 'A' + 10);
  return std::nullopt;
}

}  // namespace

std::optional<Fsid> Fsid::parse(std::string_view text) {
  Fsid out;
  std::uint32_t number = 0;
  const auto [end, err] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (err == std::errc{} && end == text.data() + text.size()) {
    std::memcpy(out.bytes.data(), &number, sizeof number);  // as nfsd: in the machine's own order
    return out;
  }
  out.uuid = true;
  std::size_t digits = 0;
  for (const char c : text) {
    if (c == '-' || c == ':') continue;
    const auto value = digit(c);
    if (!value || digits == 2 * out.bytes.size()) return std::nullopt;
    unsigned char& byte = out.bytes[digits / 2];
    byte = static_cast<unsigned char>(byte << 4 | *value);
    ++digits;
  }
  if (digits != 2 * out.bytes.size()) return std::nullopt;
  return out;
}

std::string to_string(const Fsid& fsid) {
  if (!fsid.uuid) {
    std::uint32_t number = 0;
    std::memcpy(&number, fsid.bytes.data(), sizeof number);
    return fmt::format("{}", number);
  }
  std::string out;
  for (const unsigned char byte : fsid.bytes) out += fmt::format("{:02x}", byte);
  return out;
}

Result<NfsHandle> parse_handle(std::string_view bytes) {
  const auto at = [&](std::size_t i) { return static_cast<unsigned char>(bytes[i]); };
  if (bytes.size() < kHeader || bytes.size() > kMostBytes || at(0) != kVersion ||
      at(1) != kNoAuthentication) {
    return errno_code(EINVAL);
  }
  NfsHandle out;
  out.fsid.uuid = at(2) == kFsidUuid;
  if (at(2) != kFsidNumber && at(2) != kFsidUuid) return errno_code(EINVAL);
  const std::size_t fsid_bytes = out.fsid.uuid ? 16 : 4;
  std::string_view rest = bytes.substr(kHeader);
  if (rest.size() < fsid_bytes) return errno_code(EINVAL);
  std::memcpy(out.fsid.bytes.data(), rest.data(), fsid_bytes);
  rest.remove_prefix(fsid_bytes);

  switch (at(3)) {
    case kRoot:
      if (!rest.empty()) return errno_code(EINVAL);
      out.root = true;
      return out;
    case kNode:
      if (rest.size() != kFileBytes) return errno_code(EINVAL);
      break;
    case kNodeAndParent:
      if (rest.size() != 2 * kFileBytes) return errno_code(EINVAL);
      break;
    default:
      return errno_code(EINVAL);
  }
  std::array<std::uint32_t, 3> words{};
  std::memcpy(words.data(), rest.data(), kFileBytes);
  out.node = std::uint64_t{words[0]} << 32 | words[1];
  out.generation = words[2];
  return out;
}

std::string handle_bytes(const NfsHandle& handle) {
  std::string out{static_cast<char>(kVersion), static_cast<char>(kNoAuthentication),
                  static_cast<char>(handle.fsid.uuid ? kFsidUuid : kFsidNumber),
                  static_cast<char>(handle.root ? kRoot : kNode)};
  out.append(reinterpret_cast<const char*>(handle.fsid.bytes.data()), handle.fsid.uuid ? 16 : 4);
  if (handle.root) return out;
  const std::array<std::uint32_t, 3> words{static_cast<std::uint32_t>(handle.node >> 32),
                                           static_cast<std::uint32_t>(handle.node),
                                           handle.generation};
  out.append(reinterpret_cast<const char*>(words.data()), kFileBytes);
  return out;
}

}  // namespace latchfs::nlm
