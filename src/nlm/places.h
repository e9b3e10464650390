// Where a request can be held up by something that is not its client: statd, the daemon of a mount.
// A place that nobody comes out of any more takes so many threads and not all.
#pragma once

#include <cstdint>
#include <list>
#include <map>
#include <string>

#include "base/mutex.h"

namespace latchfs::nlm {

// Any thread.
class Places {
 public:
  struct Options {
    unsigned of_one{4};                       // threads in one place
    unsigned of_all{12};                      // and in all together
    std::int64_t patience_ns{2'000'000'000};  // who is in for longer is held up
  };
  explicit Places(Options options) : options_{options} {}

  // As long as it lives the thread is in the place.
  class Stay {
   public:
    Stay(Stay&& other) noexcept : places_{other.places_}, place_{other.place_}, at_{other.at_} {
      other.places_ = nullptr;
    }
    Stay& operator=(Stay&&) = delete;
    ~Stay();
    // False: whoever is in there is held up, and no more may go in. The request is to be dropped:
    // its client asks again.
    explicit operator bool() const { return places_ != nullptr; }

   private:
    friend class Places;
    using All = std::map<std::string, std::list<std::int64_t>>;
    Stay() = default;
    Places* places_{};
    All::iterator place_;
    std::list<std::int64_t>::iterator at_;
  };

  // Waits for a turn as long as those inside come out. A thread may be in one place only.
  [[nodiscard]] Stay enter(const std::string& place) EXCLUDES(mu_);

 private:
  [[nodiscard]] std::int64_t oldest_locked() const REQUIRES(mu_);

  const Options options_;
  Mutex mu_;  // leaf
  CondVar left_;
  // Since when (monotonic ns), oldest first. A place where nobody is or waits is not in it.
  Stay::All in_ GUARDED_BY(mu_);
  unsigned all_ GUARDED_BY(mu_){0};
};

}  // namespace latchfs::nlm
