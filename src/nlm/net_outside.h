// Calls over the network, each on a socket of its own.
#pragma once

#include <cstdint>
#include <map>
#include <tuple>

#include "base/mutex.h"
#include "nlm/address.h"
#include "nlm/outside.h"

namespace latchfs::nlm {

// Any thread.
class NetOutside final : public Outside {
 public:
  // rpcbind's port; another one than 111 for tests.
  explicit NetOutside(std::uint16_t rpcbind_port = 111) : rpcbind_port_{rpcbind_port} {}

  Result<std::string> exchange(const Where& where, std::uint32_t program, std::uint32_t version,
                               std::uint32_t procedure, std::string_view arguments,
                               std::chrono::milliseconds patience, unsigned& unanswered) override
      EXCLUDES(mu_);
  Result<void> tell(const Where& where, std::uint32_t program, std::uint32_t version,
                    std::uint32_t procedure, std::string_view arguments,
                    std::chrono::milliseconds patience) override EXCLUDES(mu_);

  // The program's port there, by rpcbind: never 0. ENOENT if it has none.
  Result<std::uint16_t> port_of(const Where& where, std::uint32_t program, std::uint32_t version,
                                std::chrono::milliseconds patience);

 private:
  using Key = std::tuple<std::string, std::uint32_t, std::uint32_t, bool>;
  struct Port {
    std::uint16_t number{};
    std::int64_t at{};  // monotonic ns
  };
  std::optional<std::uint16_t> remembered(const Key& key) EXCLUDES(mu_);
  void remember(const Key& key, std::uint16_t port) EXCLUDES(mu_);
  void forget(const Key& key) EXCLUDES(mu_);

  const std::uint16_t rpcbind_port_;
  Mutex mu_;  // leaf
  std::map<Key, Port> ports_ GUARDED_BY(mu_);
};

// One call at a known port, and its answer. local: "" any. Errors as Outside::call(). unanswered:
// as Outside::exchange(), added to what it was.
[[nodiscard]] Result<std::string> call_at(const Endpoint& endpoint, const std::string& local,
                                          bool tcp, std::uint32_t program, std::uint32_t version,
                                          std::uint32_t procedure, std::string_view arguments,
                                          std::chrono::milliseconds patience, unsigned& unanswered);

}  // namespace latchfs::nlm
