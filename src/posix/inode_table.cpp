#include "posix/inode_table.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <malloc.h>
#include <sys/resource.h>
#include <sys/vfs.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <new>

#include "posix/credentials.h"
#include "posix/sys.h"

namespace latchfs::posix {
namespace {

constexpr std::size_t kMostPins = 4096;
constexpr std::uint32_t kIdleTicks = 2;
constexpr auto kTick = std::chrono::seconds{1};
constexpr std::size_t kWorthGivingBack = 16384;  // inodes: about 3 MB

std::size_t default_pins() {
  struct rlimit limit {};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return 256;
  return std::min<std::size_t>(limit.rlim_cur / 4, kMostPins);
}

// What SOURCE is known by from one daemon to the next.
std::string source_text(int root) {
  struct statfs fs {};
  const auto handle = FileHandle::of(root);
  if (!handle || ::fstatfs(root, &fs) != 0) return "";
  std::array<int, 2> id{};
  static_assert(sizeof id == sizeof fs.f_fsid);
  std::memcpy(id.data(), &fs.f_fsid, sizeof id);
  return fmt::format("{:x}:{:x}:{}", id[0], id[1], handle->text());
}

}  // namespace

Result<std::unique_ptr<InodeTable>> InodeTable::create(UniqueFd root, Options options) {
  const auto st = stat_of(root.get());
  if (!st) return st.error();
  if (!S_ISDIR(st->st_mode)) return errno_code(ENOTDIR);
  if (options.max_pins == 0) options.max_pins = default_pins();
  std::unique_ptr<InodeTable> table{new InodeTable{std::move(root), *st, options}};
  if (auto slot = table->devices_.slot_of(st->st_dev, table->root_->fd.get()); !slot) {
    return slot.error();
  }
  table->janitor_ = std::thread{[raw = table.get()] { raw->run_janitor(); }};
  return table;
}

InodeTable::InodeTable(UniqueFd root, const struct stat& st, Options options)
    : root_{std::make_shared<const Pin>(Pin{std::move(root), file_id(st), S_IFDIR})},
      options_{options},
      pins_per_shard_{std::max<std::size_t>(1, options.max_pins / kShards)},
      devices_{options.use_handles,
               DeviceNumbers{options.state, source_text(root_->fd.get()), NodeIds::kDealtSlot}} {}

InodeTable::~InodeTable() {
  {
    const MutexLock hold{janitor_mu_};
    stopping_ = true;
  }
  janitor_cv_.notify_all();
  if (janitor_.joinable()) janitor_.join();
}

void InodeTable::List::remove(Inode& inode) noexcept {
  (inode.newer != nullptr ? inode.newer->older : newest) = inode.older;
  (inode.older != nullptr ? inode.older->newer : oldest) = inode.newer;
  inode.newer = inode.older = nullptr;
  --size;
}

void InodeTable::List::push(Inode& inode) noexcept {
  inode.older = newest;
  (newest != nullptr ? newest->newer : oldest) = &inode;
  newest = &inode;
  ++size;
}

InodeTable::List* InodeTable::list_of_locked(Shard& shard, const Inode& inode) {
  if (inode.keep == Keep::kReferenced) return nullptr;
  return inode.keep == Keep::kGrace ? &shard.grace : &shard.cached;
}

void InodeTable::touch_locked(Shard& shard, Inode& inode) {
  inode.used_at = tick_.load(std::memory_order_relaxed);
  List* const list = list_of_locked(shard, inode);
  if (list == nullptr || list->newest == &inode) return;
  list->remove(inode);
  list->push(inode);
}

InodeTable::Taken InodeTable::set_pin_locked(Shard& shard, Inode& inode, PinPtr pin, Keep keep) {
  if (keep != Keep::kUsed && kept_.fetch_add(1, std::memory_order_relaxed) >= options_.max_pins) {
    kept_.fetch_sub(1, std::memory_order_relaxed);
    keep = Keep::kUsed;
  }
  inode.keep = keep;
  inode.pin = std::move(pin);
  if (inode.name) inode.name->last = inode.pin;
  inode.used_at = tick_.load(std::memory_order_relaxed);
  if (List* const list = list_of_locked(shard, inode)) list->push(inode);
  wake_janitor();
  if (shard.cached.size <= pins_per_shard_) return {};
  return take_pin_locked(shard, *shard.cached.oldest);
}

InodeTable::Taken InodeTable::take_pin_locked(Shard& shard, Inode& inode) noexcept {
  if (!inode.pin) return {};
  if (List* const list = list_of_locked(shard, inode)) list->remove(inode);
  const Keep keep = std::exchange(inode.keep, Keep::kUsed);
  if (keep != Keep::kUsed) kept_.fetch_sub(1, std::memory_order_relaxed);
  return {std::move(inode.pin), keep == Keep::kGrace ? &leaving_ : nullptr};
}

InodeTable::Taken::Taken(PinPtr pin, std::atomic<std::uint32_t>* leaving) noexcept
    : pin_{std::move(pin)}, leaving_{leaving} {
  if (leaving_ != nullptr) leaving_->fetch_add(1);
}

InodeTable::Taken::~Taken() {
  pin_.reset();
  if (leaving_ != nullptr && leaving_->fetch_sub(1) == 1) leaving_->notify_all();
}

Result<PinPtr> InodeTable::pin(std::uint64_t node) {
  if (node == NodeIds::kRoot) return root_;
  Shard& shard = shard_of(node);
  {
    const MutexLock hold{shard.mu};
    const auto it = shard.inodes.find(node);
    if (it == shard.inodes.end()) return errno_code(ESTALE);
    if (it->second.pin) {
      touch_locked(shard, it->second);
      return it->second.pin;
    }
  }
  return repin(node);
}

Result<PinPtr> InodeTable::repin(std::uint64_t node) {
  Shard& shard = shard_of(node);
  FileHandle handle;
  FileId id;
  mode_t type{};
  {
    const MutexLock hold{shard.mu};
    const auto it = shard.inodes.find(node);
    if (it == shard.inodes.end()) return errno_code(ESTALE);
    if (it->second.pin) return it->second.pin;
    if (it->second.name) {
      if (PinPtr last = it->second.name->last.lock()) return last;
    }
    handle = it->second.handle;
    id = it->second.id;
    type = it->second.type;
  }
  become_daemon();
  const unsigned slot = devices_.find(static_cast<dev_t>(id.dev));
  Result<UniqueFd> fd = errno_code(ESTALE);
  if (slot != Devices::kMost && devices_.has_handles(slot)) {
    const auto mount = mount_of(slot);
    if (!mount) return mount.error();
    fd = with_descriptors([&] { return handle.open((*mount)->get()); });
  } else {
    fd = open_by_name(node, id);
  }
  if (!fd) return fd.error();
  auto fresh = std::make_shared<const Pin>(Pin{std::move(*fd), id, type});
  Taken victim;
  const MutexLock hold{shard.mu};
  const auto it = shard.inodes.find(node);
  // Forgotten meanwhile, or its number has a new file: the pin serves this caller only.
  if (it == shard.inodes.end() || it->second.handle != handle) return PinPtr{fresh};
  if (it->second.pin) return it->second.pin;
  victim = set_pin_locked(shard, it->second, fresh);
  return PinPtr{fresh};
}

Result<UniqueFd> InodeTable::open_child(int dir, const char* name) {
  return with_descriptors([&] { return mount_points_.open_child(dir, name); });
}

// Up to the nearest ancestor that has a descriptor, then down again by name. No recursion: trees
// can be deeper than the stack of a worker allows.
Result<Devices::MountPtr> InodeTable::mount_of(unsigned slot) {
  if (auto mount = devices_.mount(slot)) return mount;
  // Closed while nobody used it: in again where it was entered, which is on another device, so this
  // ends at SOURCE's own. Unmounted since: that leads to something else.
  const Devices::Way way = devices_.way(slot);
  if (way.parent == 0) return errno_code(ESTALE);
  const auto dir = pin_again(way.parent);
  if (!dir) return dir.error();
  become_daemon();
  const auto fd = open_child((*dir)->fd.get(), way.name.c_str());
  if (!fd) return fd.error() == errno_code(ENOENT) ? errno_code(ESTALE) : fd.error();
  const auto st = stat_of(fd->get());
  if (!st) return st.error();
  if (st->st_dev != devices_.dev(slot)) return errno_code(ESTALE);
  const auto opened = with_descriptors([&] { return devices_.slot_of(st->st_dev, fd->get()); });
  if (!opened) return opened.error();
  if (auto mount = devices_.mount(slot)) return mount;
  return errno_code(ESTALE);
}

Result<UniqueFd> InodeTable::open_by_name(std::uint64_t node, FileId id) {
  struct Step {
    std::string name;
    FileId id;
  };
  std::vector<Step> steps;
  PinPtr from;
  constexpr std::size_t kDeepest = 4096;  // a parent cycle of stale names ends here
  for (std::uint64_t at = node; !from;) {
    if (at == NodeIds::kRoot) {
      from = root_;
      break;
    }
    Shard& shard = shard_of(at);
    const MutexLock hold{shard.mu};
    const auto it = shard.inodes.find(at);
    if (it == shard.inodes.end() || steps.size() > kDeepest) return errno_code(ESTALE);
    if (it->second.pin && at != node) {
      from = it->second.pin;
    } else if (it->second.name) {
      steps.push_back({it->second.name->name, it->second.id});
      at = it->second.name->parent;
    } else {
      return errno_code(ESTALE);
    }
  }
  UniqueFd fd;
  int dir = from->fd.get();
  for (auto step = steps.rbegin(); step != steps.rend(); ++step) {
    auto next = open_child(dir, step->name.c_str());
    if (!next) return next.error() == errno_code(ENOENT) ? errno_code(ESTALE) : next.error();
    const auto st = stat_of(next->get());
    if (!st) return st.error();
    if (file_id(*st) != step->id) return errno_code(ESTALE);
    fd = std::move(*next);
    dir = fd.get();
  }
  if (!fd || steps.empty() || steps.front().id != id) return errno_code(ESTALE);
  return fd;
}

void InodeTable::forget(std::uint64_t node, std::uint64_t count) noexcept {
  Shard& shard = shard_of(node);
  Taken pin;
  decltype(shard.inodes)::node_type gone;
  {
    const MutexLock hold{shard.mu};
    const auto it = shard.inodes.find(node);
    if (it == shard.inodes.end()) return;
    Inode& inode = it->second;
    inode.references -= std::min(inode.references, count);
    if (inode.references != 0) return;
    pin = take_pin_locked(shard, inode);
    if (NodeIds::dealt(node)) ids_.release(inode.id, node);
    gone = shard.inodes.extract(it);
  }
  wake_janitor();
}

std::uint64_t InodeTable::known(const struct stat& st) {
  if (file_id(st) == root_->id) return NodeIds::kRoot;
  const unsigned slot = devices_.find(st.st_dev);
  const FileId id = file_id(st);
  if (!NodeIds::fits(slot, id.ino)) return 0;
  const std::uint64_t node = ids_.node_of(slot, id);
  Shard& shard = shard_of(node);
  const MutexLock hold{shard.mu};
  return shard.inodes.count(node) != 0 ? node : 0;
}

void InodeTable::removed(UniqueFd fd, const struct stat& st) {
  const std::uint64_t node = known(st);
  if (node == 0 || node == NodeIds::kRoot) return;
  const bool costs = S_ISREG(st.st_mode) && st.st_blocks != 0 && has_handles(st.st_dev);
  auto pin = std::make_shared<const Pin>(Pin{std::move(fd), file_id(st), st.st_mode & S_IFMT});
  Taken old;
  Taken victim;
  Shard& shard = shard_of(node);
  const MutexLock hold{shard.mu};
  const auto it = shard.inodes.find(node);
  if (it == shard.inodes.end()) return;
  old = take_pin_locked(shard, it->second);
  victim =
      set_pin_locked(shard, it->second, std::move(pin), costs ? Keep::kGrace : Keep::kReferenced);
}

void InodeTable::renamed(std::uint64_t node, std::uint64_t parent, std::string_view name) {
  if (node == 0 || node == NodeIds::kRoot) return;
  auto hint = std::make_unique<Name>(Name{parent, std::string{name}});
  Shard& shard = shard_of(node);
  const MutexLock hold{shard.mu};
  const auto it = shard.inodes.find(node);
  if (it == shard.inodes.end() || !it->second.name) return;
  hint->last = std::move(it->second.name->last);
  it->second.name = std::move(hint);
}

bool InodeTable::has_handles(dev_t dev) const noexcept {
  const unsigned slot = devices_.find(dev);
  return slot != Devices::kMost && devices_.has_handles(slot);
}

std::uint64_t InodeTable::shown_ino(dev_t dev, std::uint64_t ino) const noexcept {
  if (static_cast<std::uint64_t>(dev) == root_->id.dev) return ino;
  const unsigned slot = devices_.find(dev);
  if (!NodeIds::fits(slot, ino)) return ino;
  return (static_cast<std::uint64_t>(slot) << NodeIds::kInoBits) | ino;
}

void InodeTable::show(struct stat& st) const noexcept {
  st.st_ino = shown_ino(st.st_dev, st.st_ino);
}

InodeTable::Counts InodeTable::counts() {
  Counts sum;
  for (Shard& shard : shards_) {
    const MutexLock hold{shard.mu};
    sum.inodes += shard.inodes.size();
    sum.pins += shard.cached.size;
  }
  sum.kept = kept_.load(std::memory_order_relaxed);
  return sum;
}

// Out of descriptors: half of each shard's go.
void InodeTable::shed() noexcept {
  for (Shard& shard : shards_) {
    Gone gone;
    const MutexLock hold{shard.mu};
    const std::size_t most = std::min(gone.size(), (shard.cached.size + 1) / 2);
    for (std::size_t i = 0; i < most; ++i) gone[i] = take_pin_locked(shard, *shard.cached.oldest);
  }
}

bool InodeTable::take_idle_locked(Shard& shard, List& list, std::uint32_t ticks,
                                  Gone& gone) noexcept {
  const std::uint32_t now = tick_.load(std::memory_order_relaxed);
  Inode* at = list.oldest;
  for (Taken& pin : gone) {
    // Those without handles stay, and are no more than are cached in a shard.
    while (at != nullptr && at->name) at = at->newer;
    if (at == nullptr || now - at->used_at < ticks) return true;
    pin = take_pin_locked(shard, *std::exchange(at, at->newer));
  }
  return false;
}

void InodeTable::sweep() noexcept {
  for (Shard& shard : shards_) {
    for (bool done = false; !done;) {
      Gone gone;
      Gone expired;
      const MutexLock hold{shard.mu};
      const bool all_gone = take_idle_locked(shard, shard.cached, kIdleTicks, gone);
      done = take_idle_locked(shard, shard.grace, options_.grace, expired) && all_gone;
    }
  }
}

void InodeTable::make_room() noexcept {
  for (Shard& shard : shards_) {
    for (bool done = false; !done;) {
      Gone gone;
      const MutexLock hold{shard.mu};
      done = take_idle_locked(shard, shard.grace, 0, gone);
    }
  }
  // Closing is all that they are about; but when others go on removing it need not be 0 ever.
  std::uint32_t leaving = leaving_.load();
  for (int turns = 0; leaving != 0 && turns < 64; ++turns, leaving = leaving_.load()) {
    leaving_.wait(leaving);
  }
}

// malloc keeps what is free between what is not, and what the threads' heaps end with; the hash
// tables stay as large as they were.
void InodeTable::give_memory_back() noexcept {
  for (Shard& shard : shards_) {
    const MutexLock hold{shard.mu};
    try {
      shard.inodes.rehash(0);
    } catch (const std::bad_alloc&) {
      // As large as it was, then.
    }
  }
#ifdef __GLIBC__
  ::malloc_trim(0);
#endif
}

void InodeTable::run_janitor() {
  std::size_t most = 0;  // inodes since memory was given back
  std::size_t before = 0;
  for (bool open = false;;) {
    const Counts now = counts();
    most = std::max(most, now.inodes);
    if (most - now.inodes >= std::max(kWorthGivingBack, most / 2)) {
      give_memory_back();
      most = now.inodes;
    }
    bool idle = !open && now.pins == 0 && now.kept == 0 && now.inodes == before;
    before = now.inodes;
    if (idle) {
      // Who adds something from here on sees it and wakes us; what was added before is counted.
      janitor_idle_.store(true, std::memory_order_relaxed);
      const Counts again = counts();
      idle = again.pins == 0 && again.kept == 0;
    }
    {
      const MutexLock hold{janitor_mu_};
      if (stopping_) return;
      if (!woken_) janitor_cv_.wait_for(janitor_mu_, idle ? 60 * kTick : kTick);
      if (stopping_) return;
      woken_ = false;
      janitor_idle_.store(false, std::memory_order_relaxed);
    }
    tick_.fetch_add(1, std::memory_order_relaxed);
    sweep();
    open = devices_.close_unused();
  }
}

}  // namespace latchfs::posix
