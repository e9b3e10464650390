// LockService composed from shards of LockTable: what is the same for every store.
//
// Backend:
//   using Arena;
//   std::uint32_t shard_count() const;  std::uint32_t shard_of(FileId) const;
//   std::uint64_t mount_id() const;
//   std::error_code locked(shard, Effects&, fn(LockTable<Arena>&))
//     one atomic step under the shard's mutex; memory is got and the call repeated as needed, so
//     fn must be repeatable; ENOLCK when there is none.
//   std::error_code all_locked(shard, Effects&, fn(LockTable<Arena>& target, tables))
//     the same with every shard's mutex held, in ascending order; only the target may be changed.
//     tables(i) is shard i's table, to read.
//   void outside(const Effects&)  rings doorbells, counts per user, stamps the change.
//   std::string check_store(shard, most)  inside a step: "" or what is wrong with its memory;
//   empty(shard, why, losses) gives up what it holds, unless losses(shard) is another number now.
//   bool begin_outside(OpRequest)  true: nothing is on the file, the operation is in flight outside
//   of the table. bool end_outside(op)  true: it was there still; else it is (or was) in the table.
//   void forget_operations(mount)  of a dead mount, before its table entries.
//   optional<uint64> list_changes(file, at, room, out)  what is in flight behind place `at`.
//   bool user_may_take(uid)  the per-user limit; note_user_full(uid) logs that it was met.
//   GrantSink& sink();
//
// Lock order: docs/lock-order.md. Nothing here calls out while a mutex is held.
#pragma once

#include <algorithm>
#include <map>
#include <span>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/fault_point.h"
#include "base/log.h"
#include "latchfs/lock_service.h"
#include "lock/table.h"
#include "lock/wait_search.h"

namespace latchfs {

template <class Backend>
class TableService : public LockService {
 public:
  [[nodiscard]] std::uint64_t mount_id() const override { return backend_.mount_id(); }

  Result<Acquired> acquire(const LockRequest& req, OnConflict on, WaiterToken token) override {
    if (!backend_.user_may_take(req.holder.uid)) return user_full(req.holder.uid);
    lock::Effects fx;
    Acquired answer = Granted{};
    bool look_for_deadlock = false;
    std::error_code ec = backend_.locked(shard(req.file), fx, [&](auto& table) {
      answer = Granted{};
      look_for_deadlock = false;
      const auto attempt = table.attempt(req, fx.now, fx.mono);
      if (attempt.blocker == 0) return;
      if (on == OnConflict::kQueue && req.kind == LockKind::kPosix) {
        look_for_deadlock = true;  // needs all shards: below
      } else if (on == OnConflict::kQueue || (on == OnConflict::kSettle && attempt.transient)) {
        table.enqueue(req, attempt.blocker, on == OnConflict::kSettle, token, fx.now);
        answer = Queued{};
      } else {
        answer = Conflict{table.to_grant(attempt.blocker), attempt.transient};
      }
    });
    if (!ec && look_for_deadlock) {
      deliver(fx);
      fx = {};
      ec = queue_posix(req, token, fx, answer);
    }
    deliver(fx);
    if (ec) return ec;
    return answer;
  }

  Result<void> release(FileId file, OwnerId owner, ByteRange range) override {
    std::optional<std::uint32_t> full;
    const auto r = step(file, [&](auto& table) {
      full = table.splits(file, owner, range);
      if (full && backend_.user_may_take(*full)) full.reset();
      if (!full) table.release(file, owner, range);
    });
    if (full) return user_full(*full);
    return r;
  }

  Result<std::optional<Conflict>> test(const LockRequest& req) override {
    std::optional<Conflict> answer;
    lock::Effects fx;
    const auto ec = backend_.locked(shard(req.file), fx, [&](auto& table) {
      answer.reset();
      const auto attempt = table.test(req, fx.mono);
      if (attempt.blocker != 0) {
        answer = Conflict{table.to_grant(attempt.blocker), attempt.transient || attempt.closing};
      }
    });
    deliver(fx);
    if (ec) return ec;
    return answer;
  }

  Cancelled cancel(FileId file, WaiterToken token) override {
    bool done = false;
    const auto r = step(file, [&](auto& table) { done = table.cancel(file, mount_id(), token); });
    return r && done ? Cancelled::kCancelled : Cancelled::kAlreadyOver;
  }

  Result<void> drop_owner(FileId file, OwnerId owner) override {
    return step(file, [&](auto& table) { table.drop_owner(file, owner, false); });
  }

  Result<void> drop_if_through(FileId file, OwnerId owner, std::uint64_t fh) override {
    return step(file, [&](auto& table) { table.drop_if_through(file, owner, fh); });
  }

  void note_closing(FileId file, OwnerId owner) noexcept override {
    lock::Effects fx;
    // (If it fails: only a hint; the release will come.)
    (void)backend_.locked(shard(file), fx,
                          [&](auto& table) { table.note_closing(file, owner, fx.mono); });
    deliver(fx);
  }

  Result<Broken> break_range(FileId file, OwnerId owner, ByteRange range, bool fence) override {
    Broken broken;
    const auto r =
        step(file, [&](auto& table) { broken = table.break_range(file, owner, range, fence); });
    if (!r) return r.error();
    return broken;
  }

  Result<OpStarted> begin_op(const OpRequest& req, OnConflict on, WaiterToken token) override {
    if (backend_.begin_outside(req)) return OpStarted{Granted{}};
    OpStarted answer = Granted{};
    using Outcome = typename lock::LockTable<typename Backend::Arena>::OpOutcome;
    const auto r = step(req.file, [&](auto& table) {
      const auto [outcome, attempt] = table.attempt_op(req, realtime_ns(), monotonic_ns());
      answer = Granted{};
      if (outcome == Outcome::kFenced) {
        answer = Fenced{};
      } else if (outcome == Outcome::kBlocked && on == OnConflict::kRefuse) {
        answer = Conflict{table.to_grant(attempt.blocker), attempt.transient};
      } else if (outcome == Outcome::kBlocked) {
        table.enqueue_op(req, attempt.blocker, token, realtime_ns());
        answer = Queued{};
      }
    });
    if (!r) return r.error();
    return answer;
  }

  void end_op(FileId file, OwnerId op) noexcept override {
    if (backend_.end_outside(op)) return;
    if (!drop_owner(file, op)) {
      log::error("an operation on {}:{} could not be taken out of the table", file.dev, file.ino);
    }
  }

  Result<GrantPage> list(const ListQuery& query) override {
    GrantPage page;
    const auto r = walk(query, page.next, [&](auto& table, ListCursor& at) {
      table.bring_in_operations(query.file);
      return table.list(query.file, at, room(query, page.grants.size()), page.grants);
    });
    if (!r) return r.error();
    if (!page.next) list_changes(query, page);
    return page;
  }

  Result<WaiterPage> list_waiters(const ListQuery& query) override {
    WaiterPage page;
    const auto r = walk(query, page.next, [&](auto& table, ListCursor& at) {
      return table.list_waiters(query.file, at, room(query, page.waiters.size()), page.waiters);
    });
    if (!r) return r.error();
    return page;
  }

  Result<std::string> verify() override {
    Verification all;
    while (!all.over) {
      if (const auto ec = verify_step(all, ~std::uint64_t{0})) return ec;
    }
    return all.found;
  }

 protected:
  template <class... Args>
  explicit TableService(Args&&... args) : backend_{std::forward<Args>(args)...} {}

  // How far a verify has come.
  struct Verification {
    std::uint32_t shard{};
    FileId at{};
    bool at_start{true};
    std::string found;  // the first that was wrong
    bool over{};
  };

  // One hold of one shard: its memory and one file, but for one with more than `most` records. What
  // is wrong is emptied. When it is over, `status` has the result.
  std::error_code verify_step(Verification& v, std::uint64_t most) {
    std::string wrong;
    bool more = false;
    std::uint32_t losses = 0;
    lock::Effects fx;
    const auto ec = backend_.locked(v.shard, fx, [&](auto& table) {
      losses = backend_.losses(v.shard);
      wrong = v.at_start ? backend_.check_store(v.shard, most) : std::string{};
      more = wrong.empty() && table.verify(v.at, v.at_start, wrong, most);
    });
    deliver(fx);
    if (ec) return ec;
    if (fx.lost) wrong = fmt::format("shard {} was damaged and is empty now", v.shard);
    if (!wrong.empty()) {
      log::error("table verify: {}", wrong);
      if (!fx.lost) backend_.empty(v.shard, wrong, losses);
      if (v.found.empty()) v.found = wrong;
    }
    if (more && wrong.empty()) return {};
    v.at = {};
    v.at_start = true;
    v.over = ++v.shard == backend_.shard_count();
    if (v.over) backend_.note_verified(v.found.empty() ? "ok" : v.found);
    return {};
  }

  // Everything a dead mount left. False (logged): some of it is still there.
  bool reap_mount(std::uint64_t mount) {
    bool all = true;
    backend_.forget_operations(mount);
    for (std::uint32_t i = 0; i < backend_.shard_count(); ++i) {
      FileId at{};
      bool at_start = true;
      for (bool more = true; more;) {
        lock::Effects fx;
        const auto ec =
            backend_.locked(i, fx, [&](auto& table) { more = table.reap(mount, at, at_start); });
        deliver(fx);
        if (ec) {
          log::error("the locks of a dead mount could not all be reaped: {}", ec.message());
          all = false;
          break;
        }
      }
    }
    return all;
  }

  // Fetches what other daemons granted to this mount's waiters.
  void collect_ready() {
    for (std::uint32_t i = 0; i < backend_.shard_count(); ++i) {
      if (!backend_.has_ready(i)) continue;
      for (bool more = true; more;) {
        lock::Effects fx;
        if (backend_.locked(i, fx, [&](auto& table) { more = table.collect_ready(256); })) {
          more = false;
        }
        deliver(fx);
      }
    }
  }

  Backend backend_;

 private:
  static constexpr std::uint32_t kMaxPage = 256;
  // Waiters whose question about deadlock is asked in one hold of all shards.
  static constexpr std::size_t kRecheckedAtOnce = 1024;

  std::error_code user_full(std::uint32_t uid) {
    backend_.note_user_full(uid);
    return errno_code(ENOLCK);
  }

  [[nodiscard]] std::uint32_t shard(FileId file) const { return backend_.shard_of(file); }

  static std::uint32_t room(const ListQuery& query, std::size_t have) {
    const std::uint32_t want = std::clamp<std::uint32_t>(query.limit, 1, kMaxPage);
    return want - static_cast<std::uint32_t>(std::min<std::size_t>(have, want));
  }

  template <class Fn>
  Result<void> step(FileId file, Fn&& fn) {
    lock::Effects fx;
    const auto ec = backend_.locked(shard(file), fx, std::forward<Fn>(fn));
    deliver(fx);
    return ec;
  }

  // Behind the last shard come the modifications in flight, which are in no shard.
  void list_changes(const ListQuery& query, GrantPage& page) {
    ListCursor at{backend_.shard_count()};
    if (query.after.shard == at.shard) at.tie = query.after.tie;
    const auto next =
        backend_.list_changes(query.file, at.tie, room(query, page.grants.size()), page.grants);
    if (!next) return;
    at.at_start = false;
    at.tie = *next;
    page.next = at;
  }

  template <class Fn>
  Result<void> walk(const ListQuery& query, std::optional<ListCursor>& next, Fn&& fn) {
    ListCursor at = query.after;
    if (query.file && at.shard < backend_.shard_count()) at.shard = shard(*query.file);
    for (; at.shard < backend_.shard_count(); at = ListCursor{at.shard + 1}) {
      bool more = false;
      lock::Effects fx;
      const auto ec = backend_.locked(at.shard, fx, [&](auto& table) { more = fn(table, at); });
      deliver(fx);
      if (ec) return ec;
      if (more) {
        next = at;
        return {};
      }
      if (query.file) break;
    }
    return {};
  }

  // Cycle check and enqueue share one hold of all shards; otherwise two waiters could each miss
  // the other and sleep for good.
  std::error_code queue_posix(const LockRequest& req, WaiterToken token, lock::Effects& fx,
                              Acquired& answer) {
    return backend_.all_locked(shard(req.file), fx, [&](auto& target, auto&& tables) {
      answer = Granted{};
      const auto attempt = target.attempt(req, fx.now, fx.mono);  // things may have changed
      if (attempt.blocker == 0) return;
      if (closes_cycle(req.owner, target.to_grant(attempt.blocker), tables, fx)) {
        answer = Deadlock{};
        return;
      }
      target.enqueue(req, attempt.blocker, false, token, fx.now);
      answer = Queued{};
    });
  }

  // Would `waiter` waiting for `blocker` close a cycle? As posix_locks_deadlock() in fs/locks.c,
  // but with a far wider limit than its 10 steps, and through all requests of an owner with several
  // threads. As there, only the one who asks must be a POSIX owner; a waiter of any kind is
  // followed to the POSIX lock that blocks it.
  template <class Tables>
  bool closes_cycle(const OwnerId& waiter, const Grant& blocker, Tables&& tables,
                    const lock::Effects& fx) const {
    lock::WaitSearch search{node(blocker.owner)};
    return search.reaches(node(waiter), blockers_in(tables, fx));
  }

  static lock::WaitNode node(const OwnerId& owner) { return {owner.mount, owner.key}; }

  // What a WaitSearch asks, while all shards are held.
  template <class Tables>
  auto blockers_in(Tables&& tables, const lock::Effects& fx) const {
    std::vector<std::uint32_t> with_waiters;
    for (std::uint32_t i = 0; i < backend_.shard_count(); ++i) {
      if (backend_.range_waiters(i) != 0) with_waiters.push_back(i);
    }
    return [&tables, &fx, with_waiters = std::move(with_waiters)](
               const lock::WaitNode& of, std::vector<lock::WaitNode>& out) {
      const std::uint64_t before = fx.looked_at;
      for (const std::uint32_t i : with_waiters) {
        tables(i).posix_blockers_of(of.first, of.second, out);
      }
      return fx.looked_at - before;
    };
  }

  // The outside of a step: nothing is locked here.
  void deliver(lock::Effects& fx) noexcept {
    if (!fx.finished.empty() || !fx.ring.empty() || !fx.recheck.empty()) {
      fault_point("store.deliver");
    }
    backend_.outside(fx);
    fx.tell(backend_.sink());
    // A waiter whose first blocker went and that now waits for another: the kernel asks again
    // about deadlock when it blocks again.
    // The latest first: of a cycle that closes now, the kernel tells who came last.
    for (std::size_t left = fx.recheck.size(); left > 0;) left = recheck(fx.recheck, left);
  }

  // Asks for the last of the first `left` items, and for those before it on the same file: ten
  // thousand may have waited for one lock, and taking all shards for each would cost more than the
  // question. Ends with the first that is refused, since that changes the others' answers. Returns
  // how many items are left.
  std::size_t recheck(const std::vector<lock::Effects::Recheck>& items, std::size_t left) noexcept {
    const FileId file = items[left - 1].file;
    std::size_t first = left - 1;
    while (first > 0 && left - first < kRecheckedAtOnce && items[first - 1].file == file) --first;
    std::size_t next = first;
    lock::Effects fx;
    const auto ec = backend_.all_locked(shard(file), fx, [&](auto& target, auto&& tables) {
      next = first;
      const auto blockers_of = blockers_in(tables, fx);
      const auto waiting = target.waiting(file, std::span{items}.subspan(first, left - first));
      std::map<lock::WaitNode, lock::WaitSearch> searches;  // from each blocker, once
      for (std::size_t i = left; i-- > first;) {
        const auto& waiter = waiting[i - first];
        if (!waiter || waiter->blocker == 0) continue;
        const auto from = node(target.to_grant(waiter->blocker).owner);
        lock::WaitSearch& search = searches.try_emplace(from, from).first->second;
        const bool closed = search.reaches(node(waiter->owner), blockers_of);
        if (closed) target.refuse(file, items[i].mount, items[i].token, EDEADLK);
        if (closed || fx.looked_at >= lock::WaitSearch::kMaxLookedAt) {
          next = i;
          return;
        }
      }
    });
    if (ec) log::error("waiters could not be checked for deadlock: {}", ec.message());
    deliver(fx);  // those behind it look anew
    return next;
  }
};

}  // namespace latchfs
