// The machines one mount holds locks for, counted by use: on top of the table all mounts read.
#pragma once

#include <cstdint>
#include <map>
#include <unordered_map>

#include "base/mutex.h"
#include "latchfs/result.h"
#include "latchfs/types.h"
#include "store/client_table.h"

namespace latchfs {

// Thread-safe.
class ClientNames {
 public:
  explicit ClientNames(ClientTable& table) : table_{table} {}

  // As LockService::enter_client() and leave_client().
  Result<std::uint32_t> enter(std::uint64_t mount, const RemoteClient& client);
  void leave(std::uint32_t number) noexcept;

  [[nodiscard]] const ClientTable& table() const noexcept { return table_; }

 private:
  struct Use {
    std::uint32_t number{};
    std::uint64_t count{};
  };
  using Uses = std::map<RemoteClient, Use>;

  ClientTable& table_;
  Mutex mu_;  // leaf
  Uses uses_ GUARDED_BY(mu_);
  std::unordered_map<std::uint32_t, Uses::iterator> by_number_ GUARDED_BY(mu_);
};

}  // namespace latchfs
