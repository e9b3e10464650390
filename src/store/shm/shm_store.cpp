#include "store/shm/shm_store.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/clock.h"
#include "base/log.h"
#include "store/shm/doorbell.h"

namespace latchfs {
namespace {

using shm::Header;
using shm::kMaxMounts;
using shm::MountSlot;
using shm::Region;
using shm::Registry;

// Without a pidfd (another pid namespace) a death is noticed by asking this often.
constexpr int kWatchIntervalMs = 1000;

void copy_text(std::array<char, 256>& to, const std::string& from) {
  to.fill('\0');
  std::memcpy(to.data(), from.data(), std::min(from.size(), to.size() - 1));
}

// Mounts whose slots are in use, but for the one that is being left.
std::uint32_t mounts_in(const Header& h, const MountSlot* leaving = nullptr) {
  return static_cast<std::uint32_t>(
      std::count_if(h.mounts.begin(), h.mounts.end(), [leaving](const MountSlot& slot) {
        return &slot != leaving && slot.id.load() != 0 && slot.is_service.load() == 0;
      }));
}

// mount_count anew. Counting up and down instead would stay wrong after a death between that and
// the change of the slot.
void count_mounts(Header& h, const MountSlot* leaving = nullptr) {
  h.mount_count.store(mounts_in(h, leaving), std::memory_order_release);
}

std::uint64_t own_pid_namespace() {
  struct stat st {};
  return ::stat("/proc/self/ns/pid", &st) == 0 ? st.st_ino : 0;
}

// No number of a mount comes back, whatever the clock does and whatever was written over the
// counter. (From one on that follows from when the table was made: later tables do not repeat it.)
std::uint64_t new_mount_id(Header& h) {
  constexpr std::uint64_t kMost = 1 << 30;  // mounts that a table may see
  constexpr std::uint64_t kSkip = 1 << 20;  // more than there can have been without being seen
  const std::uint64_t first = static_cast<std::uint64_t>(h.identity.created_at / 1'000'000'000)
                              << 20;
  const auto can_be = [&](std::uint64_t id) { return id >= first && id - first < kMost; };
  std::uint64_t id = h.next_mount_id.load();
  if (!can_be(id)) {
    id = first;
    for (const MountSlot& slot : h.mounts) {
      if (can_be(slot.id.load())) id = std::max(id, slot.id.load());
    }
    id += kSkip;
  }
  const auto taken = [&] {
    return std::any_of(h.mounts.begin(), h.mounts.end(),
                       [&](const MountSlot& slot) { return slot.id.load() == id; });
  };
  while (taken()) ++id;
  h.next_mount_id.store(id + 1);
  return id;
}

// Who uses the table mends a damaged header within a second or two.
constexpr int kMendTries = 20;
constexpr useconds_t kMendStepUs = 150'000;
bool being_mended(std::error_code ec) { return ec == errno_code(EIO) || ec == errno_code(ESTALE); }

bool anybody_alive(const Registry& registry) {
  for (std::uint32_t i = 0; i < kMaxMounts; ++i) {
    if (registry.alive(i)) return true;
  }
  return false;
}

// The table the registry names, or a new one in its place when nobody uses it any more. The
// registry is locked.
Result<std::unique_ptr<Region>> open_or_create(Registry& registry, const ShmStore::Options& options,
                                               std::string& name) {
  name = registry.region_name();
  if (!name.empty()) {
    auto region = Region::open(name);
    if (region) {
      const bool in_use = anybody_alive(registry);
      if (in_use && (*region)->bytes() != shm::round_up(options.table_max, shm::kPage)) {
        log::info("table {} is in use with table_max={}", options.table, (*region)->bytes());
      }
      if (in_use || (*region)->bytes() == shm::round_up(options.table_max, shm::kPage)) {
        return region;
      }
    } else if (anybody_alive(registry)) {
      // A second table beside one in use would hide each's locks from the other.
      return region.error();
    } else if (region.error() != errno_code(ENOENT) && region.error() != errno_code(ESTALE)) {
      log::warn("table {}: replacing what is left of it ({})", options.table,
                region.error().message());
    }
    Region::remove(name);
  } else if (anybody_alive(registry)) {
    return errno_code(ENOENT);
  }
  auto fresh = Registry::fresh_region_name(options.table);
  if (!fresh) return fresh.error();
  // Named first: a death in between leaves a name without a table, not a table without a name.
  if (const auto r = registry.set_region_name(*fresh); !r) return r.error();
  name = *fresh;
  return Region::create(name, options.table_max);
}

}  // namespace

ShmStore::ShmStore(std::unique_ptr<Region> region, Registry registry, const Options& options,
                   GrantSink& sink)
    : TableService{std::move(region), options.table, sink, options.max_locks_per_user},
      registry_{std::move(registry)},
      options_{options},
      clients_{backend_.region().clients()},
      poke_{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)} {}

std::string ShmStore::formats(const std::string& table) {
  const auto registry = Registry::open(table);
  return fmt::format("format {}, this latchfs has {}",
                     registry ? Region::format_of(registry->region_name()) : "unknown",
                     Region::own_format());
}

Result<std::unique_ptr<ShmStore>> ShmStore::attach(const Options& options, GrantSink& sink) {
  auto registry = Registry::open(options.table);
  if (!registry) return registry.error();
  std::string name;
  Result<std::unique_ptr<Region>> region = errno_code(EIO);
  for (int tries = 0; !region; ++tries) {
    if (const auto r = registry->lock(); !r) return r.error();
    region = open_or_create(*registry, options, name);
    if (region) break;
    registry->unlock();
    if (!being_mended(region.error()) || tries == kMendTries) return region.error();
    ::usleep(kMendStepUs);
  }
  std::unique_ptr<ShmStore> store{
      new ShmStore{std::move(*region), std::move(*registry), options, sink}};
  store->region_name_ = name;
  store->backend_.mapped_as(name);
  const auto joined = store->join();
  store->registry_.unlock();
  if (!joined) return joined.error();
  store->start_threads();
  return store;
}

// The registry is locked.
Result<void> ShmStore::join() {
  if (!poke_) return last_errno();
  Header& h = backend_.region().header();
  std::uint64_t maker = 0;
  const std::uint64_t ours = own_pid_namespace();
  if (!h.pid_namespace.compare_exchange_strong(maker, ours) && maker != ours) {
    h.several_pid_namespaces.store(1);
  }
  reap_the_dead(true);
  for (std::uint32_t i = 0; i < kMaxMounts; ++i) {
    MountSlot& slot = h.mounts[i];
    if (slot.id.load() != 0 || registry_.alive(i)) continue;
    if (const auto r = registry_.claim(i); !r) continue;
    const std::uint64_t id = new_mount_id(h);
    backend_.registered(i, id);
    started_at_ = realtime_ns();
    describe(slot);
    for (std::uint32_t k = 0; k < shm::kShardCount; ++k) losses_seen_[k] = backend_.losses(k);
    backend_.region().operations().join(i);
    backend_.region().changes().join(i);
    // Before it is counted: whoever dies in between is found, reaped, and not counted.
    slot.id.store(id, std::memory_order_release);
    count_mounts(h);
    // The others watch this one from now on, and let their kernels believe nothing more.
    for (MountSlot& other : h.mounts) {
      if (&other == &slot || other.id.load() == 0) continue;
      others_believe_ms_ = std::max(others_believe_ms_, other.believes_ms.load());
      backend_.ring(other);
    }
    return {};
  }
  return errno_code(EUSERS);
}

void ShmStore::describe(MountSlot& slot) const {
  slot.pid = static_cast<std::uint32_t>(::getpid());
  slot.started_at = started_at_;
  slot.is_service.store(options_.is_service ? 1 : 0);
  slot.believes_ms.store(options_.believes_ms);
  copy_text(slot.source, options_.source);
  copy_text(slot.mountpoint, options_.mountpoint);
}

ShmStore::~ShmStore() {
  stop_threads();
  if (mount_id() == 0) return;
  Header& h = backend_.region().header();
  reap_mount(mount_id());
  const auto locked = registry_.lock();
  MountSlot& mine = h.mounts[backend_.slot()];
  count_mounts(h, &mine);
  mine.id.store(0, std::memory_order_release);
  registry_.let_go(backend_.slot());
  if (locked && !anybody_alive(registry_)) {
    Region::remove(region_name_);
    registry_.remove();
  } else {
    backend_.ring_all();
  }
  registry_.unlock();
  if (!stand_in_ || !stand_in_->lock()) return;
  stand_in_->let_go(backend_.slot());
  if (!anybody_alive(*stand_in_)) stand_in_->remove();
  stand_in_->unlock();
}

void ShmStore::start_threads() {
  doorbell_thread_ = std::thread{[this] { doorbell_loop(); }};
  watch_thread_ = std::thread{[this] { watch_loop(); }};
}

void ShmStore::stop_threads() {
  if (!doorbell_thread_.joinable()) return;
  stopping_.store(true);
  backend_.ring(backend_.region().header().mounts[backend_.slot()]);
  const std::uint64_t one = 1;
  if (::write(poke_.get(), &one, sizeof one) < 0) log::warn("the watcher could not be woken");
  doorbell_thread_.join();
  watch_thread_.join();
}

// Replies to waiters that other daemons granted, and passes on that the set of mounts changed.
void ShmStore::doorbell_loop() {
  Header& h = backend_.region().header();
  auto& bell = h.mounts[backend_.slot()].doorbell;
  std::uint32_t seen = bell.load(std::memory_order_acquire) - 1;
  while (!stopping_.load()) {
    tell_of_losses();
    const std::uint32_t now = bell.load(std::memory_order_acquire);
    if (now == seen) {
      shm::wait_doorbell(bell, seen, kWatchIntervalMs);
      // Nobody has to ring for it to be found, if late.
      if (bell.load(std::memory_order_acquire) == seen) collect_ready();
      continue;
    }
    seen = now;
    const std::uint64_t maybe = h.ready_shards.load(std::memory_order_acquire);
    collect_ready();
    for (std::uint32_t i = 0; i < shm::kShardCount; ++i) {
      if ((maybe >> i & 1) != 0) backend_.forget_ready(i);
    }
    const std::uint64_t one = 1;
    if (maybe == 0 && ::write(poke_.get(), &one, sizeof one) < 0 && errno != EAGAIN) {
      log::warn("the watcher could not be woken");
    }
  }
}

// Whoever waited in a shard that was emptied would wait for ever.
void ShmStore::tell_of_losses() {
  std::uint64_t lost = 0;
  for (std::uint32_t i = 0; i < shm::kShardCount; ++i) {
    const std::uint32_t now = backend_.losses(i);
    if (std::exchange(losses_seen_[i], now) != now) lost |= std::uint64_t{1} << i;
  }
  if (lost == 0) return;
  backend_.sink().lost(
      [lost](FileId file) { return (lost >> shm::ShmBackend::shard_of(file) & 1) != 0; });
}

// Once a second: what something may have written over is noticed where nobody stumbles over it.
void ShmStore::look_after_the_table() {
  backend_.mend_header();
  Header& h = backend_.region().header();
  MountSlot& mine = h.mounts[backend_.slot()];
  if (mine.id.load() != mount_id() || mine.pid != static_cast<std::uint32_t>(::getpid()) ||
      mine.believes_ms.load() != options_.believes_ms ||
      (mine.is_service.load() != 0) != options_.is_service) {
    log::error("table {}: this mount's place in it was overwritten; written again", options_.table);
    describe(mine);
    mine.id.store(mount_id(), std::memory_order_release);
  }
  if (mounts_in(h) != h.mount_count.load() && registry_.try_lock()) {
    count_mounts(h);
    registry_.unlock();
  }
  backend_.shrink();
  // A little of the table; all of it again and again. A file with so many locks that they would
  // wait for it is left to verify().
  constexpr std::int64_t kVerifyNs = 2'000'000;
  constexpr std::uint64_t kMostRecords = 2'000;
  const std::int64_t until = monotonic_ns() + kVerifyNs;
  while (monotonic_ns() < until && !verification_.over) {
    if (verify_step(verification_, kMostRecords)) break;
  }
  if (verification_.over) verification_ = {};
}

bool ShmStore::reap_the_dead(bool registry_locked) {
  Header& h = backend_.region().header();
  std::vector<std::pair<MountSlot*, std::uint64_t>> dead;
  for (std::uint32_t i = 0; i < kMaxMounts; ++i) {
    MountSlot& slot = h.mounts[i];
    const std::uint64_t id = slot.id.load(std::memory_order_acquire);
    if (id == 0 || id == mount_id() || registry_.alive(i)) continue;
    // Several survivors may do this at once: ids are never reused, so doing it twice is harmless.
    if (std::exchange(last_reaped_, id) != id) {
      log::warn("the daemon of mount {} (pid {}) is gone: releasing its locks", id, slot.pid);
    }
    // What could not be reaped now is tried again at the next look: the slot stays its own.
    if (reap_mount(id)) dead.emplace_back(&slot, id);
  }
  if (dead.empty()) return false;
  backend_.recount_users();
  // The dead one may have granted somebody's waiter and not rung.
  for (std::uint32_t i = 0; i < shm::kShardCount; ++i) {
    h.ready_shards.fetch_or(std::uint64_t{1} << i);
  }
  backend_.ring_all();
  // Last: if this one dies too, the next one does all of it again. Locked, since who joins counts.
  // Not waited for: who has it may be stopped, and other deaths want to be seen. The next look does
  // it, until then the slot is taken.
  const bool unlock = !registry_locked && registry_.try_lock();
  if (!registry_locked && !unlock) return false;
  for (auto& [slot, id] : dead) {
    if (slot->id.load() != id) continue;
    count_mounts(h, slot);
    slot->id.compare_exchange_strong(id, 0);
  }
  if (unlock) registry_.unlock();
  check_after_reaping();
  return true;
}

// A death is when a broken table would show; a large one takes too long to walk each time.
void ShmStore::check_after_reaping() {
  constexpr std::uint64_t kSmall = 100'000;
  const auto now = stats();
  if (!now || now->grants + now->waiters > kSmall) return;
  if (const auto wrong = verify(); !wrong) {
    log::error("the table could not be checked: {}", wrong.error().message());
  }
}

std::vector<UniqueFd> ShmStore::peers_alive() {
  std::vector<UniqueFd> fds;
  for (const MountSlot& slot : backend_.region().header().mounts) {
    const std::uint64_t id = slot.id.load(std::memory_order_acquire);
    if (id == 0 || id == mount_id()) continue;
    UniqueFd fd{static_cast<int>(::syscall(SYS_pidfd_open, slot.pid, 0))};
    if (fd) fds.push_back(std::move(fd));
  }
  return fds;
}

// Somebody took the registry file away under us. Who mounts next would find nothing, make a second
// table, and both would grant the same lock. So the name is taken by a stand-in: a registry file
// that says "in use" and leads to no memory, which whoever attaches is refused by (ENOENT). Nobody
// can be let in by it: the living know each other by the file that has lost its name.
void ShmStore::keep_the_name() {
  if (stand_in_ ? stand_in_->named() : registry_.named()) return;
  const Result<bool> kept = take_the_name();
  if (name_lost_) return;
  name_lost_ = true;
  if (!kept) {
    log::error("table {}: its name was removed and cannot be taken again ({}); end this mount",
               options_.table, kept.error().message());
  } else if (*kept) {
    log::error("table {}: its name was removed; new mounts are refused until all that use it end",
               options_.table);
  } else {
    log::error(
        "table {}: its name was removed and a new table has it, whose locks are not seen here; end "
        "this mount",
        options_.table);
  }
}

Result<bool> ShmStore::take_the_name() {
  auto fresh = Registry::open(options_.table);
  if (!fresh) return fresh.error();
  if (const auto r = fresh->lock(); !r) return r.error();
  const bool others = fresh->region_name() != region_name_ && anybody_alive(*fresh);
  Result<void> taken;
  if (!others) {
    Region::remove(region_name_);
    taken = fresh->set_region_name(region_name_);
    if (taken) taken = fresh->claim(backend_.slot());
  }
  fresh->unlock();
  if (!taken) return taken.error();
  if (!others) stand_in_ = std::move(*fresh);
  return !others;
}

// A peer's death wakes the poll; its byte in the registry, freed by the kernel, is the proof.
void ShmStore::watch_loop() {
  while (!stopping_.load()) {
    const std::vector<UniqueFd> peers = peers_alive();
    std::vector<pollfd> fds{{poke_.get(), POLLIN, 0}};
    for (const UniqueFd& fd : peers) fds.push_back({fd.get(), POLLIN, 0});
    const bool was_dead = reap_the_dead(false);
    if (was_dead) continue;
    keep_the_name();
    look_after_the_table();
    int timeout = kWatchIntervalMs;
    ::poll(fds.data(), fds.size(), timeout);
    std::uint64_t count = 0;
    while (::read(poke_.get(), &count, sizeof count) > 0) {
    }
    // A dying process lets go of its files a moment after its pidfd says so.
    const bool died =
        std::any_of(fds.begin() + 1, fds.end(), [](const pollfd& p) { return p.revents != 0; });
    for (int tries = 0; died && tries < 1000 && !stopping_.load() && !reap_the_dead(false);
         ++tries) {
      ::usleep(1000);
    }
  }
}

}  // namespace latchfs
