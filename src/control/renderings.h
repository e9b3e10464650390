// Sizes and texts of listings, kept for a moment.
//
// A reader looks a node up, opens it, asks for its size and reads: four looks at one text, which
// must agree. So what one of them rendered the others use, as long as the table has not changed
// since (TableStats::changed_at_ns), for at most a second (renames and chmods change listings
// too, unseen), and only for the same caller.
//
// Filelocks are on disk: listing them all walks what holds them, and `filelock` is looked up for
// each `echo /a > filelock` and each `ls`. So a size is asked for with a bound (quick_size()): it
// is truthful whenever the listing was opened less than kFilelockLifeNs ago with no filelock
// applied or removed since, and whenever the keeper gives all filelocks in one page; else it is
// the last size known, or kUnknownSize. NFS clients read no file that is said to be empty; what
// they read says the size once more, which is known by then.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "base/mutex.h"
#include "control/listing.h"
#include "control/reader.h"

namespace latchfs::control {

class Renderings {
 public:
  // A listing up to this size is rendered whole when it is opened.
  static constexpr std::size_t kWhole = std::size_t{4} << 20;
  static constexpr std::size_t kMaxEntries = 64;
  static constexpr std::size_t kMaxTextBytes = std::size_t{16} << 20;
  static constexpr std::int64_t kLifeNs = 1'000'000'000;
  // A text begun so soon after a change may have missed it: the stamp has been seen before the
  // change itself. It is not kept.
  static constexpr std::int64_t kSettleNs = 10'000'000;
  // How long a size that took long to count is good for although the table changes: as long as
  // counting took, so that a busy table is not counted all the time, and at most this.
  static constexpr std::int64_t kMaxStaleNs = 2'000'000'000;

  static constexpr std::int64_t kFilelockLifeNs = 2'000'000'000;
  static constexpr std::int64_t kQuickNs = 200'000'000;
  static constexpr std::uint64_t kUnknownSize = 4096;

  explicit Renderings(const Context& context) : context_{context} {}

  // What a reader of the scope would get in bytes. `changed_at_ns`: the table's stamp now; of
  // filelocks Filelocks::changes().
  Result<std::uint64_t> size(const Scope& scope, std::int64_t changed_at_ns);
  Result<std::unique_ptr<ListingReader>> open(const Scope& scope, std::int64_t changed_at_ns);
  // The same without rendering anything yet: for when memory for texts is short.
  std::unique_ptr<ListingReader> open_lazily(const Scope& scope) const;

 private:
  struct Rendered {
    std::string key;
    std::int64_t stamp{};
    std::int64_t made_at{};  // monotonic
    std::int64_t took{};
    std::int64_t life{kLifeNs};
    bool settled{};
    bool guessed{};  // the size is what last_size() says now
    std::uint64_t size{};
    std::shared_ptr<const std::string> text;  // null if larger than kWhole
  };
  std::optional<Rendered> find(const std::string& key, std::int64_t stamp, bool text_wanted);
  void keep(Rendered rendered);
  Rendered begin(const Scope& scope, std::int64_t stamp) const;
  Result<std::uint64_t> quick_size(const Scope& scope, Rendered rendered);
  // Of filelocks: the last size that was true, for as long as nothing better is known.
  std::uint64_t last_size(const std::string& key);
  void note_size(const std::string& key, std::uint64_t size);

  const Context& context_;
  Mutex mu_;                                                                // held over no call out
  std::list<Rendered> kept_ GUARDED_BY(mu_);                                // the newest first
  std::list<std::pair<std::string, std::uint64_t>> sizes_ GUARDED_BY(mu_);  // the newest first
};

}  // namespace latchfs::control
