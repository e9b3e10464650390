#include "fuse/filelock_walk.h"

#include <dirent.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "control/json_input.h"
#include "filelock/mark.h"
#include "filelock/metadata.h"
#include "filelock/side_files.h"
#include "posix/credentials.h"
#include "posix/dir_stream.h"
#include "posix/mount_points.h"
#include "posix/sys.h"

namespace latchfs::fuse {
namespace {

// Names that one page looks at.
constexpr std::uint64_t kMostNames = 20'000;
// Directories open at once, one in the other.
constexpr std::size_t kMostDepth = 1024;

struct Item {
  std::string name;
  bool directory{};  // else: has a side file
  bool operator==(const Item&) const = default;
};

struct Level {
  UniqueFd fd;  // an ordinary descriptor
  std::string path;
  std::vector<Item> items;
  std::size_t next{};
  dev_t dev{};
};

// "/a/b" to "a" and "b".
std::vector<std::string> components(std::string_view path) {
  std::vector<std::string> names;
  while (!path.empty()) {
    const std::size_t start = path.find_first_not_of('/');
    if (start == std::string_view::npos) break;
    path.remove_prefix(start);
    names.emplace_back(path.substr(0, path.find('/')));
    path.remove_prefix(names.back().size());
  }
  return names;
}

// The name of the file that a side file belongs to.
std::optional<std::string> owner_of(std::string_view name) {
  if (!filelock::is_side_name(name)) return std::nullopt;
  return std::string{name.substr(1, name.size() - 1 - std::string_view{".asp-lck"}.size())};
}

bool is_directory(int dir, const posix::DirItem& item) {
  if (item.type != DT_UNKNOWN) return item.type == DT_DIR;
  struct stat st {};
  return ::fstatat(dir, item.name, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISDIR(st.st_mode);
}

// What is to be looked at in a directory, in order, from `from` on.
Result<void> read_level(Level& level, std::string_view from, std::string_view hidden,
                        std::uint64_t& looked_at) {
  UniqueFd copy{::openat(level.fd.get(), ".", O_RDONLY | O_DIRECTORY | O_NOATIME | O_CLOEXEC)};
  if (!copy) return last_errno();
  posix::DirStream stream{std::move(copy)};
  for (;;) {
    const auto item = stream.peek(32768);
    if (!item) return item.error();
    if (*item == nullptr) break;
    const std::string_view name{(*item)->name};
    ++looked_at;
    if (name != "." && name != ".." && name != hidden) {
      if (is_directory(level.fd.get(), **item)) {
        if (name >= from) level.items.push_back({std::string{name}, true});
      } else if (auto owner = owner_of(name); owner && *owner >= from) {
        level.items.push_back({std::move(*owner), false});
      }
    }
    stream.advance();
  }
  std::sort(level.items.begin(), level.items.end(),
            [](const Item& a, const Item& b) { return a.name < b.name; });
  level.items.erase(std::unique(level.items.begin(), level.items.end()), level.items.end());
  return {};
}

// What the metadata says, besides what the mark does.
void add_metadata(const filelock::Metadata& metadata, control::FilelockEntry& entry) {
  entry.user = metadata.user;
  const auto tags = control::parse_flat_object(metadata.tags);
  if (const auto* members = std::get_if<control::Members>(&tags)) entry.tags = *members;
}

}  // namespace

bool FilelockWalk::describe(int dir, const std::string& name, int file, std::string path,
                            control::FilelockEntry& entry) {
  entry = {};
  entry.path = std::move(path);
  std::optional<filelock::Mark> mark;
  if (file >= 0) {
    const auto found = filelock::read_mark(file);
    if (!found) return false;
    mark = *found;
    const auto st = posix::stat_of(file);
    if (st) entry.file = posix::file_id(*st);
  }
  if (mark && mark->kind == filelock::MarkKind::kSide) return false;
  entry.state = "damaged";
  if (mark && mark->kind == filelock::MarkKind::kDamaged) return true;
  if (mark) {
    entry.uid = mark->uid;
    entry.locked_at_ns = mark->locked_at_ns;
    // (By another of the file's names: its side files are beside that one.)
    const auto metadata = filelock::read_metadata(dir, mark->name, mark->id);
    if (metadata) entry.state = "locked";
    if (metadata) add_metadata(*metadata, entry);
    return true;
  }
  // Not locked. Something with the mark of a lock's side file may be there all the same.
  const auto names = filelock::side_names(name);
  if (!names) return false;
  for (const std::string& side_name : {names->metadata, names->backup}) {
    const auto side = filelock::look_at_side(dir, side_name, filelock::LockId{});
    if (!side || side->state != filelock::SideState::kOtherLock || !side->mark) continue;
    entry.state = "orphaned";
    entry.uid = side->mark->uid;
    entry.locked_at_ns = side->mark->locked_at_ns;
    if (const auto metadata = filelock::read_metadata(dir, name, side->mark->id)) {
      add_metadata(*metadata, entry);
    }
    return true;
  }
  return false;
}

Result<control::Filelocks::Page> FilelockWalk::list(std::string_view after, std::uint32_t limit) {
  posix::become_daemon();
  control::Filelocks::Page page;
  std::vector<std::string> from = components(after);
  std::uint64_t looked_at = 0;
  std::vector<Level> stack;
  const int root = inodes_.root()->fd.get();
  Level top;
  top.fd = UniqueFd{::openat(root, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
  if (!top.fd) return last_errno();
  const auto dev = posix::device_of(top.fd.get());
  if (!dev) return dev.error();
  top.dev = *dev;
  if (auto r = read_level(top, from.empty() ? "" : from[0], hidden_, looked_at); !r) {
    return r.error();
  }
  looked_at = 0;  // of what leads to where the page before ended nothing counts: it would end there
  stack.push_back(std::move(top));
  while (!stack.empty()) {
    Level& level = stack.back();
    if (level.next == level.items.size()) {
      stack.pop_back();
      continue;
    }
    const Item item = level.items[level.next++];
    std::string path = level.path + "/" + item.name;
    // On the way to where the page before ended.
    const std::size_t depth = stack.size() - 1;
    const bool on_the_way = depth < from.size() && item.name == from[depth];
    if (!on_the_way) from.resize(std::min(from.size(), depth));
    auto child = inodes_.open_child(level.fd.get(), item.name.c_str());
    if (!item.directory) {
      if (on_the_way && depth + 1 == from.size()) continue;  // listed already
      control::FilelockEntry entry;
      if (describe(level.fd.get(), item.name, child ? child->get() : -1, path, entry)) {
        page.entries.push_back(std::move(entry));
      }
    } else if (child) {
      Level below;
      below.path = path;
      const auto device = posix::device_of(child->get());
      // Another FUSE file system may ask its daemon, which may ask us.
      const bool foreign = device && *device != level.dev &&
                           posix::mounted_type(*device, ::getpid()).rfind("fuse", 0) == 0;
      if (device && !foreign && stack.size() < kMostDepth) {
        below.dev = *device;
        below.fd = UniqueFd{::openat(child->get(), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
        const std::string_view start =
            on_the_way && depth + 1 < from.size() ? std::string_view{from[depth + 1]} : "";
        // What cannot be read is left out, as by find(1).
        if (below.fd && read_level(below, start, "", looked_at)) stack.push_back(std::move(below));
        if (on_the_way) looked_at = 0;
      }
    }
    if (page.entries.size() >= limit || looked_at >= kMostNames) {
      page.next = std::move(path);
      break;
    }
  }
  return page;
}

}  // namespace latchfs::fuse
