// The clients: machines that hold locks here, or did a moment ago.
//
// A host is what it calls itself together with the address it calls from: who merely claims another
// one's name is another host, and can give nothing of his back. (So does lockd, which goes by the
// address alone.) Names cost nothing, so what an address may have it has for all of them together.
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
#include "base/seldom.h"
#include "latchfs/lock_service.h"
#include "latchfs/result.h"
#include "nlm/monitor.h"
#include "nlm/outcalls.h"

namespace latchfs::nlm {

// What all hosts of one address have together: names are free, so limits go by this. Any thread.
struct Tally {
  std::atomic<std::uint32_t> waiting{0};
  std::atomic<std::uint32_t> shares{0};
  std::atomic<std::uint32_t> held{0};    // files, each as often as it has owners
  std::atomic<std::uint64_t> grants{0};  // in the lock table
  // A line of the log that they can cause as often as they like; what cannot be seen elsewhere.
  Seldom said{kSaidNs};
  Seldom warned{kSaidNs};
  static constexpr std::int64_t kSaidNs = 10'000'000'000;
};

struct Host {
  Host(std::string its_name, std::string its_address, std::uint32_t its_client,
       std::shared_ptr<Tally> its_tally)
      : name{std::move(its_name)},
        address{std::move(its_address)},
        client{its_client},
        tally{std::move(its_tally)} {}

  const std::string name;
  const std::string address;           // numeric
  const std::uint32_t client;          // Holder::client
  const std::shared_ptr<Tally> tally;  // of its address

  // Any thread. Another one whenever the client restarted: what it asked for before counts no more,
  // unless it was in the life that is told of: its number (LockDesk::client_restarted()), or 0.
  std::atomic<std::uint64_t> epoch{0};
  std::atomic<std::int32_t> life{0};
  // The life in which it asked for something first since the last such word; 0: none is known. A
  // word of just that one says that it has begun anew, with a number that it had before.
  std::atomic<std::int32_t> first_life{0};
  // Files on which it holds locks (each owner counted), shares, and waits.
  std::atomic<std::uint32_t> interest{0};
};
using HostPtr = std::shared_ptr<Host>;

// Any thread.
class Hosts {
 public:
  struct Options {
    std::size_t most{4096};
    std::size_t most_of_address{64};        // so that one machine cannot be all of them
    std::int64_t idle_ns{300'000'000'000};  // lockd's NLM_HOST_EXPIRE
  };
  Hosts(Options options, LockService& locks, Monitor& monitor, Outcalls& outcalls);
  ~Hosts();
  Hosts(const Hosts&) = delete;
  Hosts& operator=(const Hosts&) = delete;

  // The host, which is now monitored if asked for. May wait for statd. ENOSPC: too many that hold
  // something, of all or of this address; else what statd or the store answered.
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

  using Places = std::map<Key, Known>;

  // Whom nobody needs, last used before `before`; `most` of them, the oldest. address: of this one
  // only, unless it is nullptr.
  std::vector<Known> take_idle_locked(std::int64_t before, std::size_t most,
                                      const std::string* address) REQUIRES(mu_);
  // Those of an address, from the first to behind the last.
  std::pair<Places::iterator, Places::iterator> of_locked(const std::string& address) REQUIRES(mu_);
  void dispose(std::vector<Known> gone) EXCLUDES(mu_);
  Result<HostPtr> enter_unmonitored(const Key& key) EXCLUDES(mu_);

  const Options options_;
  LockService& locks_;
  Monitor& monitor_;
  Outcalls& outcalls_;
  Mutex mu_;  // leaf
  Places hosts_ GUARDED_BY(mu_);
};

}  // namespace latchfs::nlm
