#include "control/renderings.h"

#include <fmt/core.h>

#include <algorithm>
#include <utility>

#include "base/clock.h"
#include "control/filelock_listing.h"

namespace latchfs::control {
namespace {

// Equal for scopes that give the same text while nothing changes. A caller's supplementary groups
// decide what he may see, and they go with the process: so its number is part of it.
std::string key_of(const Scope& scope) {
  const Viewer& viewer = scope.viewer;
  constexpr std::string_view kKinds = "gwf";
  std::string key{kKinds[static_cast<std::size_t>(scope.kind)]};
  key += viewer.admin
             ? std::string{"a"}
             : fmt::format("{}.{}.{}", viewer.caller.uid, viewer.caller.gid, viewer.caller.pid);
  if (scope.file) key += fmt::format(" {}:{}", scope.file->dev, scope.file->ino);
  return key + " " + canonical(scope.query);
}

// Equal for all processes of a user: a guess may be somebody else's size.
std::string size_key_of(const Scope& scope) {
  return (scope.viewer.admin ? std::string{"a"} : std::to_string(scope.viewer.caller.uid)) + " " +
         canonical(scope.query);
}

using Marks = std::vector<ListingReader::Mark>;

// Renders until the end or until `text` is larger than kWhole. True: that was the end.
Result<bool> render(Listing& listing, std::string& text, Marks& marks) {
  std::uint64_t marked = 0;
  while (text.size() <= Renderings::kWhole) {
    const auto more = listing.more(text);
    if (!more) return more.error();
    if (!*more) return true;
    if (text.size() < marked + ListingReader::kMarkEvery) continue;
    marked = text.size();
    marks.push_back({marked, listing.position()});
  }
  return false;
}

}  // namespace

std::optional<Renderings::Rendered> Renderings::find(const std::string& key, std::int64_t stamp,
                                                     bool text_wanted) {
  const std::int64_t now = monotonic_ns();
  const MutexLock lock{mu_};
  kept_.remove_if([now](const Rendered& r) {
    return now - r.made_at > std::max(r.life, std::min(r.took, kMaxStaleNs));
  });
  for (const Rendered& kept : kept_) {
    if (kept.key != key) continue;
    const std::int64_t age = now - kept.made_at;
    if (kept.text) {
      if (kept.settled && kept.stamp == stamp && age <= kept.life) return kept;
    } else if (!text_wanted) {
      if (kept.settled && kept.stamp == stamp && age <= kept.life) return kept;
      if (age <= std::min(kept.took, kMaxStaleNs)) return kept;
    }
  }
  return std::nullopt;
}

void Renderings::keep(Rendered rendered) {
  const MutexLock lock{mu_};
  kept_.remove_if([&rendered](const Rendered& r) { return r.key == rendered.key; });
  kept_.push_front(std::move(rendered));
  std::size_t entries = 0;
  std::size_t bytes = 0;
  kept_.remove_if([&entries, &bytes](const Rendered& r) {
    bytes += r.text ? r.text->size() : 0;
    return ++entries > kMaxEntries || bytes > kMaxTextBytes;
  });
}

Renderings::Rendered Renderings::begin(const Scope& scope, std::int64_t stamp) const {
  Rendered rendered;
  rendered.key = key_of(scope);
  rendered.stamp = stamp;
  if (scope.kind == ListKind::kFilelocks) {
    // The number changes after what it counts: whoever missed a change has the old number.
    rendered.settled = true;
    rendered.life = kFilelockLifeNs;
  } else {
    rendered.settled = realtime_ns() - stamp > kSettleNs;
  }
  return rendered;
}

std::uint64_t Renderings::last_size(const std::string& key) {
  const MutexLock lock{mu_};
  for (const auto& [kept, size] : sizes_) {
    if (kept == key) return size;
  }
  return kUnknownSize;
}

void Renderings::note_size(const std::string& key, std::uint64_t size) {
  const MutexLock lock{mu_};
  sizes_.remove_if([&key](const auto& kept) { return kept.first == key; });
  sizes_.emplace_front(key, size);
  if (sizes_.size() > kMaxEntries) sizes_.pop_back();
}

Result<std::uint64_t> Renderings::quick_size(const Scope& scope, Rendered rendered) {
  FilelockListing listing{context_, scope};
  listing.stop_at(monotonic_ns() + kQuickNs);
  std::string text;
  const auto more = listing.more(text);
  if (!more) return more.error();
  if (listing.position().ended) {
    rendered.size = text.size();
    text.shrink_to_fit();
    rendered.text = std::make_shared<const std::string>(std::move(text));
    note_size(size_key_of(scope), rendered.size);
  } else {
    rendered.guessed = true;
    rendered.size = last_size(size_key_of(scope));
  }
  rendered.made_at = monotonic_ns();
  const std::uint64_t size = rendered.size;
  keep(std::move(rendered));
  return size;
}

Result<std::uint64_t> Renderings::size(const Scope& scope, std::int64_t changed_at_ns) {
  Rendered rendered = begin(scope, changed_at_ns);
  if (const auto kept = find(rendered.key, changed_at_ns, false)) {
    return kept->guessed ? last_size(size_key_of(scope)) : kept->size;
  }
  if (scope.kind == ListKind::kFilelocks) return quick_size(scope, std::move(rendered));

  const std::int64_t begun = monotonic_ns();
  LockListing listing{context_, scope};
  std::string text;
  Marks marks;
  const auto whole = render(listing, text, marks);
  if (!whole) return whole.error();
  rendered.size = text.size();
  if (*whole) {
    text.shrink_to_fit();
    rendered.text = std::make_shared<const std::string>(std::move(text));
  } else {
    bool going = true;
    while (going) {
      text.clear();
      const auto more = listing.more(text);
      if (!more) return more.error();
      rendered.size += text.size();
      going = *more;
    }
  }
  rendered.made_at = monotonic_ns();
  rendered.took = rendered.made_at - begun;
  const std::uint64_t size = rendered.size;
  keep(std::move(rendered));
  return size;
}

Result<std::unique_ptr<ListingReader>> Renderings::open(const Scope& scope,
                                                        std::int64_t changed_at_ns) {
  Rendered rendered = begin(scope, changed_at_ns);
  if (const auto kept = find(rendered.key, changed_at_ns, true)) {
    return std::make_unique<ListingReader>(kept->text);
  }
  auto listing = make_listing(context_, scope);
  std::string text;
  Marks marks;
  const auto whole = render(*listing, text, marks);
  if (!whole) return whole.error();
  if (!*whole) {
    return std::make_unique<ListingReader>(std::move(listing), std::move(text), std::move(marks));
  }
  rendered.size = text.size();
  text.shrink_to_fit();
  rendered.text = std::make_shared<const std::string>(std::move(text));
  rendered.made_at = monotonic_ns();
  auto reader = std::make_unique<ListingReader>(rendered.text);
  if (scope.kind == ListKind::kFilelocks) note_size(size_key_of(scope), rendered.size);
  keep(std::move(rendered));
  return reader;
}

std::unique_ptr<ListingReader> Renderings::open_lazily(const Scope& scope) const {
  return std::make_unique<ListingReader>(make_listing(context_, scope), std::string{}, Marks{});
}

}  // namespace latchfs::control
