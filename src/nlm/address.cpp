#include "nlm/address.h"

#include <arpa/inet.h>
#include <netdb.h>

#include <array>
#include <charconv>
#include <cstring>
#include <memory>

namespace latchfs::nlm {

std::optional<Endpoint> Endpoint::from(const sockaddr* address, socklen_t size) {
  Endpoint out;
  if (address->sa_family == AF_INET && size >= sizeof(sockaddr_in)) {
    std::memcpy(&out.storage_, address, sizeof(sockaddr_in));
    return out;
  }
  if (address->sa_family != AF_INET6 || size < sizeof(sockaddr_in6)) return std::nullopt;
  sockaddr_in6 six{};
  std::memcpy(&six, address, sizeof six);
  if (!IN6_IS_ADDR_V4MAPPED(&six.sin6_addr)) {
    std::memcpy(&out.storage_, &six, sizeof six);
    return out;
  }
  sockaddr_in four{};
  four.sin_family = AF_INET;
  four.sin_port = six.sin6_port;
  std::memcpy(&four.sin_addr, &six.sin6_addr.s6_addr[12], sizeof four.sin_addr);
  std::memcpy(&out.storage_, &four, sizeof four);
  return out;
}

std::optional<Endpoint> Endpoint::parse(const std::string& text, std::uint16_t port) {
  addrinfo hints{};
  hints.ai_flags = AI_NUMERICHOST;
  hints.ai_socktype = SOCK_DGRAM;
  addrinfo* found = nullptr;
  if (text.empty() || ::getaddrinfo(text.c_str(), nullptr, &hints, &found) != 0) {
    return std::nullopt;
  }
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> owner{found, &::freeaddrinfo};
  auto out = from(found->ai_addr, found->ai_addrlen);
  if (out) out->set_port(port);
  return out;
}

std::string Endpoint::address() const {
  std::array<char, NI_MAXHOST> text{};
  if (size() == 0 ||
      ::getnameinfo(data(), size(), text.data(), text.size(), nullptr, 0, NI_NUMERICHOST) != 0) {
    return {};
  }
  return text.data();
}

std::uint16_t Endpoint::port() const {
  // The same place in both structures.
  return ntohs(reinterpret_cast<const sockaddr_in*>(&storage_)->sin_port);
}

void Endpoint::set_port(std::uint16_t port) {
  static_assert(offsetof(sockaddr_in, sin_port) == offsetof(sockaddr_in6, sin6_port));
  reinterpret_cast<sockaddr_in*>(&storage_)->sin_port = htons(port);
}

std::string_view Endpoint::bytes() const {
  if (family() == AF_INET) {
    return {
        reinterpret_cast<const char*>(&reinterpret_cast<const sockaddr_in*>(&storage_)->sin_addr),
        sizeof(in_addr)};
  }
  if (family() == AF_INET6) {
    return {
        reinterpret_cast<const char*>(&reinterpret_cast<const sockaddr_in6*>(&storage_)->sin6_addr),
        sizeof(in6_addr)};
  }
  return {};
}

bool Endpoint::loopback() const {
  const std::string_view raw = bytes();
  if (family() == AF_INET) return static_cast<unsigned char>(raw[0]) == 127;
  return family() == AF_INET6 && std::memcmp(raw.data(), &in6addr_loopback, raw.size()) == 0;
}

bool Endpoint::any() const { return bytes().find_first_not_of('\0') == std::string_view::npos; }

socklen_t Endpoint::size() const {
  if (family() == AF_INET) return sizeof(sockaddr_in);
  return family() == AF_INET6 ? sizeof(sockaddr_in6) : 0;
}

std::optional<Network> Network::parse(const std::string& text) {
  const std::size_t slash = text.find('/');
  const auto base = Endpoint::parse(text.substr(0, slash), 0);
  if (!base) return std::nullopt;
  Network out;
  out.base_ = *base;
  const auto most = static_cast<unsigned>(base->bytes().size() * 8);
  out.bits_ = most;
  if (slash == std::string::npos) return out;
  const char* const end = text.data() + text.size();
  const auto [stop, err] = std::from_chars(text.data() + slash + 1, end, out.bits_);
  if (err != std::errc{} || stop != end || out.bits_ > most) return std::nullopt;
  return out;
}

bool Network::contains(const Endpoint& endpoint) const {
  if (endpoint.family() != base_.family()) return false;
  const std::string_view a = base_.bytes();
  const std::string_view b = endpoint.bytes();
  for (unsigned bit = 0; bit < bits_; bit += 8) {
    const unsigned left = bits_ - bit;
    const unsigned mask = left >= 8 ? 0xff : 0xff & (0xff00 >> left);
    const auto x = static_cast<unsigned char>(a[bit / 8]);
    const auto y = static_cast<unsigned char>(b[bit / 8]);
    if (((x ^ y) & mask) != 0) return false;
  }
  return true;
}

}  // namespace latchfs::nlm
