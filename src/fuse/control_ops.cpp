#include "fuse/control_ops.h"

#include <cstring>

#include "posix/credentials.h"

namespace latchfs::fuse::control_ops {
namespace {

// What the tree says changes by itself.
constexpr Timeouts kNever{};

posix::Entry to_entry(const control::NodeAttr& found) {
  posix::Entry entry;
  entry.node = found.node;
  entry.attr = found.attr;
  return entry;
}

}  // namespace

Result<void> lookup_root(FileSystem& fs, Reply& reply) {
  const auto found = fs.tree.getattr(control::kTreeRoot, caller_of(reply.request()));
  if (!found) return found.error();
  // Not counted: the tree's root is never forgotten.
  static_cast<void>(reply.entry(to_entry(*found), kNever));
  return {};
}

Result<void> lookup(FileSystem& fs, Reply& reply, std::uint64_t parent, const char* name) {
  // The kernel asks for these only on behalf of NFS, which the tree is not exported to by handle.
  if (std::strcmp(name, ".") == 0 || std::strcmp(name, "..") == 0) return errno_code(ESTALE);
  posix::become_daemon();
  const auto found = fs.tree.lookup(parent, name, caller_of(reply.request()));
  if (!found) return found.error();
  if (!reply.entry(to_entry(*found), kNever)) fs.tree.forget(found->node, 1);
  return {};
}

Result<void> getattr(FileSystem& fs, Reply& reply, std::uint64_t node) {
  posix::become_daemon();
  const auto found = fs.tree.getattr(node, caller_of(reply.request()));
  if (!found) return found.error();
  reply.attr(found->attr, 0);
  return {};
}

Result<void> setattr(FileSystem& fs, Reply& reply, std::uint64_t node, const struct stat& attr,
                     int to_set) {
  constexpr int kTimes = FUSE_SET_ATTR_ATIME | FUSE_SET_ATTR_MTIME | FUSE_SET_ATTR_ATIME_NOW |
                         FUSE_SET_ATTR_MTIME_NOW | FUSE_SET_ATTR_CTIME;
  control::Tree::Change change;
  change.mode = (to_set & FUSE_SET_ATTR_MODE) != 0;
  change.owner = (to_set & (FUSE_SET_ATTR_UID | FUSE_SET_ATTR_GID)) != 0;
  change.times = (to_set & kTimes) != 0;
  change.size = (to_set & FUSE_SET_ATTR_SIZE) != 0;
  if (change.size) change.new_size = static_cast<std::uint64_t>(attr.st_size);
  posix::become_daemon();
  const auto now = fs.tree.setattr(node, change, caller_of(reply.request()));
  if (!now) return now.error();
  reply.attr(now->attr, 0);
  return {};
}

Result<void> open(FileSystem& fs, Reply& reply, std::uint64_t node, const fuse_file_info& info) {
  posix::become_daemon();
  const auto fh = fs.tree.open(node, info.flags, caller_of(reply.request()));
  if (!fh) return fh.error();
  fuse_file_info out = info;
  out.fh = *fh;
  // Its content is made when it is read: nothing of it may stay in the page cache.
  out.direct_io = 1;
  if (!reply.open(out)) fs.tree.release(*fh);
  return {};
}

Result<void> read(FileSystem& fs, Reply& reply, std::uint64_t fh, std::size_t size, off_t offset) {
  posix::become_daemon();
  const auto data = fs.tree.read(fh, static_cast<std::uint64_t>(offset), size);
  if (!data) return data.error();
  reply.bytes(*data);
  return {};
}

Result<void> write(FileSystem& fs, Reply& reply, std::uint64_t fh, std::string_view data,
                   off_t offset) {
  posix::become_daemon();
  const auto taken =
      fs.tree.write(fh, static_cast<std::uint64_t>(offset), data, caller_of(reply.request()));
  if (!taken) return taken.error();
  reply.written(*taken);
  return {};
}

Result<void> flush(FileSystem& fs, Reply& reply, std::uint64_t fh) {
  posix::become_daemon();
  if (auto r = fs.tree.flush(fh, caller_of(reply.request())); !r) return r;
  reply.done();
  return {};
}

Result<void> release(FileSystem& fs, Reply& reply, std::uint64_t fh) {
  fs.tree.release(fh);
  reply.done();
  return {};
}

Result<void> opendir(FileSystem& fs, Reply& reply, std::uint64_t node, const fuse_file_info& info) {
  posix::become_daemon();
  auto dir = std::make_shared<OpenDir>(UniqueFd{});
  dir->node = node;
  {
    auto names = fs.tree.readdir(node, caller_of(reply.request()));
    if (!names) return names.error();
    const MutexLock hold{dir->mu};
    dir->names = std::move(*names);
  }
  fuse_file_info out = info;
  out.fh = fs.dirs.insert(std::move(dir));
  if (!reply.open(out)) fs.dirs.remove(out.fh);
  return {};
}

namespace {

Result<std::string> fill(FileSystem& fs, fuse_req_t req, OpenDir& dir, std::size_t size,
                         off_t offset, bool plus) {
  const MutexLock hold{dir.mu};
  if (offset == 0) {
    auto names = fs.tree.readdir(dir.node, caller_of(req));
    if (!names) return names.error();
    dir.names = std::move(*names);
  }
  std::string buffer(size, '\0');
  std::size_t used = 0;
  // Positions 0 and 1 are "." and "..".
  for (auto at = static_cast<std::size_t>(offset); at < dir.names.size() + 2; ++at) {
    const std::string dot = at == 0 ? "." : "..";
    const std::string& name = at < 2 ? dot : dir.names[at - 2].name;
    struct stat st {};
    st.st_ino = at < 2 ? dir.node : dir.names[at - 2].ino;
    st.st_mode = at < 2 ? mode_t{S_IFDIR} : dir.names[at - 2].type;
    const auto next = static_cast<off_t>(at + 1);
    fuse_entry_param param;
    std::memset(&param, 0, sizeof param);  // node 0: a name only, to be looked up when wanted
    param.attr = st;
    char* const to = buffer.data() + used;
    const std::size_t room = buffer.size() - used;
    const std::size_t need =
        plus ? ::fuse_add_direntry_plus(req, to, room, name.c_str(), &param, next)
             : ::fuse_add_direntry(req, to, room, name.c_str(), &st, next);
    if (need > room) break;
    used += need;
  }
  buffer.resize(used);
  return buffer;
}

}  // namespace

Result<void> readdir(FileSystem& fs, Reply& reply, OpenDir& dir, std::size_t size, off_t offset,
                     bool plus) {
  posix::become_daemon();
  const auto data = fill(fs, reply.request(), dir, size, offset, plus);
  if (!data) return data.error();
  reply.bytes(*data);
  return {};
}

}  // namespace latchfs::fuse::control_ops
