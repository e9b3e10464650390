// Answers of a moment ago, for requests that come again: a LOCK that the network kept back must not
// lock anew what was unlocked meanwhile, nor an UNLOCK take a later lock away.
#pragma once

#include <cstdint>
#include <list>
#include <optional>
#include <string>
#include <unordered_map>

#include "base/mutex.h"
#include "nlm/protocol.h"

namespace latchfs::nlm {

// Any thread. A request is known by a keyed hash of all its bytes (so also its xid) and its
// sender's address.
class Duplicates {
 public:
  // What was answered: to the call itself, and by a call of our own.
  struct Said {
    std::string reply;
    std::optional<Proc> procedure;
    std::string arguments;
  };
  enum class Seen : std::uint8_t { kNew, kUnderWay, kAnswered };

  // most: answers that are kept, age_ns: how long. Requests under way are as many as the callers'
  // threads: one that does not end takes no place from the others.
  Duplicates(std::size_t most, std::int64_t age_ns) : most_{most}, age_ns_{age_ns} {}

  // kNew: the caller says answered() or dropped() when it is done. kAnswered: `said` is filled in.
  Seen ask(std::uint64_t request, Said& said) EXCLUDES(mu_);
  void answered(std::uint64_t request, Said said) noexcept EXCLUDES(mu_);
  void dropped(std::uint64_t request) noexcept EXCLUDES(mu_);

 private:
  struct Entry {
    std::uint64_t request{};
    std::int64_t at{};  // monotonic ns: when it was answered
    bool done{};
    Said said;
  };
  const std::size_t most_;
  const std::int64_t age_ns_;
  Mutex mu_;  // leaf
  std::list<Entry> under_way_ GUARDED_BY(mu_);
  std::list<Entry> done_ GUARDED_BY(mu_);  // oldest answer first
  // Into either.
  std::unordered_map<std::uint64_t, std::list<Entry>::iterator> by_request_ GUARDED_BY(mu_);
};

}  // namespace latchfs::nlm
