#include "control/listing.h"

#include <algorithm>
#include <utility>

#include "control/filelock_listing.h"
#include "control/grant_text.h"

namespace latchfs::control {
namespace {

// What the store promises to hand out under one hold of a shard's mutex.
constexpr std::uint32_t kPage = 256;

}  // namespace

Listing::Position Listing::start() const {
  Position position;
  position.after = scope_.query.after;
  position.after_path = scope_.query.after_path;
  position.left = scope_.query.limit;
  return position;
}

void Listing::close(std::string& out, std::string_view next) {
  at_.ended = true;
  if (at_.any) out += '\n';
  out += "], \"paging\": {\"next\": \"";
  out += next;
  out += "\"}}\n";
}

std::unique_ptr<Listing> make_listing(const Context& context, Scope scope) {
  if (scope.kind == ListKind::kFilelocks) {
    return std::make_unique<FilelockListing>(context, std::move(scope));
  }
  return std::make_unique<LockListing>(context, std::move(scope));
}

Result<LockListing::Page> LockListing::fetch(std::uint32_t limit) {
  const ListQuery query{scope_.file, at_.after, limit};
  Page page;
  if (scope_.kind == ListKind::kWaiters) {
    auto got = context_.locks().list_waiters(query);
    if (!got) return got.error();
    page.entries = std::move(got->waiters);
    page.next = got->next;
    return page;
  }
  auto got = context_.locks().list(query);
  if (!got) return got.error();
  page.entries.reserve(got->grants.size());
  for (const Grant& grant : got->grants) page.entries.push_back({grant, std::nullopt});
  page.next = got->next;
  return page;
}

bool LockListing::shown(const Waiter& entry) {
  const Query& query = scope_.query;
  const Grant& grant = entry.request;
  // What costs nothing comes first: locating a file takes system calls.
  if (query.owner_id && *query.owner_id != grant.owner) return false;
  // Another machine's numbers count only when it is asked for.
  const bool names_machine = query.owner_name || query.owner_address;
  if (query.pid &&
      (*query.pid != grant.holder.pid || (grant.holder.client != 0 && !names_machine))) {
    return false;
  }
  if (query.uid && *query.uid != grant.holder.uid) return false;
  if (query.mode && *query.mode != api_mode(grant.kind, grant.mode)) return false;
  if (query.owner_name || query.owner_address) {
    const auto machines = context_.machines_of(grant);
    const bool asked_for =
        std::any_of(machines.begin(), machines.end(), [&query](const RemoteClient& machine) {
          return query.owner_name.value_or(machine.name) == machine.name &&
                 query.owner_address.value_or(machine.address) == machine.address;
        });
    if (!asked_for) return false;
  }
  const FileFacts::Facts& facts = facts_.of(grant);
  if (facts.outside) return false;
  if (query.snapshot && *query.snapshot != facts.snapshot) return false;
  return facts_.visible(grant);
}

Result<std::optional<ListCursor>> LockListing::append_page(std::string& out) {
  const std::size_t mark = out.size();
  const Position before = at_;
  std::uint32_t ask = kPage;
  while (true) {
    const auto page = fetch(ask);
    if (!page) return page.error();
    std::uint32_t seen = 0;  // entries up to and with the last that the limit allows
    bool cut = false;
    for (std::size_t i = 0; i < page->entries.size() && !cut; ++i) {
      if (!shown(page->entries[i])) continue;
      cut = at_.left == 0U;
      if (cut) break;
      append(out, page->entries[i]);
      if (at_.left) --*at_.left;
      seen = static_cast<std::uint32_t>(i + 1);
    }
    // Only the store makes cursors, and only for the end of a page: ask for one that ends where
    // the limit does. The answer may differ, as the table may have changed; then it counts. Each
    // turn asks for less, so this ends.
    ask = std::min(ask - 1, seen);
    if (!cut || ask == 0) return page->next;
    out.resize(mark);
    at_ = before;
  }
}

void LockListing::append(std::string& out, const Waiter& entry) {
  out += at_.any ? ",\n" : "";
  at_.any = true;
  const FileFacts::Facts& facts = facts_.of(entry.request);
  if (scope_.kind == ListKind::kGrants) {
    append_grant(out, context_, entry.request, facts);
    return;
  }
  const bool visible = entry.blocker && facts_.visible(*entry.blocker);
  append_waiter(out, context_, entry, facts, visible);
}

Result<bool> LockListing::more(std::string& out) {
  if (at_.ended) return false;
  if (!at_.opened) {
    out += scope_.kind == ListKind::kGrants ? "{\"grants\": [\n" : "{\"waiters\": [\n";
    at_.opened = true;
  }
  const auto next = append_page(out);
  if (!next) return next.error();
  if (*next) at_.after = **next;
  if (!*next || at_.left == 0U) close(out, *next ? to_string(**next) : std::string{});
  return true;
}

}  // namespace latchfs::control
