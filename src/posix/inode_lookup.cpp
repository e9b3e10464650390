// LOOKUP and what is like it: from a name, or an open file, to a node that is in the table.
#include <fcntl.h>

#include <cstring>

#include "base/clock.h"
#include "posix/credentials.h"
#include "posix/handle_by_ino.h"
#include "posix/inode_table.h"
#include "posix/sys.h"

namespace latchfs::posix {
namespace {

// What tells an inode number's users apart where there are no handles.
std::uint32_t birth_of(int fd) {
  struct statx sx {};
  if (::statx(fd, "", AT_EMPTY_PATH, STATX_BTIME, &sx) != 0 || (sx.stx_mask & STATX_BTIME) == 0) {
    return 1;
  }
  const std::int64_t words[2] = {sx.stx_btime.tv_sec, sx.stx_btime.tv_nsec};
  return hash32(words, sizeof words);
}

// The time of birth of a file that is held open, if no other file can ever have both it and the
// inode number; else 0. A later user of the number is born after this moment. So all that is
// needed is that the file's own birth lies before it by more than times are exact: the kernel's
// tick (10 ms at most), or the second that an ext4 rounds to whose inodes have no room for more.
// (The clock set back may meet the nanosecond again; the chance is that of a handle's hash.)
std::int64_t telling(std::int64_t birth, std::uint32_t settled) {
  return birth + settled * std::int64_t{1'000'000'000} <= realtime_ns() ? birth : 0;
}

// What could not be found: it is not there, unless nobody can tell now.
std::error_code stale(std::error_code error) {
  return is_for_now(error) ? error : errno_code(ESTALE);
}

// For the kernel's NFS server, which is who asks for "." and "..". It makes ESTALE of all but
// ENOMEM (and ETIMEDOUT), upon which a client gives the file up for good; after ENOMEM it asks
// again. fs/nfsd/nfsfh.c nfsd_set_fh_dentry(); open_by_handle_at(2) does likewise, fs/fhandle.c.
Result<Entry> for_server(Result<Entry> found) {
  if (!found && is_for_now(found.error())) return errno_code(ENOMEM);
  return found;
}

}  // namespace

Result<InodeTable::Identity> InodeTable::identify(int fd, std::uint64_t parent,
                                                  std::string_view name) {
  Identity found;
  std::int64_t birth = 0;
  // A network file system would have to ask for it.
  if (devices_.tells_births(NodeIds::slot_of(parent))) {
    const auto full = full_stat_of(fd, "", AT_EMPTY_PATH);
    if (!full) return full.error();
    found.attr = full->attr;
    birth = full->birth;
  } else {
    const auto st = stat_of(fd);
    if (!st) return st.error();
    found.attr = *st;
  }
  const struct stat* const st = &found.attr;
  if (file_id(*st) == root_->id) {
    found.node = NodeIds::kRoot;
    found.generation = NodeIds::kRootGeneration;
    return found;
  }
  // A file system is entered by a name in a directory of another one.
  const bool crossed = parent != 0 && st->st_dev != devices_.dev(NodeIds::slot_of(parent));
  const auto way = crossed ? Devices::Way{parent, std::string{name}} : Devices::Way{};
  const auto slot = with_descriptors([&] { return devices_.slot_of(st->st_dev, fd, way); });
  if (!slot && is_for_now(slot.error())) return slot.error();
  found.slot = slot ? *slot : NodeIds::kDealtSlot;
  if (NodeIds::fits(found.slot, st->st_ino)) found.node = ids_.node_of(found.slot, file_id(*st));
  const auto handle = FileHandle::of(fd);
  if (!handle && is_for_now(handle.error())) return handle.error();
  if (handle) found.handle = *handle;
  found.generation = generation_of(found.slot, found.handle, fd);
  if (handle && devices_.tells_births(found.slot)) found.birth = telling(birth, options_.settled);
  return found;
}

// Below SOURCE's own file system the same inode number, and even the same generation (snapshots of
// btrfs), may be on several: their identity is mixed in, so that a handle of one is never taken for
// another's, should their numbers be dealt otherwise one day.
std::uint32_t InodeTable::generation_of(unsigned slot, const FileHandle& handle, int fd) const {
  if (handle.empty()) return birth_of(fd);
  if (slot == 0) return handle.generation();
  const std::uint32_t words[2] = {handle.hash(),
                                  slot == NodeIds::kDealtSlot ? 0 : devices_.identity(slot)};
  return hash32(words, sizeof words);
}

Result<Entry> InodeTable::adopt(UniqueFd fd, std::uint64_t parent, std::string_view name) {
  const auto found = identify(fd.get(), parent, name);
  if (!found) return found.error();
  return enter(*found, std::move(fd), parent, name);
}

Result<Entry> InodeTable::adopt_open(int fd, std::uint64_t parent, std::string_view name) {
  const auto found = identify(fd, parent, name);
  if (!found) return found.error();
  if (is_by_handle(*found) && !name.empty()) return enter(*found, UniqueFd{}, parent, name);
  // O_PATH: a second writable descriptor would make the file "text busy" as long as it is kept.
  auto path = with_descriptors(
      [fd] { return opened(::openat(self_fds(), FdName{fd}.c_str(), O_PATH | O_CLOEXEC)); });
  if (!path) return path.error();
  return enter(*found, std::move(*path), parent, name);
}

bool InodeTable::is_by_handle(const Identity& found) const noexcept {
  return found.slot != NodeIds::kDealtSlot && devices_.has_handles(found.slot);
}

Entry InodeTable::enter(Identity found, UniqueFd fd, std::uint64_t parent, std::string_view name) {
  Entry entry{found.node, found.generation, file_id(found.attr), found.attr};
  show(entry.attr);
  if (found.node == NodeIds::kRoot) return entry;

  const bool by_handle = is_by_handle(found);
  if (by_handle && found.slot != 0 && parent != 0 && NodeIds::slot_of(parent) != found.slot) {
    devices_.entered(found.slot, parent, name);
  }
  PinPtr pin;
  if (fd) {
    const mode_t type = found.attr.st_mode & S_IFMT;
    pin = std::make_shared<const Pin>(Pin{std::move(fd), entry.id, type});
  }
  auto hint = by_handle ? nullptr : std::make_unique<Name>(Name{parent, std::string{name}});
  if (found.node != 0) {
    enter_as(found, entry.id, std::move(pin), std::move(hint));
    return entry;
  }
  do {
    found.node = entry.node = ids_.node_of(found.slot, entry.id);
  } while (!enter_as(found, entry.id, std::move(pin), std::move(hint)));
  return entry;
}

bool InodeTable::enter_as(const Identity& found, FileId id, PinPtr&& pin,
                          std::unique_ptr<Name>&& hint) {
  const mode_t type = found.attr.st_mode & S_IFMT;
  Taken old;
  Taken victim;
  Shard& shard = shard_of(found.node);
  const MutexLock hold{shard.mu};
  // Released since it was dealt, and another one dealt: two nodes of one file.
  if (NodeIds::dealt(found.node) && !ids_.keep(id, found.node)) return false;
  const auto [it, fresh] = shard.inodes.try_emplace(found.node);
  Inode& inode = it->second;
  // The number names a new file now: the kernel tells the old one by its generation.
  const bool rebound =
      !fresh && (inode.generation != found.generation || inode.handle != found.handle);
  if (rebound) old = take_pin_locked(shard, inode);
  if (fresh || rebound) {
    inode.node = found.node;
    inode.id = id;
    inode.handle = found.handle;
    inode.generation = found.generation;
    inode.type = type;
    inode.birth = 0;
  }
  if (found.birth != 0) inode.birth = found.birth;
  ++inode.references;
  if (hint) {
    if (inode.name) hint->last = std::move(inode.name->last);
    inode.name = std::move(hint);
  }
  if (inode.pin) {
    touch_locked(shard, inode);
  } else if (pin) {
    victim = set_pin_locked(shard, inode, std::move(pin));
  }
  return true;
}

// What a descriptor and a handle would tell, from statx(2) alone. Whatever is not certain is left
// to them: another device's or a mounted directory, files without handle, young ones.
//
// A wrong file is not to be had by it in any case: a node is opened by its handle, which names the
// one file, and what is pinned keeps its number. At worst, after what telling() says is impossible,
// a name would lead to a node that is gone: ESTALE, and the kernel looks the name up.
std::optional<Entry> InodeTable::recognise(const Pin& dir, const char* name, std::uint64_t ino) {
  const auto dev = static_cast<dev_t>(dir.id.dev);
  // As for any file that is met: a device that is in use is kept, one that has gone is noticed.
  const auto slot = devices_.slot_of(dev, dir.fd.get());
  if (!slot || !devices_.has_handles(*slot) || !devices_.tells_births(*slot)) return {};
  if (!NodeIds::fits(*slot, ino)) return {};
  const std::uint64_t node = ids_.node_of(*slot, {dir.id.dev, ino});
  Shard& shard = shard_of(node);
  std::int64_t birth = 0;
  {
    const MutexLock hold{shard.mu};
    const auto it = shard.inodes.find(node);
    if (it != shard.inodes.end()) birth = it->second.birth;
  }
  if (birth == 0) return {};
  // DONT_SYNC is nothing to local file systems. But if something is mounted on the name, it is not
  // asked: it may be this daemon's own mount.
  const auto now =
      full_stat_of(dir.fd.get(), name, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | AT_STATX_DONT_SYNC);
  if (!now || now->may_be_a_mount || now->birth != birth) return {};
  Entry entry{node, 0, file_id(now->attr), now->attr};
  if (entry.id != FileId{dir.id.dev, ino}) return {};
  show(entry.attr);
  const MutexLock hold{shard.mu};
  const auto it = shard.inodes.find(node);
  // Forgotten meanwhile, or it is another file's already. (As to the birth that was read before the
  // statx(2): it is of a file that was there then, and so of this one or of none that is.)
  if (it == shard.inodes.end() || it->second.birth != birth) return {};
  Inode& inode = it->second;
  if (inode.name || inode.type != (entry.attr.st_mode & S_IFMT)) return {};
  entry.generation = inode.generation;
  ++inode.references;
  if (inode.pin) touch_locked(shard, inode);
  return entry;
}

Result<Entry> InodeTable::lookup(std::uint64_t parent, const char* name, std::uint64_t listed) {
  if (std::strcmp(name, ".") == 0) return for_server(self(parent));
  if (std::strcmp(name, "..") == 0) return for_server(parent_of(parent));
  if (std::strchr(name, '/') != nullptr || *name == '\0') return errno_code(EINVAL);
  const auto dir = pin(parent);
  if (!dir) return dir.error();
  become_daemon();
  if (listed != 0) {
    if (const auto known = recognise(**dir, name, listed)) return *known;
  }
  auto fd = open_child((*dir)->fd.get(), name);
  if (!fd) return fd.error();
  return adopt(std::move(*fd), parent, name);
}

Result<Entry> InodeTable::self(std::uint64_t node) {
  if (node == NodeIds::kRoot) {
    const auto st = stat_of(root_->fd.get());
    if (!st) return st.error();
    Entry entry{node, NodeIds::kRootGeneration, root_->id, *st};
    show(entry.attr);
    return entry;
  }
  Entry entry;
  {
    // Reference first: a FORGET may be on its way.
    Shard& shard = shard_of(node);
    const MutexLock hold{shard.mu};
    const auto it = shard.inodes.find(node);
    if (it != shard.inodes.end()) {
      ++it->second.references;
      entry.node = node;
      entry.generation = it->second.generation;
      entry.id = it->second.id;
    }
  }
  if (entry.node == 0) return unknown_self(node);
  const auto known = pin(node);
  if (!known && known.error() == errno_code(ESTALE)) {
    // That one is gone; its number may be another file's by now, which may be the one asked for.
    forget(node, 1);
    return unknown_self(node);
  }
  auto st = known ? stat_of((*known)->fd.get()) : Result<struct stat>{known.error()};
  // Its number may have become the next file's since it was read.
  if (st && !is_still(node, entry.generation)) st = errno_code(ESTALE);
  if (!st) {
    forget(node, 1);
    return st.error();
  }
  entry.attr = *st;
  show(entry.attr);
  return entry;
}

bool InodeTable::is_still(std::uint64_t node, std::uint32_t generation) {
  Shard& shard = shard_of(node);
  const MutexLock hold{shard.mu};
  const auto it = shard.inodes.find(node);
  return it != shard.inodes.end() && it->second.generation == generation;
}

Result<PinPtr> InodeTable::pin_of(FileId id) {
  if (id == root_->id) return root_;
  const unsigned slot = devices_.find(static_cast<dev_t>(id.dev));
  if (!NodeIds::fits(slot, id.ino)) return errno_code(ESTALE);
  return pin_again(ids_.node_of(slot, id));
}

Result<PinPtr> InodeTable::pin_again(std::uint64_t node) {
  if (auto held = pin(node); held || node == NodeIds::kRoot) return held;
  const auto entry = self(node);
  if (!entry) return entry.error();
  auto held = pin(node);
  forget(node, 1);
  return held;
}

Result<void> InodeTable::enter_remembered(unsigned slot) {
  // From one file system into the next; what is written over may lead in circles.
  constexpr int kDeepest = 16;
  static thread_local int depth = 0;
  struct Deeper {
    Deeper() { ++depth; }
    ~Deeper() { --depth; }
    Deeper(const Deeper&) = delete;
    Deeper& operator=(const Deeper&) = delete;
  };
  if (depth == kDeepest) return errno_code(ESTALE);
  const Deeper deeper;
  const auto way = with_descriptors([&] { return devices_.remembered(slot, monotonic_ns()); });
  if (!way) return way.error();
  const auto met = meet(*way);
  if (met && *met == slot) return {};
  if (met || !is_for_now(met.error())) devices_.not_there(slot, monotonic_ns());
  return met ? errno_code(ESTALE) : stale(met.error());
}

Result<unsigned> InodeTable::meet(const Devices::Way& way) {
  if (!NodeIds::possible(way.parent)) return errno_code(ESTALE);
  const auto dir = pin_again(way.parent);
  if (!dir) return dir.error();
  become_daemon();
  auto fd = open_child((*dir)->fd.get(), way.name.c_str());
  if (!fd) return fd.error();
  const auto found = identify(fd->get(), way.parent, way.name);
  if (!found) return found.error();
  return found->slot;
}

Result<Entry> InodeTable::unknown_self(std::uint64_t node) {
  const unsigned slot = NodeIds::slot_of(node);
  if (!NodeIds::possible(node) || NodeIds::dealt(node)) return errno_code(ESTALE);
  if (devices_.dev(slot) == 0) {
    if (const auto entered = enter_remembered(slot); !entered) return entered.error();
  }
  if (!devices_.has_handles(slot)) return errno_code(ESTALE);
  become_daemon();
  const auto mount = mount_of(slot);
  if (!mount) return stale(mount.error());
  const auto handle = handle_by_ino((*mount)->get(), NodeIds::ino_of(node));
  if (!handle) return stale(handle.error());
  auto fd = with_descriptors([&] { return handle->open((*mount)->get()); });
  if (!fd) return stale(fd.error());
  const auto found = identify(fd->get(), 0, {});
  if (!found) return stale(found.error());
  if (found->attr.st_dev != devices_.dev(slot) || found->attr.st_ino != NodeIds::ino_of(node)) {
    return errno_code(ESTALE);
  }
  if (S_ISDIR(found->attr.st_mode)) {
    if (auto below = check_below_root(fd->get()); !below) return below.error();
  }
  return enter(*found, std::move(*fd), 0, {});
}

Result<Entry> InodeTable::parent_of(std::uint64_t node) {
  if (node == NodeIds::kRoot) return self(node);
  auto held = self(node);  // known or not
  if (!held) return held.error();
  const auto dir = pin(node);
  forget(node, 1);
  if (!dir) return dir.error();
  become_daemon();
  if (auto below = check_below_root((*dir)->fd.get()); !below) return below.error();
  auto up = open_parent((*dir)->fd.get());
  if (!up) return up.error();
  return adopt(std::move(*up), 0, {});
}

Result<void> InodeTable::check_below_root(int dir) {
  UniqueFd up;
  FileId before{};
  for (int at = dir;;) {
    const auto st = stat_of(at);
    if (!st) return st.error();
    if (file_id(*st) == root_->id) return {};
    if (file_id(*st) == before) return errno_code(ESTALE);  // "/": came by another way
    before = file_id(*st);
    auto next = open_parent(at);
    if (!next) return next.error();
    up = std::move(*next);
    at = up.get();
  }
}

Result<UniqueFd> InodeTable::open_parent(int dir) {
  return with_descriptors(
      [dir] { return opened(::openat(dir, "..", O_PATH | O_DIRECTORY | O_CLOEXEC)); });
}

}  // namespace latchfs::posix
