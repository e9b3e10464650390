#include "store/client_names.h"

namespace latchfs {

Result<std::uint32_t> ClientNames::enter(std::uint64_t mount, const RemoteClient& client) {
  if (client.address.empty()) return errno_code(EINVAL);
  const MutexLock hold{mu_};
  const auto [it, fresh] = uses_.try_emplace(client);
  if (fresh) {
    const auto number = table_.add(mount, client);
    if (!number) {
      uses_.erase(it);
      return number.error();
    }
    it->second.number = *number;
    by_number_.emplace(*number, it);
  }
  ++it->second.count;
  return it->second.number;
}

void ClientNames::leave(std::uint32_t number) noexcept {
  const MutexLock hold{mu_};
  const auto found = by_number_.find(number);
  if (found == by_number_.end()) return;
  const auto use = found->second;
  if (--use->second.count != 0) return;
  table_.remove(number);
  by_number_.erase(found);
  uses_.erase(use);
}

}  // namespace latchfs
