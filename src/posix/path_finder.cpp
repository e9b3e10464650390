#include "posix/path_finder.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <linux/openat2.h>
#include <poll.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstdlib>
#include <optional>
#include <string_view>
#include <utility>

#include "base/clock.h"
#include "posix/sys.h"

namespace latchfs::posix {
namespace {

constexpr std::string_view kDeleted = " (deleted)";  // d_path(): the name is gone
constexpr int kTries = 3;                            // against renames under way

struct Facts {
  FileId id;
  std::uint64_t mount{};
  std::uint32_t links{};
  bool directory{};
};

// Cached attributes do: inode and mount do not change, and nobody must be asked (the descriptor
// may by now be a file of a FUSE mount).
std::optional<Facts> facts_of(int dir, const char* name, int flags) {
  struct statx st {};
  if (::statx(dir, name, flags | AT_STATX_DONT_SYNC,
              STATX_TYPE | STATX_INO | STATX_NLINK | STATX_MNT_ID, &st) != 0) {
    return std::nullopt;
  }
  Facts facts;
  facts.id = {makedev(st.stx_dev_major, st.stx_dev_minor), st.stx_ino};
  facts.mount = (st.stx_mask & STATX_MNT_ID) != 0 ? st.stx_mnt_id : 0;
  facts.links = st.stx_nlink;
  facts.directory = S_ISDIR(st.stx_mode);
  return facts;
}

// What follows `directory` in `path`: "" if it is the directory itself, else "/…"; none if the
// path lies elsewhere.
std::optional<std::string_view> rest_below(std::string_view path, std::string_view directory) {
  if (path.substr(0, directory.size()) != directory) return std::nullopt;
  path.remove_prefix(directory.size());
  if (!path.empty() && path.front() != '/') return std::nullopt;
  return path;
}

std::string read_whole(const std::string& path) {
  const UniqueFd fd{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  std::string text;
  char buffer[16384];
  while (fd) {
    const ssize_t got = ::read(fd.get(), buffer, sizeof buffer);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) break;
    text.append(buffer, static_cast<std::size_t>(got));
  }
  return text;
}

}  // namespace

const MountPoint* PathFinder::Mounts::find(std::uint64_t id) const {
  const auto found = by_id.find(id);
  return found == by_id.end() ? nullptr : &list[found->second];
}

PathFinder::PathFinder(int root_fd, FileId root)
    : root_fd_{root_fd},
      root_{root},
      own_mountinfo_{::open("/proc/self/mountinfo", O_RDONLY | O_CLOEXEC)} {
  if (const auto facts = facts_of(root_fd_, "", AT_EMPTY_PATH)) root_mount_ = facts->mount;
}

// ---- mounts

PathFinder::MountsPtr PathFinder::read_mounts(const std::string& path) {
  auto mounts = std::make_shared<Mounts>();
  mounts->read_at_ns = monotonic_ns();
  const std::string text = read_whole(path);
  for (std::size_t begin = 0; begin < text.size();) {
    const auto end = std::min(text.find('\n', begin), text.size());
    MountPoint mount = parse_mount(std::string_view{text}.substr(begin, end - begin));
    begin = end + 1;
    mounts->by_id[mount.id] = mounts->list.size();
    mounts->list.push_back(std::move(mount));
  }
  return mounts;
}

PathFinder::MountsPtr PathFinder::own_mounts() {
  std::uint64_t changes = 0;
  {
    const MutexLock lock{mu_};
    pollfd changed{own_mountinfo_.get(), POLLPRI, 0};
    // The event is told once, so the poll and what follows from it go together.
    if (::poll(&changed, 1, 0) != 0) {
      own_.reset();
      ++changes_;
    }
    if (own_) return own_;
    changes = changes_;
  }
  // Read after the event was taken: mounts that change during the reading give another one.
  auto mounts = read_mounts("/proc/self/mountinfo");
  const MutexLock lock{mu_};
  if (changes == changes_) own_ = mounts;
  return mounts;
}

PathFinder::MountsPtr PathFinder::mounts_of(pid_t pid) {
  constexpr std::int64_t kLifeNs = 100'000'000;
  {
    const MutexLock lock{mu_};
    const auto found = others_.find(pid);
    if (found != others_.end() && monotonic_ns() - found->second->read_at_ns < kLifeNs) {
      return found->second;
    }
  }
  // Not kept open for poll(2): that would keep a namespace alive which nobody uses any more.
  auto mounts = read_mounts(fmt::format("/proc/{}/mountinfo", pid));
  const MutexLock lock{mu_};
  if (others_.size() >= 64) others_.clear();
  others_[pid] = mounts;
  return mounts;
}

std::shared_ptr<const PathFinder::Places> PathFinder::places(bool known) {
  if (known) {
    const MutexLock lock{mu_};
    if (places_) return places_;
  }
  const auto own = own_mounts();
  // The root may have been renamed, or a directory above it.
  const auto text = link_text(fmt::format("/proc/self/fd/{}", root_fd_).c_str());
  auto places = std::make_shared<Places>();
  places->mounts = own;
  if (!text) return places;
  places->root_text = without_end_slash(*text);
  {
    const MutexLock lock{mu_};
    if (places_ && places_->mounts == own && places_->root_text == places->root_text) {
      return places_;
    }
  }
  const MountPoint* root_mount = own->find(root_mount_);
  if (root_mount == nullptr) return places;
  const auto rest = rest_below(places->root_text, root_mount->point);
  if (!rest) return places;
  places->list.push_back({root_mount->device, root_mount->root + std::string{*rest}, "", false});
  for (const MountPoint& mount : own->list) {
    const auto below = rest_below(mount.point, places->root_text);
    if (!below || below->empty()) continue;
    if (mount.fuse) places->fuse.emplace_back(*below);
    places->list.push_back({mount.device, mount.root, std::string{*below}, true});
  }
  const MutexLock lock{mu_};
  places_ = places;
  return places;
}

// ---- files

bool PathFinder::is_file_at(const Place& place, const std::string& below, FileId file) const {
  if (below.empty()) return file == root_;
  open_how how{};
  how.flags = O_PATH | O_NOFOLLOW | O_CLOEXEC;
  how.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS;
  // What lies on the root's own mount is found without leaving it; another mount over a directory
  // on the way hides the file.
  if (!place.crosses) how.resolve |= RESOLVE_NO_XDEV;
  for (int i = 0; i < kTries; ++i) {
    const UniqueFd fd{
        static_cast<int>(::syscall(SYS_openat2, root_fd_, below.c_str() + 1, &how, sizeof how))};
    if (!fd && errno == EAGAIN) continue;  // a rename somewhere; openat2(2)
    if (!fd) return false;
    const auto facts = facts_of(fd.get(), "", AT_EMPTY_PATH);
    return facts && facts->id == file;
  }
  return false;
}

std::optional<std::string> PathFinder::look(const Places& around, const MountPoint& mount,
                                            std::string_view text, FileId file) const {
  const auto full = without_end_slash(std::string{text});
  const auto in_mount = rest_below(full, mount.point);
  if (!in_mount || around.list.empty()) return "";  // not told in terms we know
  const std::string inside = mount.root + std::string{*in_mount};
  bool seen = false;
  for (const Place& place : around.list) {
    if (place.device != mount.device) continue;
    const auto rest = rest_below(inside, place.inside);
    if (!rest) continue;
    seen = true;
    std::string below = place.below + std::string{*rest};
    const bool through_fuse = std::any_of(
        around.fuse.begin(), around.fuse.end(),
        [&below](const std::string& point) { return rest_below(below, point).has_value(); });
    if (!through_fuse && is_file_at(place, below, file)) return below;
  }
  if (!seen) return std::nullopt;
  return "";
}

FoundPath PathFinder::find(pid_t pid, int fd, FileId file) {
  if (file == root_) return {"/", false};
  if (pid <= 0 || fd < 0) return {};
  const std::string name = fmt::format("/proc/{}/fd/{}", pid, fd);
  for (int i = 0; i < kTries; ++i) {
    const auto facts = facts_of(AT_FDCWD, name.c_str(), 0);
    if (!facts || facts->id != file) return {};
    const auto text = link_text(name.c_str());
    // A file opened by handle, its name not in the kernel's cache, is a root of its own.
    if (!text || (*text == "/" && !facts->directory)) return {};

    // First with what is known of the mounts and of the root's name, as a path found is checked.
    // Only what is not found needs it fresh.
    const bool fresh = i > 0;
    const auto around = places(!fresh);
    const MountPoint* mount = around->mounts->find(facts->mount);
    MountsPtr theirs;  // `mount` may lie in it
    if (mount == nullptr && fresh) {
      theirs = mounts_of(pid);
      mount = theirs->find(facts->mount);
    }
    if (mount == nullptr) {
      if (fresh) return {};
      continue;
    }
    auto path = look(*around, *mount, *text, file);
    if (path && !path->empty()) return {std::move(*path), false};
    if (!fresh) continue;
    // A directory has one name, whatever its link count says.
    if (!path) return {"", facts->links <= 1 || facts->directory};
    // Below the root, but not there: removed, hidden, or (so try again) renamed just now.
    const bool gone = text->size() > kDeleted.size() &&
                      text->compare(text->size() - kDeleted.size(), kDeleted.size(), kDeleted) == 0;
    if (gone) return {};
  }
  return {};
}

}  // namespace latchfs::posix
