// A lock table in a vector: what the control tree's tests stand on instead of a store.
//
// Grants and waiters are what the test put there; listing pages through them in the order a store
// uses (file, part, begin, owner). Nothing blocks, nobody is granted anything.
#pragma once

#include <algorithm>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "latchfs/lock_service.h"

namespace latchfs::testing {

class FakeLocks final : public LockService {
 public:
  struct BreakCall {
    FileId file;
    OwnerId owner;
    ByteRange range;
    bool fence{};
  };

  // ---- what the test arranges

  void add(const Grant& grant) {
    const std::lock_guard lock{mu_};
    grants_.push_back(grant);
    std::sort(grants_.begin(), grants_.end(), before);
    touch_locked();
  }
  void add_all(const std::vector<Grant>& grants) {
    const std::lock_guard lock{mu_};
    grants_.insert(grants_.end(), grants.begin(), grants.end());
    std::sort(grants_.begin(), grants_.end(), before);
    touch_locked();
  }
  void add_waiter(const Waiter& waiter) {
    const std::lock_guard lock{mu_};
    waiters_.push_back(waiter);
    std::sort(waiters_.begin(), waiters_.end(),
              [](const Waiter& a, const Waiter& b) { return before(a.request, b.request); });
    touch_locked();
  }
  // The number to put into a grant's holder.
  std::uint32_t add_client(const RemoteClient& client) {
    const std::lock_guard lock{mu_};
    clients_.push_back(client);
    return static_cast<std::uint32_t>(clients_.size());
  }
  void remove(OwnerId owner) {
    const std::lock_guard lock{mu_};
    std::erase_if(grants_, [owner](const Grant& g) { return g.owner == owner; });
    touch_locked();
  }
  void clear() {
    const std::lock_guard lock{mu_};
    grants_.clear();
    waiters_.clear();
    touch_locked();
  }
  std::vector<Grant> grants() {
    const std::lock_guard lock{mu_};
    return grants_;
  }
  std::vector<BreakCall> breaks() {
    const std::lock_guard lock{mu_};
    return breaks_;
  }
  // The stamp of the last change; by default long enough ago that listings count as settled.
  void set_changed_at(std::int64_t ns) {
    const std::lock_guard lock{mu_};
    stats_.changed_at_ns = ns;
  }
  void set_stats(TableStats stats) {
    const std::lock_guard lock{mu_};
    stats_ = std::move(stats);
  }
  std::uint64_t list_calls() {
    const std::lock_guard lock{mu_};
    return list_calls_;
  }
  // Pages no longer than this, whatever is asked for.
  void cut_pages_to(std::uint32_t limit) { page_limit_ = limit; }
  // From the n-th call on (0: now), list and list_waiters fail.
  void fail_lists(int err, std::uint64_t after = 0) {
    list_error_ = err;
    fail_after_ = after;
  }
  // Called before each page is made, outside the lock.
  std::function<void()> on_list;
  // Called before break_range looks at the grants.
  std::function<void()> on_break;

  // ---- LockService

  std::uint64_t mount_id() const override { return 1; }
  Result<std::uint32_t> enter_client(const RemoteClient&) override { return errno_code(ENOSYS); }
  void leave_client(std::uint32_t) noexcept override {}
  std::optional<RemoteClient> client_of(const Grant& grant) const override {
    const std::lock_guard lock{mu_};
    const std::uint32_t number = grant.holder.client;
    if (number == 0 || number > clients_.size()) return std::nullopt;
    return clients_[number - 1];
  }
  Result<Acquired> acquire(const LockRequest&, OnConflict, WaiterToken) override {
    return errno_code(ENOSYS);
  }
  Result<void> release(FileId, OwnerId, ByteRange) override { return errno_code(ENOSYS); }
  Result<std::optional<Conflict>> test(const LockRequest&) override { return errno_code(ENOSYS); }
  Cancelled cancel(FileId, WaiterToken) override { return Cancelled::kAlreadyOver; }
  Result<void> drop_owner(FileId, OwnerId) override { return errno_code(ENOSYS); }
  Result<void> drop_if_through(FileId, OwnerId, std::uint64_t) override {
    return errno_code(ENOSYS);
  }
  void note_closing(FileId, OwnerId) noexcept override {}
  Result<OpStarted> begin_op(const OpRequest&, OnConflict, WaiterToken) override {
    return errno_code(ENOSYS);
  }
  void end_op(FileId, OwnerId) noexcept override {}

  Result<Broken> break_range(FileId file, OwnerId owner, ByteRange range, bool fence) override {
    if (on_break) on_break();
    const std::lock_guard lock{mu_};
    breaks_.push_back({file, owner, range, fence});
    Broken broken;
    std::vector<Grant> rest;
    for (const Grant& g : grants_) {
      if (g.file != file || g.owner != owner || !g.range.overlaps(range)) {
        rest.push_back(g);
        continue;
      }
      const auto begin = std::max(g.range.begin(), range.begin());
      const auto end = std::min(g.range.end(), range.end());
      Grant piece = g;
      piece.range = ByteRange::from_half_open(begin, end).value();
      piece.waiters = 0;
      ++broken.count;
      if (broken.grants.size() < kMaxBrokenListed) broken.grants.push_back(piece);
      if (g.range.begin() < begin) {
        rest.push_back(g);
        rest.back().range = ByteRange::from_half_open(g.range.begin(), begin).value();
      }
      if (end < g.range.end()) {
        rest.push_back(g);
        rest.back().range = ByteRange::from_half_open(end, g.range.end()).value();
      }
    }
    grants_ = std::move(rest);
    std::sort(grants_.begin(), grants_.end(), before);
    if (broken.count > 0) touch_locked();
    return broken;
  }

  Result<GrantPage> list(const ListQuery& query) override {
    if (on_list) on_list();
    const std::lock_guard lock{mu_};
    if (fails_locked()) return errno_code(list_error_);
    GrantPage page;
    page.next =
        page_of(grants_, query, page.grants, [](const Grant& g) -> const Grant& { return g; });
    return page;
  }
  Result<WaiterPage> list_waiters(const ListQuery& query) override {
    if (on_list) on_list();
    const std::lock_guard lock{mu_};
    if (fails_locked()) return errno_code(list_error_);
    WaiterPage page;
    page.next = page_of(waiters_, query, page.waiters,
                        [](const Waiter& w) -> const Grant& { return w.request; });
    return page;
  }
  Result<TableStats> stats() override {
    const std::lock_guard lock{mu_};
    TableStats out = stats_;
    out.grants = grants_.size();
    out.waiters = waiters_.size();
    return out;
  }
  Result<std::string> verify() override { return std::string{}; }

 private:
  static ListCursor place_of(const Grant& g) {
    ListCursor cursor;
    cursor.file = g.file;
    cursor.part = static_cast<std::uint8_t>(g.owner.space);
    cursor.begin = g.range.begin();
    cursor.tie = g.owner.key;
    cursor.at_start = false;
    return cursor;
  }
  static auto key(const ListCursor& c) { return std::tuple{c.file, c.part, c.begin, c.tie}; }
  static bool before(const Grant& a, const Grant& b) { return key(place_of(a)) < key(place_of(b)); }

  void touch_locked() { stats_.changed_at_ns += 1000; }
  bool fails_locked() {
    ++list_calls_;
    if (list_error_ == 0) return false;
    if (fail_after_ == 0) return true;
    --fail_after_;
    return false;
  }

  template <class Entry, class GrantOf>
  std::optional<ListCursor> page_of(const std::vector<Entry>& all, const ListQuery& query,
                                    std::vector<Entry>& out, GrantOf grant_of) {
    const std::size_t limit = std::min(query.limit, page_limit_);
    std::optional<ListCursor> last;
    auto entry = all.begin();
    if (!query.after.at_start) {
      entry = std::upper_bound(all.begin(), all.end(), key(query.after),
                               [&grant_of](const auto& place, const Entry& e) {
                                 return place < key(place_of(grant_of(e)));
                               });
    }
    for (; entry != all.end(); ++entry) {
      const Grant& grant = grant_of(*entry);
      if (query.file && grant.file != *query.file) continue;
      if (out.size() == limit) return last;
      out.push_back(*entry);
      last = place_of(grant);
    }
    return std::nullopt;
  }

  mutable std::mutex mu_;
  std::vector<RemoteClient> clients_;
  std::vector<Grant> grants_;
  std::vector<Waiter> waiters_;
  std::vector<BreakCall> breaks_;
  TableStats stats_ = [] {
    TableStats stats;
    stats.table = "fake";
    stats.format = 1;
    stats.changed_at_ns = realtime_ns() - 3'600'000'000'000;
    return stats;
  }();
  std::uint64_t list_calls_{};
  std::uint32_t page_limit_{UINT32_MAX};
  int list_error_{};
  std::uint64_t fail_after_{};
};

}  // namespace latchfs::testing
