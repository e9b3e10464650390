#include "nlm/hosts.h"

#include <algorithm>

#include "base/clock.h"
#include "base/log.h"

namespace latchfs::nlm {

Hosts::Hosts(Options options, LockService& locks, Monitor& monitor, Outcalls& outcalls)
    : options_{options}, locks_{locks}, monitor_{monitor}, outcalls_{outcalls} {}

Hosts::~Hosts() {
  // Who holds locks keeps its name until the locks go, with the lock service.
  std::map<Key, Known> all;
  {
    const MutexLock hold{mu_};
    all.swap(hosts_);
  }
  for (const auto& [key, known] : all) {
    if (known.host->interest == 0) locks_.leave_client(known.host->client);
  }
}

std::pair<Hosts::Places::iterator, Hosts::Places::iterator> Hosts::of_locked(
    const std::string& address) {
  const auto first = hosts_.lower_bound({address, ""});
  auto last = first;
  while (last != hosts_.end() && last->first.first == address) ++last;
  return {first, last};
}

std::vector<Hosts::Known> Hosts::take_idle_locked(std::int64_t before, std::size_t most,
                                                  const std::string* address) {
  std::vector<std::pair<std::int64_t, Key>> idle;
  const auto all =
      address != nullptr ? of_locked(*address) : std::pair{hosts_.begin(), hosts_.end()};
  for (auto it = all.first; it != all.second; ++it) {
    const auto& [key, known] = *it;
    // Nobody gets another reference but here: who is alone with it stays so.
    if (known.last_used < before && known.host->interest == 0 && known.host.use_count() == 1) {
      idle.emplace_back(known.last_used, key);
    }
  }
  std::sort(idle.begin(), idle.end());
  if (idle.size() > most) idle.resize(most);
  std::vector<Known> out;
  out.reserve(idle.size());
  for (const auto& [when, key] : idle) {
    const auto it = hosts_.find(key);
    out.push_back(std::move(it->second));
    hosts_.erase(it);
  }
  return out;
}

void Hosts::dispose(std::vector<Known> gone) {
  for (Known& known : gone) {
    locks_.leave_client(known.host->client);
    if (!known.watched) continue;
    // statd takes its time, and nobody waits for this.
    const auto unwatch = [this, address = known.host->address]() noexcept {
      monitor_.unwatch(address);
    };
    if (!outcalls_.at(0, "statd", unwatch)) unwatch();
  }
}

Result<HostPtr> Hosts::enter_unmonitored(const Key& key) {
  std::vector<Known> gone;
  {
    const MutexLock hold{mu_};
    const auto it = hosts_.find(key);
    if (it != hosts_.end()) {
      it->second.last_used = monotonic_ns();
      return it->second.host;
    }
    const auto own = of_locked(key.first);
    const auto of_address = static_cast<std::size_t>(std::distance(own.first, own.second));
    // Several at once, so that looking for them is rare.
    if (of_address >= options_.most_of_address) {
      gone = take_idle_locked(monotonic_ns(), options_.most_of_address / 8 + 1, &key.first);
      if (gone.empty()) return errno_code(ENOSPC);
    } else if (hosts_.size() >= options_.most) {
      gone = take_idle_locked(monotonic_ns(), options_.most / 8 + 1, nullptr);
      if (gone.empty()) return errno_code(ENOSPC);
    }
  }
  dispose(std::move(gone));
  const auto client = locks_.enter_client({key.second, key.first});
  if (!client) return client.error();
  HostPtr host;
  bool twice = true;
  {
    const MutexLock hold{mu_};
    auto it = hosts_.find(key);
    if (it == hosts_.end()) {
      twice = false;
      const auto own = of_locked(key.first);
      auto tally =
          own.first != own.second ? own.first->second.host->tally : std::make_shared<Tally>();
      host = std::make_shared<Host>(key.second, key.first, *client, std::move(tally));
      it = hosts_.emplace(key, Known{std::move(host), 0, false}).first;
    }
    it->second.last_used = monotonic_ns();
    host = it->second.host;
  }
  if (twice) locks_.leave_client(*client);  // somebody was faster
  return host;
}

Result<HostPtr> Hosts::enter(const std::string& name, const std::string& address,
                             const std::string& local, bool monitored) {
  const Key key{address, name};
  auto host = enter_unmonitored(key);
  if (!host || !monitored) return host;
  {
    const MutexLock hold{mu_};
    const auto it = hosts_.find(key);
    if (it != hosts_.end() && it->second.watched) return host;
  }
  if (auto watched = monitor_.watch(address, local); !watched) return watched.error();
  bool twice = true;
  {
    // We have a reference: it was not taken out meanwhile.
    const MutexLock hold{mu_};
    const auto it = hosts_.find(key);
    if (it != hosts_.end()) twice = std::exchange(it->second.watched, true);
  }
  if (twice) monitor_.unwatch(address);
  return host;
}

HostPtr Hosts::find(const std::string& name, const std::string& address) {
  const MutexLock hold{mu_};
  const auto it = hosts_.find({address, name});
  return it == hosts_.end() ? nullptr : it->second.host;
}

std::vector<HostPtr> Hosts::at_address(const std::string& address) {
  const MutexLock hold{mu_};
  std::vector<HostPtr> out;
  const auto all = of_locked(address);
  for (auto it = all.first; it != all.second; ++it) out.push_back(it->second.host);
  return out;
}

std::set<std::string> Hosts::addresses_holding() {
  const MutexLock hold{mu_};
  std::set<std::string> out;
  for (const auto& [key, known] : hosts_) {
    if (known.host->interest != 0) out.insert(key.first);
  }
  return out;
}

void Hosts::expire() {
  std::vector<Known> gone;
  {
    const MutexLock hold{mu_};
    gone = take_idle_locked(monotonic_ns() - options_.idle_ns, hosts_.size(), nullptr);
  }
  dispose(std::move(gone));
}

std::size_t Hosts::size() {
  const MutexLock hold{mu_};
  return hosts_.size();
}

}  // namespace latchfs::nlm
