#include "nlm/siphash.h"

#include <sys/random.h>

#include <bit>
#include <cerrno>
#include <system_error>

namespace latchfs::nlm {
namespace {

struct State {
  std::uint64_t v0, v1, v2, v3;

  void rounds(int count) noexcept {
    for (; count > 0; --count) {
      v0 += v1;
      v2 += v3;
      v1 = std::rotl(v1, 13) ^ v0;
      v3 = std::rotl(v3, 16) ^ v2;
      v0 = std::rotl(v0, 32);
      v2 += v1;
      v0 += v3;
      v1 = std::rotl(v1, 17) ^ v2;
      v3 = std::rotl(v3, 21) ^ v0;
      v2 = std::rotl(v2, 32);
    }
  }
  void take(std::uint64_t word) noexcept {
    v3 ^= word;
    rounds(2);
    v0 ^= word;
  }
};

std::uint64_t little_endian(std::string_view bytes) noexcept {
  std::uint64_t word = 0;
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    word |= static_cast<std::uint64_t>(static_cast<unsigned char>(bytes[i])) << (8 * i);
  }
  return word;
}

}  // namespace

HashKey random_key() {
  HashKey key{};
  // Up to 256 bytes come whole (getrandom(2)).
  if (::getrandom(key.data(), sizeof key, 0) != sizeof key) {
    throw std::system_error{errno, std::generic_category(), "getrandom"};
  }
  return key;
}

std::uint64_t siphash(const HashKey& key, std::string_view bytes) noexcept {
  State s{key[0] ^ 0x736f6d6570736575, key[1] ^ 0x646f72616e646f6d, key[0] ^ 0x6c7967656e657261,
          key[1] ^ 0x7465646279746573};
  const std::uint64_t size = bytes.size();
  while (bytes.size() >= 8) {
    s.take(little_endian(bytes.substr(0, 8)));
    bytes.remove_prefix(8);
  }
  s.take(little_endian(bytes) | size << 56);
  s.v2 ^= 0xff;
  s.rounds(4);
  return s.v0 ^ s.v1 ^ s.v2 ^ s.v3;
}

}  // namespace latchfs::nlm
