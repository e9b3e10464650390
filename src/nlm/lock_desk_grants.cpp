// What comes of waits: the grant reaches the client, or goes back.
#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

#include "base/clock.h"
#include "base/log.h"
#include "nlm/codec.h"
#include "nlm/lock_desk.h"

namespace latchfs::nlm {
namespace {

// A client in its own grace period (it reclaims what it has here) says so: lockd waits as long.
constexpr std::int64_t kClientsGraceNs = 10'000'000'000;

}  // namespace

void LockDesk::watch_ends() noexcept {
  while (const auto event = waits_.next()) {
    try {
      wait_ended(*event);
    } catch (const std::exception& e) {
      // The client asks again, as all do whose word does not come.
      log::error("the end of a wait is not told to its client: {}", e.what());
    }
  }
}

LockDesk::BlockPtr LockDesk::find_block(WaiterToken token) {
  const MutexLock hold{mu_};
  const auto it = blocks_.find(token.raw);
  return it == blocks_.end() ? nullptr : it->second;
}

void LockDesk::wait_ended(const Waits::Event& event) {
  const BlockPtr block = find_block(event.token);
  if (!block) return;
  {
    File& file = *block->file;
    const MutexLock hold{file.mu};
    if (block->state != Block::State::kWaiting) return;
    if (event.err != 0) {
      remove_locked(file, block);
    } else {
      try {
        enter_brought_locked(file, *block);
      } catch (...) {
        // It was given back, and is waited for no more: asked again, it is a wait anew.
        remove_locked(file, block);
        throw;
      }
      block->state = Block::State::kGranted;
      block->granted_at = monotonic_ns();
      block->pause = options_.first_pause_ns;
    }
  }
  if (event.err != 0) {
    // NLM has no word for that. The client, which asks again every now and then, learns it then.
    if (block->host->tally->said.due()) {
      log::info("a wait of {} ended: {}", log::printable(block->host->name),
                errno_code(event.err).message());
    }
    return;
  }
  deliver_at(0, block);
}

void LockDesk::deliver_at(std::int64_t at_ns, const BlockPtr& block) {
  const auto run = [this, token = block->token]() noexcept {
    try {
      if (const BlockPtr due = find_block(token)) deliver(due);
    } catch (const std::exception& e) {
      log::error("a grant is not told to its client: {}", e.what());
    }
  };
  bool taken = false;
  try {
    taken = outcalls_.at(at_ns, block->host->address, run);
  } catch (const std::bad_alloc&) {
    // As if there were no place.
  }
  if (taken) return;
  // Too many: of its own, or of all. The lock is his all the same, and he is told a moment later.
  const MutexLock hold{mu_};
  if (!blocks_.contains(block->token.raw) || block->untold) return;
  block->untold = true;
  ++untold_;
}

void LockDesk::tell_untold() {
  std::vector<BlockPtr> untold;
  {
    const MutexLock hold{mu_};
    if (untold_ == 0) return;
    untold.reserve(untold_);
    for (const auto& [token, block] : blocks_) {
      if (block->untold) untold.push_back(block);
    }
  }
  for (const BlockPtr& block : untold) {
    {
      const MutexLock hold{mu_};
      if (!std::exchange(block->untold, false)) continue;
      --untold_;
    }
    deliver_at(0, block);
  }
}

// (Whoever does not know the number cannot say yes in the client's name, nor no.)
std::string LockDesk::grant_cookie(WaiterToken token) const {
  std::string out(2 * sizeof(std::uint64_t), '\0');
  const std::uint64_t seal =
      siphash(key_, {reinterpret_cast<const char*>(&token.raw), sizeof token.raw});
  std::memcpy(out.data(), &token.raw, sizeof token.raw);
  std::memcpy(out.data() + sizeof token.raw, &seal, sizeof seal);
  return out;
}

void LockDesk::deliver(const BlockPtr& block) {
  LockCall call;
  Where where;
  bool message = false;
  {
    File& file = *block->file;
    const MutexLock hold{file.mu};
    if (block->state != Block::State::kGranted) return;
    call.cookie = grant_cookie(block->token);
    call.exclusive = block->mode == LockMode::kExclusive;
    call.what = block->what;
    where = {block->from.address, block->from.local, block->from.tcp};
    message = block->message;
    // Its answer comes by itself, perhaps before we know that it was sent: it counts from here on.
    if (message) ++block->unanswered;
  }
  const std::string arguments = encode_lock_call(Form::kTest, call);
  if (message) {
    const auto told = outside_.tell(where, kNlmProgram, kNlmVersion,
                                    static_cast<std::uint32_t>(Proc::kGrantedMsg), arguments,
                                    options_.call_patience);
    if (!told) {
      log::debug("GRANTED_MSG to {}: {}", where.address, told.error().message());
      one_less_unanswered(*block);
    }
    return delivered(block, nullptr, 0);  // GRANTED_RES may come, any time
  }
  unsigned unanswered = 0;
  const auto answer =
      outside_.exchange(where, kNlmProgram, kNlmVersion, static_cast<std::uint32_t>(Proc::kGranted),
                        arguments, options_.call_patience, unanswered);
  if (!answer) {
    log::debug("GRANTED to {}: {}", where.address, answer.error().message());
    return delivered(block, nullptr, unanswered);
  }
  const auto said = decode_answer(*answer);
  delivered(block, said ? &said->status : nullptr, unanswered);
}

// A client whose answer got lost says no when it is asked again: what it waited for it has (so does
// Linux, nlmclnt_grant()). Only the answer to the only copy tells that it wants the lock no more;
// after that a lock that is not wanted is cancelled or unlocked by the client, one that is given
// back is written under by two.
void LockDesk::delivered(const BlockPtr& block, const Status* answer, unsigned unanswered) {
  std::int64_t again_at = 0;
  const char* why = "it does not want it any more";
  bool keeps = false;
  {
    File& file = *block->file;
    const MutexLock hold{file.mu};
    if (block->state != Block::State::kGranted) return;
    block->unanswered += unanswered;
    const std::int64_t now = monotonic_ns();
    if (answer == nullptr || *answer == Status::kDeniedGracePeriod) {
      again_at = now + (answer == nullptr ? block->pause : kClientsGraceNs);
      block->pause = std::min(2 * block->pause, options_.longest_pause_ns);
      if (again_at - block->granted_at > options_.grant_patience_ns) {
        again_at = 0;
        keeps = block->unanswered != 0;
        why = "it cannot be reached";
      }
    } else if (*answer != Status::kDenied || block->unanswered != 0) {
      // His; also when the answer makes no sense (lockd: nlmsvc_grant_reply()).
      return remove_locked(file, block);
    }
    if (again_at == 0) {
      if (keeps) {
        remove_locked(file, block);
      } else {
        undo_locked(file, block);
      }
    }
  }
  if (again_at != 0) return deliver_at(again_at, block);
  Tally& tally = *block->host->tally;
  if (keeps && tally.warned.due()) {
    log::warn("{} ({}) does not say whether it takes the lock it waited for: it keeps it",
              log::printable(block->host->name), block->host->address);
  } else if (!keeps && tally.said.due()) {
    log::info("a lock granted to {} ({}) is given back: {}", log::printable(block->host->name),
              block->host->address, why);
  }
}

// The cookie says whose answer it is: a client may have more than one address.
void LockDesk::granted_answer(const Answer& answer) {
  WaiterToken token;
  if (answer.cookie.size() != 2 * sizeof token.raw) return;
  std::memcpy(&token.raw, answer.cookie.data(), sizeof token.raw);
  if (answer.cookie != grant_cookie(token)) return;
  const BlockPtr block = find_block(token);
  // In grace: the pause that is under way will do.
  if (!block || answer.status == Status::kDeniedGracePeriod) return;
  // What this answers is no longer without one.
  one_less_unanswered(*block);
  delivered(block, &answer.status, 0);
}

void LockDesk::one_less_unanswered(Block& block) {
  File& file = *block.file;
  const MutexLock hold{file.mu};
  if (block.unanswered != 0) --block.unanswered;
}

}  // namespace latchfs::nlm
