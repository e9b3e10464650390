// The procedures. What comes of waits: lock_desk_grants.cpp; who has what: lock_desk_books.cpp.
#include "nlm/lock_desk.h"

#include <algorithm>

#include "base/clock.h"
#include "base/log.h"

namespace latchfs::nlm {
namespace {

// As lockd: a range that ends beyond the last byte an off_t can name is not cut, but refused.
Result<ByteRange> range_of(const What& what) {
  if (what.offset >= ByteRange::kEof) return errno_code(EFBIG);
  if (what.length == 0) return ByteRange::from_half_open(what.offset, ByteRange::kEof);
  if (what.length > ByteRange::kEof - what.offset) return errno_code(EFBIG);
  return ByteRange::from_half_open(what.offset, what.offset + what.length);
}

// What kept a file from being opened or locked, as lockd puts it (nlm_fopen()), but for a mount
// that is not there: there a moment later the same may work, of which NLM has no other word.
Status status_of(std::error_code error) {
  switch (error.value()) {
    case ESTALE:
      return Status::kStaleHandle;
    case EFBIG:
      return Status::kTooBig;
    case EROFS:
      return Status::kReadOnly;
    case EAGAIN:
      return Status::kUnanswered;
    case ENOTCONN:
    case ENOLCK:
    case ENOMEM:
    case ENOSPC:
    case EMFILE:
    case ENFILE:
      return Status::kDeniedNolocks;
    default:
      return Status::kFailed;
  }
}

// What kept a host from being entered.
Status refusal_of(std::error_code error) {
  return error == errno_code(EAGAIN) ? Status::kUnanswered : Status::kDeniedNolocks;
}

// What LOCK and its kin are about.
struct Target {
  ByteRange range;
  NfsHandle handle;
};
Result<Target> target_of(const What& what) {
  const auto range = range_of(what);
  if (!range) return range.error();
  const auto handle = parse_handle(what.handle);
  if (!handle) return handle.error();
  return Target{*range, *handle};
}

// What an answer of the table's that is no grant means; nothing: it is one.
std::optional<Status> refused(const Result<Acquired>& got) {
  if (!got) return status_of(got.error());
  if (std::holds_alternative<Deadlock>(*got)) return Status::kDeadlock;
  if (!std::holds_alternative<Granted>(*got)) return Status::kDenied;
  return std::nullopt;
}

LockMode mode_of(const LockCall& call) {
  return call.exclusive ? LockMode::kExclusive : LockMode::kShared;
}

void append_number(std::string& out, std::uint64_t value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}
void append_text(std::string& out, const std::string& text) {
  append_number(out, text.size());
  out += text;
}

constexpr std::size_t kMostAdmissions = 8;

}  // namespace

LockDesk::LockDesk(Options options, LockService& locks, Waits& waits, Files& files, Hosts& hosts,
                   Outside& outside, Outcalls& outcalls)
    : options_{options},
      key_{random_key()},
      grace_until_{options.grace_ns > 0 ? monotonic_ns() + options.grace_ns : 0},
      locks_{locks},
      waits_{waits},
      files_{files},
      hosts_{hosts},
      outside_{outside},
      outcalls_{outcalls},
      idle_limit_{options.most_idle_files},
      ends_{[this] { watch_ends(); }} {}

LockDesk::~LockDesk() {
  shutdown();
  // A file's blocks name the file: let both go.
  const MutexLock hold{mu_};
  for (auto& [token, block] : blocks_) block->file.reset();
}

void LockDesk::shutdown() noexcept {
  waits_.stop();
  outcalls_.stop();
  if (ends_.joinable()) ends_.join();
}

bool LockDesk::in_grace() const noexcept { return monotonic_ns() < grace_until_; }

// The owner of the protocol is {caller, owner bytes, svid}. The address belongs to the caller
// (hosts.h).
OwnerId LockDesk::owner_of(const What& what, const Source& from) const {
  std::string identity;
  append_text(identity, from.address);
  append_text(identity, what.caller);
  append_text(identity, what.owner);
  append_number(identity, static_cast<std::uint32_t>(what.svid));
  return {locks_.mount_id(), siphash(key_, identity), OwnerSpace::kRange};
}

LockDesk::FilePtr LockDesk::known(const NfsHandle& handle) {
  const MutexLock hold{mu_};
  const auto it = by_handle_.find(handle);
  if (it == by_handle_.end()) return nullptr;
  it->second->last_used = monotonic_ns();
  return it->second;
}

Result<LockDesk::FilePtr> LockDesk::file_for(const NfsHandle& handle, const User& user) {
  FilePtr file = known(handle);
  OpenFilePtr open;
  if (file) {
    File& f = *file;
    const MutexLock hold{f.mu};
    const std::int64_t since = monotonic_ns() - options_.admission_ns;
    for (const Admission& one : f.admissions) {
      if (one.at > since && one.user == user) return file;
    }
    open = f.open;
  }
  bool fresh = false;
  for (;;) {
    if (!open) {
      auto opened = files_.open(handle);
      if (!opened) return opened.error();
      open = std::move(*opened);
      fresh = true;
    }
    const auto may = files_.may_lock(*open, user);
    if (may) break;
    if (fresh || may.error() == errno_code(EACCES)) return may.error();
    open = nullptr;  // of a mount that went: there may be another one now
  }
  auto entered = enter_file(handle, std::move(open));
  if (!entered) return entered;
  File& f = **entered;
  const MutexLock hold{f.mu};
  if (f.admissions.size() >= kMostAdmissions) f.admissions.erase(f.admissions.begin());
  f.admissions.push_back({user, monotonic_ns()});
  return entered;
}

Result<LockDesk::FilePtr> LockDesk::enter_file(const NfsHandle& handle, OpenFilePtr open) {
  auto made = std::make_shared<File>(handle, open->id, open->read_only);
  FilePtr file;
  bool many = false;
  {
    const MutexLock hold{mu_};
    FilePtr& place = by_handle_[handle];
    // Another key, or other rights, for the same handle: of a mount of before.
    const bool other = place && (place->id != open->id || place->read_only != open->read_only);
    const bool unused = !place || (place->interest == 0 && place.use_count() == 1);
    if (other && !unused && place->id != open->id) return errno_code(ENOTCONN);
    if (!place || (other && unused)) place = made;
    place->last_used = monotonic_ns();
    file = place;
    many = by_handle_.size() > idle_limit_;
  }
  if (many) drop_idle_files(monotonic_ns());
  File& f = *file;
  const MutexLock hold{f.mu};
  if (f.open != open) {
    // (The old one, if there is one, is closed with `open`, after the mutex.)
    f.open.swap(open);
    f.admissions.clear();
  }
  return file;
}

void LockDesk::drop_idle_files(std::int64_t before) {
  std::vector<FilePtr> gone;  // closed after the mutex
  const MutexLock hold{mu_};
  for (auto it = by_handle_.begin(); it != by_handle_.end();) {
    File& file = *it->second;
    if (file.interest == 0 && it->second.use_count() == 1 && file.last_used <= before) {
      gone.push_back(std::move(it->second));
      it = by_handle_.erase(it);
    } else {
      ++it;
    }
  }
  idle_limit_ = by_handle_.size() + options_.most_idle_files;
}

void LockDesk::let_go() {
  drop_idle_files(monotonic_ns() - options_.idle_file_ns);
  pay_debts();
  compare_books();
  files_.let_go();
  hosts_.expire();
  tell_untold();
}

LockDesk::Figures LockDesk::figures() {
  const MutexLock hold{mu_};
  Figures out;
  out.files = by_handle_.size();
  for (const auto& [handle, file] : by_handle_) out.held += file->interest != 0 ? 1 : 0;
  out.waiting = blocks_.size();
  out.untold = untold_;
  return out;
}

LockDesk::Asker LockDesk::asker_of(const std::string& caller, const Source& from) {
  HostPtr host = hosts_.find(caller, from.address);
  const std::uint64_t epoch = host ? host->epoch.load() : 0;
  return {std::move(host), epoch};
}

LockRequest LockDesk::request_for(const File& file, const LockCall& call, const Source& from,
                                  ByteRange range) const {
  LockRequest request;
  request.file = file.id;
  request.owner = owner_of(call.what, from);
  request.range = range;
  request.mode = mode_of(call);
  request.kind = LockKind::kPosix;
  return request;
}

TestAnswer LockDesk::test(const LockCall& call, const Source& from, const User& user) {
  TestAnswer out{call.cookie, Status::kGranted, {}};
  if (in_grace()) {
    out.status = Status::kDeniedGracePeriod;
    return out;
  }
  const auto target = target_of(call.what);
  if (!target) {
    out.status = status_of(target.error());
    return out;
  }
  const auto file = file_for(target->handle, user);
  if (!file) {
    out.status = status_of(file.error());
    return out;
  }
  const LockRequest request = request_for(**file, call, from, target->range);
  const auto found = locks_.test(request);
  if (!found) {
    out.status = status_of(found.error());
  } else if (*found) {
    const Grant& holder = (*found)->holder;
    out.status = Status::kDenied;
    // The owner's bytes are not told (nor by lockd): they are of no use to anybody else, and make a
    // long answer of a short question.
    out.holder = {holder.mode == LockMode::kExclusive, static_cast<std::int32_t>(holder.holder.pid),
                  "", holder.range.begin(), holder.range.size_or_zero()};
  }
  return out;
}

Status LockDesk::lock(const LockCall& call, const Source& from, const User& user, Manner manner) {
  if (in_grace() && !call.reclaim) return Status::kDeniedGracePeriod;
  const auto target = target_of(call.what);
  if (!target) return status_of(target.error());
  const Asker asker = asker_of(call.what.caller, from);
  const auto file = file_for(target->handle, user);
  if (!file) return status_of(file.error());
  if (call.exclusive && (*file)->read_only) return Status::kReadOnly;
  const auto host = hosts_.enter(call.what.caller, from.address, from.local, manner.monitored);
  if (!host) return refusal_of(host.error());

  LockRequest request = request_for(**file, call, from, target->range);
  request.holder.pid = static_cast<std::uint32_t>(call.what.svid);
  request.holder.uid = user.uid;
  request.holder.client = (*host)->client;
  return lock_on(**file, *file, *host, asker.epoch, request, call, from, manner);
}

Status LockDesk::lock_on(File& file, const FilePtr& shared, const HostPtr& host,
                         std::uint64_t epoch, const LockRequest& request, const LockCall& call,
                         const Source& from, Manner manner) {
  const MutexLock hold{file.mu};
  if (std::int32_t none = 0; call.state != 0) {
    host->first_life.compare_exchange_strong(none, call.state);
  }
  // The client has restarted since: nobody there knows of this request, unless the word of that
  // was late.
  const bool of_this_life = call.state != 0 && call.state == host->life;
  if (host->epoch != epoch && !of_this_life) return Status::kDenied;
  if (call.reclaim && !in_grace()) {
    // Too late (XNFS; lockd as well), unless it is his already: then he has asked twice.
    if (!has_locked(file, request, call.state)) return Status::kDeniedGracePeriod;
  }
  BlockPtr block = find_block_locked(file, request.owner, request.range, &request.mode);
  if (block && block->state == Block::State::kGranted) {
    remove_locked(file, block);  // he learns it now
    block = nullptr;
    // (Else he has unlocked some of it meanwhile.)
    if (has_locked(file, request, call.state)) return Status::kGranted;
  }
  if (block && call.block) {
    block->what = call.what;
    block->from = from;
    block->message = manner.message;
    block->life = call.state;
    return Status::kBlocked;
  }
  if (!room_locked(file, host, request.owner)) return Status::kDeniedNolocks;
  if (call.block && !call.reclaim) {
    return wait_locked(file, shared, host, request, call, from, manner);
  }
  const auto got = locks_.acquire(request, OnConflict::kRefuse, {});
  if (const auto status = refused(got)) return *status;
  hold_locked(file, host, request.owner, call.what.svid, call.state, request.range, request.mode);
  if (block) {
    // What he waited for he has, whichever way.
    static_cast<void>(end_wait_locked(file, block));
    remove_locked(file, block);
  }
  return Status::kGranted;
}

Status LockDesk::wait_locked(File& file, const FilePtr& shared, const HostPtr& host,
                             const LockRequest& request, const LockCall& call, const Source& from,
                             Manner manner) {
  if (host->tally->waiting >= options_.most_waiting) return Status::kDeniedNolocks;
  auto block = std::make_shared<Block>();
  block->host = host;
  block->file = shared;
  block->owner = request.owner;
  block->range = request.range;
  block->mode = request.mode;
  block->holder = request.holder;
  block->what = call.what;
  block->from = from;
  block->message = manner.message;
  block->life = call.state;
  file.blocks.reserve(file.blocks.size() + 1);
  block->token = waits_.open(file.id);
  try {
    const MutexLock hold{mu_};
    blocks_.emplace(block->token.raw, block);
  } catch (...) {
    waits_.close(block->token);
    throw;
  }
  file.blocks.push_back(block);
  ++host->tally->waiting;
  ++host->interest;
  ++file.interest;
  const auto got = locks_.acquire(request, OnConflict::kQueue, block->token);
  if (got && std::holds_alternative<Queued>(*got)) return Status::kBlocked;
  remove_locked(file, block);
  if (const auto status = refused(got)) return *status;
  hold_locked(file, host, request.owner, call.what.svid, call.state, request.range, request.mode);
  return Status::kGranted;
}

Status LockDesk::cancel(const LockCall& call, const Source& from) {
  if (in_grace()) return Status::kDeniedGracePeriod;
  const auto target = target_of(call.what);
  if (!target) return status_of(target.error());
  if (!files_.exports(target->handle.fsid)) return Status::kStaleHandle;
  const FilePtr shared = known(target->handle);
  if (!shared) return Status::kDenied;
  File& file = *shared;
  const LockMode mode = mode_of(call);
  const bool renamed = !hosts_.find(call.what.caller, from.address);
  const MutexLock hold{file.mu};
  const OwnerId owner = owner_meant_locked(file, call.what, from, renamed);
  const BlockPtr block = find_block_locked(file, owner, target->range, &mode);
  // XNFS: denied, "possibly because there was no outstanding lock request to cancel".
  if (!block) return Status::kDenied;
  // Granted, and the client does not know it yet: it is given back.
  undo_locked(file, block);
  return Status::kGranted;
}

Status LockDesk::unlock(const LockCall& call, const Source& from) {
  if (in_grace()) return Status::kDeniedGracePeriod;
  const auto target = target_of(call.what);
  if (!target) return status_of(target.error());
  if (!files_.exports(target->handle.fsid)) return Status::kStaleHandle;
  const FilePtr shared = known(target->handle);
  // A file nobody has locked here needs not be opened to say that nothing of it is locked.
  if (!shared) return Status::kGranted;
  File& file = *shared;
  const bool renamed = !hosts_.find(call.what.caller, from.address);
  const MutexLock hold{file.mu};
  const OwnerId owner = owner_meant_locked(file, call.what, from, renamed);
  // As lockd: whoever unlocks does not wait for the same any more.
  while (const BlockPtr block = find_block_locked(file, owner, target->range, nullptr)) {
    undo_locked(file, block);
  }
  if (!file.held.contains(owner.key)) return Status::kGranted;
  // The client has forgotten the lock, whatever it is told.
  const auto given = give_back_locked(file, owner, target->range);
  return given ? Status::kGranted : status_of(given.error());
}

// DOS sharing, among NLM's clients only: nobody else knows of it. It keeps nobody from locking, nor
// from reading and writing.
Status LockDesk::share(const ShareCall& call, const Source& from, const User& user) {
  if (in_grace() && !call.reclaim) return Status::kDeniedGracePeriod;
  const auto handle = parse_handle(call.handle);
  if (!handle) return status_of(handle.error());
  const Asker asker = asker_of(call.caller, from);
  const auto shared = file_for(*handle, user);
  if (!shared) return status_of(shared.error());
  File& file = **shared;
  constexpr std::uint32_t kWriting = 2;
  if ((call.access & kWriting) != 0 && file.read_only) return Status::kReadOnly;
  const auto host = hosts_.enter(call.caller, from.address, from.local, true);
  if (!host) return refusal_of(host.error());

  const MutexLock hold{file.mu};
  if ((*host)->epoch != asker.epoch) return Status::kDenied;
  Share* own = nullptr;
  for (Share& other : file.shares) {
    if (other.host == *host && other.owner == call.owner) {
      own = &other;
    } else if ((other.deny & call.access) != 0 || (other.access & call.deny) != 0) {
      return Status::kDenied;
    }
  }
  if (own != nullptr) {
    own->deny = call.deny;
    own->access = call.access;
    return Status::kGranted;
  }
  if ((*host)->tally->shares >= options_.most_shares) return Status::kDeniedNolocks;
  file.shares.push_back({*host, call.owner, call.deny, call.access});
  ++(*host)->tally->shares;
  ++(*host)->interest;
  ++file.interest;
  return Status::kGranted;
}

Status LockDesk::unshare(const ShareCall& call, const Source& from) {
  if (in_grace()) return Status::kDeniedGracePeriod;
  const auto handle = parse_handle(call.handle);
  if (!handle) return status_of(handle.error());
  if (!files_.exports(handle->fsid)) return Status::kStaleHandle;
  const FilePtr shared = known(*handle);
  const HostPtr host = hosts_.find(call.caller, from.address);
  // XNFS: granted also if there was no such share.
  if (!shared || !host) return Status::kGranted;
  File& file = *shared;
  const MutexLock hold{file.mu};
  const auto it = std::find_if(file.shares.begin(), file.shares.end(), [&](const Share& one) {
    return one.host == host && one.owner == call.owner;
  });
  if (it == file.shares.end()) return Status::kGranted;
  file.shares.erase(it);
  --host->tally->shares;
  --host->interest;
  --file.interest;
  return Status::kGranted;
}

void LockDesk::free_all(const FreeCall& call, const Source& from) {
  const HostPtr host = hosts_.find(call.name, from.address);
  if (!host || host->interest == 0) return;
  if (host->tally->said.due()) {
    log::info("{} ({}) gives all its locks back", log::printable(host->name), host->address);
  }
  free_host(host, 0);
}

void LockDesk::client_restarted(const std::string& address, std::int32_t state) {
  // (An even one says that it is down.)
  const std::int32_t life = (state & 1) != 0 ? state : 0;
  for (const HostPtr& host : hosts_.at_address(address)) {
    if (host->tally->said.due()) {
      log::info("{} ({}) restarted: its locks are given back", log::printable(host->name), address);
    }
    free_host(host, life);
  }
}

}  // namespace latchfs::nlm
