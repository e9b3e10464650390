// The clients: machines that hold locks here, or did a moment ago.
//
// A host is what it calls itself together with the address it calls from: who merely claims another
// one's name is another host, and can give nothing of his back. (So does lockd, which goes by the
// address alone.)
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "latchfs/lock_service.h"
#include "latchfs/result.h"
#include "nlm/monitor.h"
#include "nlm/outcalls.h"

namespace latchfs::nlm {

struct Host {
  Host(std::string its_name, std::string its_address, std::uint32_t its_client)
      : name{std::move(its_name)}, address{std::move(its_address)}, client{its_client} {}

  const std::string name;
  const std::string address;   // numeric
  const std::uint32_t client;  // Holder::client

  // Any thread. Another one whenever the client restarted: what it asked for before counts no more.
  std::atomic<std::uint64_t> epoch{0};
  // Files on which it holds locks (each owner counted), shares, and waits.
  std::atomic<std::uint32_t> interest{0};
  std::atomic<std::uint32_t> waiting{0};
  std::atomic<std::uint32_t> shares{0};
};
using HostPtr = std::shared_ptr<Host>;

// Any thread.
class Hosts {
 public:
  struct Options {
    std::size_t most{4096};
    std::int64_t idle_ns{300'000'000'000};  // lockd's NLM_HOST_EXPIRE
  };
  Hosts(Options options, LockService& locks, Monitor& monitor, Outcalls& outcalls);
  ~Hosts();
  Hosts(const Hosts&) = delete;
  Hosts& operator=(const Hosts&) = delete;

  // The host, which is now monitored if asked for. May wait for statd. ENOSPC: too many that hold
  // something; else what statd or the store answered.
  Result<HostPtr> enter(const std::string& name, const std::string& address,
                        const std::string& local, bool monitored) EXCLUDES(mu_);
  // Nothing if it is not known.
  [[nodiscard]] HostPtr find(const std::string& name, const std::string& address) EXCLUDES(mu_);
  [[nodiscard]] std::vector<HostPtr> at_address(const std::string& address) EXCLUDES(mu_);
  // Of all that hold something.
  [[nodiscard]] std::set<std::string> addresses_holding() EXCLUDES(mu_);

  // Forgets who has held nothing for a while.
  void expire() EXCLUDES(mu_);

  [[nodiscard]] std::size_t size() EXCLUDES(mu_);

 private:
  struct Known {
    HostPtr host;
    std::int64_t last_used{};  // monotonic ns
    bool watched{};
  };
  using Key = std::pair<std::string, std::string>;  // address, name

  // Whom nobody needs, last used before `before`; `most` of them, the oldest.
  std::vector<Known> take_idle_locked(std::int64_t before, std::size_t most) REQUIRES(mu_);
  void dispose(std::vector<Known> gone) EXCLUDES(mu_);
  Result<HostPtr> enter_unmonitored(const Key& key) EXCLUDES(mu_);

  const Options options_;
  LockService& locks_;
  Monitor& monitor_;
  Outcalls& outcalls_;
  Mutex mu_;  // leaf
  std::map<Key, Known> hosts_ GUARDED_BY(mu_);
};

}  // namespace latchfs::nlm
