// Internet addresses, of both kinds, as values.
#pragma once

#include <netinet/in.h>
#include <sys/socket.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace latchfs::nlm {

// An address and a port. IPv4 addresses in IPv6 clothes (::ffff:a.b.c.d) are IPv4 ones here.
class Endpoint {
 public:
  Endpoint() = default;
  // Nothing for other families.
  [[nodiscard]] static std::optional<Endpoint> from(const sockaddr* address, socklen_t size);
  // text: numeric; "fe80::1%eth0" too.
  [[nodiscard]] static std::optional<Endpoint> parse(const std::string& text, std::uint16_t port);

  [[nodiscard]] std::string address() const;  // numeric
  [[nodiscard]] std::uint16_t port() const;
  void set_port(std::uint16_t port);
  [[nodiscard]] int family() const { return storage_.ss_family; }
  [[nodiscard]] bool loopback() const;
  [[nodiscard]] bool any() const;
  [[nodiscard]] const sockaddr* data() const {
    return reinterpret_cast<const sockaddr*>(&storage_);
  }
  [[nodiscard]] socklen_t size() const;
  // The address in network order: 4 or 16 bytes.
  [[nodiscard]] std::string_view bytes() const;

 private:
  sockaddr_storage storage_{};
};

// "192.0.2.0/24", "2001:db8::/32", "192.0.2.7".
class Network {
 public:
  [[nodiscard]] static std::optional<Network> parse(const std::string& text);
  [[nodiscard]] bool contains(const Endpoint& endpoint) const;

 private:
  Endpoint base_;
  unsigned bits_{};
};

}  // namespace latchfs::nlm
