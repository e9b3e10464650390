#include "control/query_nodes.h"

#include <algorithm>
#include <iterator>
#include <string_view>
#include <utility>

namespace latchfs::control {
namespace {

// FNV-1a. The same in every process and version, unlike std::hash.
std::uint64_t hash(std::string_view text) {
  std::uint64_t value = 0xcbf29ce484222325U;
  for (const char ch : text) {
    value ^= static_cast<unsigned char>(ch);
    value *= 0x100000001b3U;
  }
  return value;
}

std::string_view name_of(ListKind kind) {
  switch (kind) {
    case ListKind::kGrants:
      return "list?";
    case ListKind::kWaiters:
      return "waiters?";
    case ListKind::kFilelocks:
      break;
  }
  return "filelock?";
}

}  // namespace

bool QueryNodes::make_room() {
  if (entries_.size() < kMaxNodes) return true;
  const auto victim = std::find_if(entries_.rbegin(), entries_.rend(),
                                   [](const Entry& entry) { return entry.opens == 0; });
  if (victim == entries_.rend()) return false;
  by_number_.erase(victim->number);
  entries_.erase(std::next(victim).base());
  return true;
}

Result<std::uint64_t> QueryNodes::look_up(ListKind kind, const Query& query) {
  std::string name = std::string{name_of(kind)} + canonical(query);
  std::uint64_t number = (hash(name) & (kQueryBit - 1)) | kQueryBit;
  const MutexLock lock{mu_};
  while (true) {
    const auto found = by_number_.find(number);
    if (found == by_number_.end()) break;
    const auto entry = found->second;
    if (entry->name == name) {
      ++entry->references;
      entries_.splice(entries_.begin(), entries_, entry);
      return number;
    }
    number = ((number + 1) & (kQueryBit - 1)) | kQueryBit;
  }
  if (!make_room()) return errno_code(ENFILE);
  entries_.push_front({number, std::move(name), {kind, query}, 1, 0});
  by_number_.emplace(number, entries_.begin());
  return number;
}

void QueryNodes::forget(std::uint64_t number, std::uint64_t count) noexcept {
  const MutexLock lock{mu_};
  const auto found = by_number_.find(number);
  if (found == by_number_.end()) return;
  const auto entry = found->second;
  // A node that gave way and came back may be forgotten more often than it was referenced.
  entry->references -= std::min(count, entry->references);
  if (entry->references == 0) entries_.splice(entries_.end(), entries_, entry);
}

std::optional<QueryNodes::Node> QueryNodes::find(std::uint64_t number) {
  const MutexLock lock{mu_};
  const auto found = by_number_.find(number);
  if (found == by_number_.end()) return std::nullopt;
  return found->second->node;
}

void QueryNodes::opened(std::uint64_t number) {
  const MutexLock lock{mu_};
  const auto found = by_number_.find(number);
  if (found != by_number_.end()) ++found->second->opens;
}

void QueryNodes::closed(std::uint64_t number) noexcept {
  const MutexLock lock{mu_};
  const auto found = by_number_.find(number);
  if (found != by_number_.end() && found->second->opens > 0) --found->second->opens;
}

std::size_t QueryNodes::size() {
  const MutexLock lock{mu_};
  return entries_.size();
}

}  // namespace latchfs::control
