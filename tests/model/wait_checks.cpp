// What must be true of a WaitWorld after each step, and at an end.
#include <algorithm>

#include "model/wait_world.h"

namespace latchfs::test {

void WaitWorld::check_step(std::uint32_t shard, const SeenTable& before, const SeenTable& now,
                           const lock::Effects& fx) {
  check_order(before, now, fx);
  for (std::size_t i = 0; i < now.grants.size(); ++i) {
    for (std::size_t j = 0; j < i; ++j) {
      if (conflicting(now.grants[i], now.grants[j])) fail("two conflicting locks were granted");
    }
  }
  lock::Effects none;
  std::string broken;
  Shard& at = shards_->at(shard);
  lock::LockTable<HeapArena> table{at.arena, at.root, none, 0};
  FileId file{};
  bool at_start = true;
  while (table.verify(file, at_start, broken)) {
  }
  if (!broken.empty()) fail("verify: " + broken);
  check_holdings(now);
}

// First come, first served: whoever still waits has in its way something that was not granted, in
// this very step, to one who came later.
void WaitWorld::check_order(const SeenTable& before, const SeenTable& now,
                            const lock::Effects& fx) {
  std::vector<OwnerId> granted_later;
  const auto rank = [this](std::uint64_t token) {
    return std::find(arrived_.begin(), arrived_.end(), token) - arrived_.begin();
  };
  const auto got_it = [&](std::uint64_t token) {
    for (const auto& done : fx.finished) {
      if (done.token.raw == token) return done.err == 0;
    }
    for (const SeenReady& r : now.ready) {
      if (r.token == token) return r.result == 0;
    }
    return false;
  };
  for (const SeenWaiter& still : now.waiters) {
    granted_later.clear();
    for (const SeenWaiter& was : before.waiters) {
      if (rank(was.token) > rank(still.token) && conflicting(was.wanted, still.wanted) &&
          got_it(was.token)) {
        granted_later.push_back(was.wanted.owner);
      }
    }
    if (granted_later.empty()) continue;
    const bool other_wall =
        std::any_of(now.grants.begin(), now.grants.end(), [&](const SeenGrant& g) {
          return conflicting(g, still.wanted) &&
                 std::find(granted_later.begin(), granted_later.end(), g.owner) ==
                     granted_later.end();
        });
    if (!other_wall) fail("one who came later was served first");
  }
}

void WaitWorld::check_holdings(const SeenTable& now) {
  const auto expected = [this](const SeenGrant& g) {
    for (const Holding& h : holdings_) {
      if (owner(h.process) != g.owner || h.file != g.file.ino) continue;
      if (h.giving_back || h.mode == g.mode) return true;
      return h.asking >= 0 && requests_[static_cast<std::size_t>(h.asking)].op.mode == g.mode;
    }
    return false;
  };
  for (const SeenGrant& g : now.grants) {
    if (!mounts_[g.owner.mount - 1]->alive) continue;
    if (!expected(g)) fail("a lock is held that nobody was told of");
  }
  for (const Holding& h : holdings_) {
    const OwnerId who = owner(h.process);
    if (!h.mode || h.giving_back || !mounts_[who.mount - 1]->alive) continue;
    const bool held = std::any_of(now.grants.begin(), now.grants.end(), [&](const SeenGrant& g) {
      return g.owner == who && g.file.ino == h.file &&
             (g.mode == *h.mode || (h.asking >= 0 && g.mode == LockMode::kExclusive));
    });
    if (!held) fail("a lock that was granted is not held");
  }
  for (const SeenWaiter& w : now.waiters) {
    const int r = request_of(w.token);
    if (r < 0 || requests_[static_cast<std::size_t>(r)].answer != kUnanswered) {
      fail("a request waits that was answered");
    }
  }
}

void WaitWorld::check_end() {
  for (const auto& task : tasks_) {
    if (task->mount >= 0 && !mounts_[static_cast<std::size_t>(task->mount)]->alive) continue;
    if (task->must_end && !task->fiber->finished()) {
      fail(task->name + " waits for good");
      return;
    }
  }
  for (const auto& mount : mounts_) {
    if (mount->alive && mount->lot.size() != 0) fail("a request is parked for good");
  }
  const SeenTable now = look();
  if (!now.waiters.empty()) fail("somebody waits in the table for good");
  for (const SeenReady& r : now.ready) {
    if (mounts_[r.mount - 1]->alive) fail("a grant was never fetched");
  }
  std::size_t kept = 0;
  for (const Holding& h : holdings_) {
    kept += h.mode && mounts_[owner(h.process).mount - 1]->alive ? 1 : 0;
  }
  if (now.grants.size() != kept) fail("a lock was left");
  for (const Shard& shard : *shards_) {
    if (kept == 0 && (shard.root.file_count != 0 || shard.root.owner_count != 0)) {
      fail("a record was left");
    }
  }
}

}  // namespace latchfs::test
