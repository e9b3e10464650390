#include "control/renderings.h"

#include <fmt/core.h>

#include <algorithm>
#include <utility>

#include "base/clock.h"

namespace latchfs::control {
namespace {

// Equal for scopes that give the same text while nothing changes. A caller's supplementary groups
// decide what he may see, and they go with the process: so its number is part of it.
std::string key_of(const Scope& scope) {
  const Viewer& viewer = scope.viewer;
  std::string key = scope.kind == ListKind::kGrants ? "g" : "w";
  key += viewer.admin
             ? std::string{"a"}
             : fmt::format("{}.{}.{}", viewer.caller.uid, viewer.caller.gid, viewer.caller.pid);
  if (scope.file) key += fmt::format(" {}:{}", scope.file->dev, scope.file->ino);
  return key + " " + canonical(scope.query);
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
    return now - r.made_at > std::max(kLifeNs, std::min(r.took, kMaxStaleNs));
  });
  for (const Rendered& kept : kept_) {
    if (kept.key != key) continue;
    const std::int64_t age = now - kept.made_at;
    if (kept.text) {
      if (kept.settled && kept.stamp == stamp && age <= kLifeNs) return kept;
    } else if (!text_wanted) {
      if (kept.settled && kept.stamp == stamp && age <= kLifeNs) return kept;
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

Result<std::uint64_t> Renderings::size(const Scope& scope, std::int64_t changed_at_ns) {
  const std::string key = key_of(scope);
  if (const auto kept = find(key, changed_at_ns, false)) return kept->size;

  Rendered rendered;
  rendered.key = key;
  rendered.stamp = changed_at_ns;
  rendered.settled = realtime_ns() - changed_at_ns > kSettleNs;
  const std::int64_t begun = monotonic_ns();
  Listing listing{context_, scope};
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
  const std::string key = key_of(scope);
  if (const auto kept = find(key, changed_at_ns, true)) {
    return std::make_unique<ListingReader>(kept->text);
  }
  Rendered rendered;
  rendered.key = key;
  rendered.stamp = changed_at_ns;
  rendered.settled = realtime_ns() - changed_at_ns > kSettleNs;
  auto listing = std::make_unique<Listing>(context_, scope);
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
  keep(std::move(rendered));
  return reader;
}

std::unique_ptr<ListingReader> Renderings::open_lazily(const Scope& scope) const {
  return std::make_unique<ListingReader>(std::make_unique<Listing>(context_, scope), std::string{},
                                         Marks{});
}

}  // namespace latchfs::control
