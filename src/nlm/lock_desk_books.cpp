// Who holds what and who waits, as the desk has it beside the lock table.
#include <algorithm>
#include <utility>

#include "base/clock.h"
#include "base/log.h"
#include "nlm/lock_desk.h"

namespace latchfs::nlm {

// As a client that has changed its name since it locked: Linux puts the host's name of the moment
// into the caller and the owner bytes of each call, also that of a container. Its process number is
// what lockd goes by; where one owner alone has it at this address, he is meant. But behind one
// address there may be several machines, all of which count their processes from 1: one that has
// locked by this name itself means its own (a wait that was interrupted is unlocked, too).
OwnerId LockDesk::owner_meant_locked(File& file, const What& what, const Source& from,
                                     bool renamed) const {
  const OwnerId exact = owner_of(what, from);
  if (!renamed || file.held.contains(exact.key)) return exact;
  std::optional<std::uint64_t> meant;
  for (const auto& [key, holding] : file.held) {
    if (holding.svid != what.svid || holding.host->address != from.address) continue;
    if (meant) return exact;
    meant = key;
  }
  for (const BlockPtr& block : file.blocks) {
    if (block->owner == exact) return exact;
    if (block->what.svid != what.svid || block->host->address != from.address) continue;
    if (meant && *meant != block->owner.key) return exact;
    meant = block->owner.key;
  }
  return {exact.mount, meant.value_or(exact.key), exact.space};
}

bool LockDesk::room_locked(File& file, const HostPtr& host, OwnerId owner) const {
  const Tally& has = *host->tally;
  return has.grants < options_.most_locks &&
         (has.held < options_.most_held || file.held.contains(owner.key));
}

// What the same owner, by name and number, held in an earlier life goes with the word of its end;
// with it goes what cannot be told apart from it.
void LockDesk::note_life(Holding& holding, std::int32_t life, ByteRange range) {
  if (holding.life == life) return;
  HeldRanges rest = holding.ranges;
  rest.give(range);
  holding.life = rest.empty() ? life : 0;
}

void LockDesk::hold_locked(File& file, const HostPtr& host, OwnerId owner, std::int32_t svid,
                           std::int32_t life, ByteRange range, LockMode mode) {
  try {
    const auto [it, added] = file.held.try_emplace(owner.key);
    Holding& holding = it->second;
    if (added) {
      holding.host = host;
      holding.svid = svid;
      ++host->interest;
      ++host->tally->held;
      ++file.interest;
    }
    note_life(holding, life, range);
    Tally& tally = *holding.host->tally;
    tally.grants -= holding.ranges.grants();
    holding.ranges.hold(range, mode);
    tally.grants += holding.ranges.grants();
    holding.owed.remove(range);
    for (const BlockPtr& block : file.blocks) {
      if (block->owner != owner || block->state != Block::State::kGranted) continue;
      RangeUnion whole;
      whole.add(range);
      for (const ByteRange part : whole.within(block->range)) block->before.hold(part, mode);
    }
  } catch (...) {
    static_cast<void>(locks_.release(file.id, owner, range));
    throw;
  }
}

void LockDesk::unhold_locked(File& file, OwnerId owner, ByteRange range) {
  const auto it = file.held.find(owner.key);
  if (it == file.held.end()) return;
  Holding& holding = it->second;
  Tally& tally = *holding.host->tally;
  tally.grants -= holding.ranges.grants();
  holding.ranges.give(range);
  tally.grants += holding.ranges.grants();
  holding.owed.remove(range);
  for (const BlockPtr& block : file.blocks) {
    if (block->owner == owner) block->before.give(range);
  }
  if (!holding.ranges.empty()) return;
  --holding.host->interest;
  --tally.held;
  --file.interest;
  file.held.erase(it);
}

Result<void> LockDesk::give_back_locked(File& file, OwnerId owner, ByteRange range) {
  auto given = locks_.release(file.id, owner, range);
  if (given) {
    unhold_locked(file, owner, range);
    return given;
  }
  // (To give the middle of a lock back the table needs one more.)
  if (refused_.due()) log::warn("a lock cannot be given back now: {}", given.error().message());
  const auto it = file.held.find(owner.key);
  if (it == file.held.end()) return given;
  it->second.owed.add(range);
  debts_ = true;
  return given;
}

bool LockDesk::has_locked(File& file, const LockRequest& request, std::int32_t life) {
  const auto it = file.held.find(request.owner.key);
  if (it == file.held.end() || !it->second.ranges.covers(request.range, request.mode)) return false;
  it->second.owed.remove(request.range);
  note_life(it->second, life, request.range);
  return true;
}

void LockDesk::pay_debts() {
  if (!debts_.exchange(false)) return;
  std::vector<FilePtr> files;
  {
    const MutexLock hold{mu_};
    for (const auto& [handle, file] : by_handle_) {
      if (file->interest != 0) files.push_back(file);
    }
  }
  for (const FilePtr& one : files) {
    File& file = *one;
    const MutexLock hold{file.mu};
    std::vector<std::pair<std::uint64_t, ByteRange>> debts;
    for (const auto& [key, holding] : file.held) {
      for (const ByteRange part : holding.owed.within(ByteRange{})) debts.emplace_back(key, part);
    }
    for (const auto& [key, range] : debts) {
      const OwnerId owner{locks_.mount_id(), key, OwnerSpace::kRange};
      static_cast<void>(give_back_locked(file, owner, range));
    }
  }
}

void LockDesk::compare_books() {
  constexpr std::size_t kGrantsAtOnce = 4096;
  {
    const MutexLock hold{mu_};
    if (!compared_ && monotonic_ns() < compare_at_) return;
  }
  for (std::size_t seen = 0; seen < kGrantsAtOnce;) {
    FilePtr file;
    {
      const MutexLock hold{mu_};
      auto it = compared_ ? by_handle_.upper_bound(*compared_) : by_handle_.begin();
      while (it != by_handle_.end() && it->second->interest == 0) ++it;
      if (it == by_handle_.end()) {
        compared_.reset();
        compare_at_ = monotonic_ns() + options_.compare_ns;
        return;
      }
      compared_ = it->first;
      file = it->second;
    }
    seen += 1 + compare_file(*file);
  }
}

std::size_t LockDesk::compare_file(File& file) {
  constexpr std::uint32_t kPage = 256;
  const MutexLock hold{file.mu};
  if (file.held.empty()) return 0;
  // The books may lack what a wait has brought this moment; what they have and the table has not
  // was taken out there: only we could put it back, and we have the mutex.
  std::unordered_map<std::uint64_t, RangeUnion> missing;
  for (const auto& [key, holding] : file.held) {
    for (const RangeUnion* of : {&holding.ranges.shared(), &holding.ranges.exclusive()}) {
      for (const ByteRange part : of->within(ByteRange{})) missing[key].add(part);
    }
  }
  ListQuery query;
  query.file = file.id;
  query.limit = kPage;
  std::size_t seen = 0;
  for (;;) {
    const auto page = locks_.list(query);
    if (!page) return seen;
    seen += page->grants.size();
    for (const Grant& grant : page->grants) {
      if (grant.owner.mount != locks_.mount_id() || grant.owner.space != OwnerSpace::kRange) {
        continue;
      }
      const auto it = missing.find(grant.owner.key);
      if (it != missing.end()) it->second.remove(grant.range);
    }
    if (!page->next) break;
    query.after = *page->next;
  }
  for (const auto& [key, ranges] : missing) {
    for (const ByteRange part : ranges.within(ByteRange{})) {
      unhold_locked(file, {locks_.mount_id(), key, OwnerSpace::kRange}, part);
    }
  }
  return seen;
}

LockDesk::BlockPtr LockDesk::find_block_locked(File& file, OwnerId owner, ByteRange range,
                                               const LockMode* mode) {
  for (const BlockPtr& block : file.blocks) {
    if (block->owner == owner && block->range == range &&
        (mode == nullptr || block->mode == *mode)) {
      return block;
    }
  }
  return nullptr;
}

void LockDesk::remove_locked(File& file, const BlockPtr& block) noexcept {
  if (block->state == Block::State::kOver) return;
  block->state = Block::State::kOver;
  waits_.close(block->token);
  std::erase(file.blocks, block);
  --block->host->tally->waiting;
  --block->host->interest;
  --file.interest;
  const MutexLock hold{mu_};
  if (std::exchange(block->untold, false)) --untold_;
  blocks_.erase(block->token.raw);
}

void LockDesk::enter_brought_locked(File& file, Block& block) {
  try {
    const auto it = file.held.find(block.owner.key);
    if (it != file.held.end()) {
      block.before = it->second.ranges.within(block.range);
      // He has given that back, but for the table.
      for (const ByteRange part : it->second.owed.within(block.range)) block.before.give(part);
    }
  } catch (...) {
    static_cast<void>(locks_.release(file.id, block.owner, block.range));
    throw;
  }
  hold_locked(file, block.host, block.owner, block.what.svid, block.life, block.range, block.mode);
}

LockDesk::Ended LockDesk::end_wait_locked(File& file, const BlockPtr& block) {
  if (block->state == Block::State::kGranted) return Ended::kGranted;
  if (locks_.cancel(file.id, block->token) == Cancelled::kCancelled) return Ended::kCancelled;
  // It was over before; the word of it is on its way, and decides whether there is something to
  // give back.
  constexpr std::chrono::milliseconds kOnItsWay{5000};
  const auto err = waits_.outcome(block->token, kOnItsWay);
  if (!err) log::warn("the lock table did not say how a wait ended: taken as granted");
  return err.value_or(0) == 0 ? Ended::kGranted : Ended::kRefused;
}

void LockDesk::undo_locked(File& file, const BlockPtr& block) {
  const bool entered = block->state == Block::State::kGranted;
  const Ended how = end_wait_locked(file, block);
  remove_locked(file, block);
  if (how != Ended::kGranted) return;
  if (!entered) {
    enter_brought_locked(file, *block);  // granted this moment
  }
  RangeUnion brought;
  brought.add(block->range);
  for (const ByteRange part : block->before.exclusive().within(block->range)) brought.remove(part);
  for (const ByteRange part : block->before.shared().within(block->range)) {
    brought.remove(part);
    if (block->mode == LockMode::kShared) continue;
    // A downgrade, which nobody can be in the way of.
    LockRequest request;
    request.file = file.id;
    request.owner = block->owner;
    request.range = part;
    request.mode = LockMode::kShared;
    request.kind = LockKind::kPosix;
    request.holder = block->holder;
    const auto got = locks_.acquire(request, OnConflict::kRefuse, {});
    if (!got || !std::holds_alternative<Granted>(*got)) {
      log::error("a lock stays exclusive that was shared: {}",
                 got ? "somebody is in the way" : got.error().message());
      continue;
    }
    hold_locked(file, block->host, block->owner, block->what.svid, block->life, part,
                LockMode::kShared);
  }
  for (const ByteRange part : brought.within(block->range)) {
    static_cast<void>(give_back_locked(file, block->owner, part));
  }
}

void LockDesk::free_host(const HostPtr& host, std::int32_t told) {
  const std::int32_t but = host->first_life == told ? 0 : told;
  host->first_life = told;
  host->life = but;
  ++host->epoch;
  std::vector<FilePtr> files;
  {
    const MutexLock hold{mu_};
    // All: on one of them a lock may be about to be entered, by who asked before.
    for (const auto& [handle, file] : by_handle_) files.push_back(file);
  }
  for (const FilePtr& file : files) free_host_on(*file, host, but);
}

void LockDesk::free_host_on(File& file, const HostPtr& host, std::int32_t but) {
  const MutexLock hold{file.mu};
  const std::vector<BlockPtr> blocks = file.blocks;
  // An owner stays with all it holds and waits for here, or goes with all.
  std::map<std::uint64_t, bool> stays;
  for (const auto& [key, holding] : file.held) {
    if (holding.host == host) stays[key] = but != 0 && holding.life == but;
  }
  for (const BlockPtr& block : blocks) {
    if (block->host != host) continue;
    bool& stay = stays.try_emplace(block->owner.key, but != 0).first->second;
    stay = stay && block->life == but;
  }
  for (const BlockPtr& block : blocks) {
    if (block->host == host && !stays[block->owner.key]) undo_locked(file, block);
  }
  for (auto it = file.held.begin(); it != file.held.end();) {
    if (it->second.host != host || stays[it->first]) {
      ++it;
      continue;
    }
    const OwnerId owner{locks_.mount_id(), it->first, OwnerSpace::kRange};
    if (const auto given = locks_.drop_owner(file.id, owner); !given) {
      if (refused_.due()) {
        log::error("the locks of {} cannot be given back now: {}", log::printable(host->name),
                   given.error().message());
      }
      it->second.owed.add(ByteRange{});
      debts_ = true;
      ++it;
      continue;
    }
    host->tally->grants -= it->second.ranges.grants();
    --host->tally->held;
    --host->interest;
    --file.interest;
    it = file.held.erase(it);
  }
  const auto shares =
      std::erase_if(file.shares, [&](const Share& one) { return one.host == host; });
  host->tally->shares -= static_cast<std::uint32_t>(shares);
  host->interest -= static_cast<std::uint32_t>(shares);
  file.interest -= static_cast<std::uint32_t>(shares);
}

}  // namespace latchfs::nlm
