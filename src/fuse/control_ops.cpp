#include "fuse/control_ops.h"

#include <dirent.h>

#include <cstring>

#include "posix/caller_status.h"
#include "posix/credentials.h"
#include "posix/nfsd_clients.h"
#include "posix/sys.h"

namespace latchfs::fuse::control_ops {
namespace {

// What the tree says changes by itself.
constexpr Timeouts kNever{};

posix::Entry to_entry(const control::NodeAttr& found) {
  posix::Entry entry;
  entry.node = found.node;
  entry.attr = found.attr;
  entry.generation = found.generation;
  return entry;
}

// Threads of the kernel are root, whoever they work for, but nfsd's, which act as the user who
// asks: what an NFSv4.2 client has the server copy is written by one.
bool is_nobodys(const Caller& caller) {
  if (caller.uid != 0) return false;
  const auto name = posix::kernel_thread_name(caller.pid);
  return name && *name != posix::NfsdClients::kServerThread;
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
  posix::become_daemon();
  const auto found = fs.tree.lookup(parent, name, caller_of(reply.request()));
  if (!found) return found.error();
  if (found->node == posix::NodeIds::kRoot) {  // ".." of the tree
    const auto root = fs.inodes->lookup(posix::NodeIds::kRoot, ".");
    if (!root) return root.error();
    static_cast<void>(reply.entry(*root, kNever));
    return {};
  }
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
  Caller caller = caller_of(reply.request());
  if (is_nobodys(caller)) return errno_code(EACCES);
  // A READ without a lock owner fills the page cache, which is everybody's: for splice(2) and
  // sendfile(2), whose callers read instead if that is refused, and for mappings. The kernel's NFS
  // server splices from Linux 6.5 on (mm/filemap.c filemap_splice_read(), whatever FOPEN_DIRECT_IO
  // says) and reads nothing instead: it is told what everybody may know.
  if (!transport::Channel::request().lock_owner) {
    if (!posix::NfsdClients::is_server_thread(caller.pid)) return errno_code(EINVAL);
    caller = control::kAnybody;
  }
  const auto data = fs.tree.read(fh, static_cast<std::uint64_t>(offset), size, caller);
  if (!data) return data.error();
  reply.bytes(*data);
  return {};
}

Result<void> write(FileSystem& fs, Reply& reply, std::uint64_t fh, std::string_view data,
                   off_t offset) {
  reply.only_once();  // room is made for each of a request's filelocks (MountFilelocks)
  posix::become_daemon();
  const Caller caller = caller_of(reply.request());
  if (is_nobodys(caller)) return errno_code(EACCES);
  const auto taken = fs.tree.write(fh, static_cast<std::uint64_t>(offset), data, caller);
  if (!taken) return taken.error();
  reply.written(*taken);
  return {};
}

Result<void> flush(FileSystem& fs, Reply& reply, std::uint64_t fh) {
  reply.only_once();
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
  UniqueFd fd;
  if (const std::uint64_t of = control::mirrored_node(node); of != 0) {
    auto opened = fs.view.open_directory(of, caller_of(reply.request()));
    if (!opened) return opened.error();
    fd = std::move(*opened);
  }
  auto dir = std::make_shared<OpenDir>(std::move(fd));
  dir->node = node;
  if (dir->fd() >= 0) {
    const auto st = posix::stat_of(dir->fd());
    if (!st) return st.error();
    dir->dev = st->st_dev;
  } else {
    auto names = fs.tree.readdir(node);
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

// The answer to a READDIR or READDIRPLUS, filled until there is no room.
class Names {
 public:
  Names(fuse_req_t req, std::size_t size, bool plus)
      : req_{req}, plus_{plus}, buffer_(size, '\0') {}

  // False: no room.
  bool add(const char* name, std::uint64_t ino, mode_t type, off_t next) {
    struct stat st {};
    st.st_ino = ino;
    st.st_mode = type;
    fuse_entry_param param;
    std::memset(&param, 0, sizeof param);  // node 0: a name only, to be looked up when wanted
    param.attr = st;
    char* const to = buffer_.data() + used_;
    const std::size_t room = buffer_.size() - used_;
    const std::size_t need = plus_ ? ::fuse_add_direntry_plus(req_, to, room, name, &param, next)
                                   : ::fuse_add_direntry(req_, to, room, name, &st, next);
    if (need > room) return false;
    used_ += need;
    return true;
  }
  [[nodiscard]] bool empty() const { return used_ == 0; }
  [[nodiscard]] std::string_view data() const { return {buffer_.data(), used_}; }

 private:
  fuse_req_t req_;
  const bool plus_;
  std::string buffer_;
  std::size_t used_{};
};

// Positions 0 and 1 are "." and "..".
void fill_root(const OpenDir& dir, off_t offset, Names& to) REQUIRES(dir.mu) {
  for (auto at = static_cast<std::size_t>(offset); at < dir.names.size() + 2; ++at) {
    const auto next = static_cast<off_t>(at + 1);
    const bool added = at < 2 ? to.add(at == 0 ? "." : "..", dir.node, S_IFDIR, next)
                              : to.add(dir.names[at - 2].name.c_str(), dir.names[at - 2].ino,
                                       dir.names[at - 2].type, next);
    if (!added) return;
  }
}

// The names of the directory mirrored, with its own cookies. What is no directory there shows here
// as a file.
Result<void> fill_mirror(FileSystem& fs, OpenDir& dir, std::size_t size, off_t offset, Names& to)
    REQUIRES(dir.mu) {
  if (auto r = dir.stream.seek(offset); !r) return r;
  for (;;) {
    const auto item = dir.stream.peek(size);
    if (!item && to.empty()) return item.error();
    if (!item || *item == nullptr) return {};
    const std::string_view name{(*item)->name};
    const bool dots = name == "." || name == "..";
    // What the tree shadows in the mount it shadows here.
    if (!fs.is_control_name(control::mirrored_node(dir.node), name)) {
      constexpr std::uint64_t kBoth = control::kControlBit | control::kMirrorBit;
      const std::uint64_t ino =
          dots ? dir.node : kBoth | fs.inodes->shown_ino(dir.dev, (*item)->ino);
      const mode_t type = (*item)->type == DT_DIR       ? S_IFDIR
                          : (*item)->type == DT_UNKNOWN ? 0
                                                        : S_IFREG;
      if (!to.add((*item)->name, ino, type, (*item)->next)) return {};
    }
    dir.stream.advance();
  }
}

}  // namespace

Result<void> readdir(FileSystem& fs, Reply& reply, OpenDir& dir, std::size_t size, off_t offset,
                     bool plus) {
  posix::become_daemon();
  Names names{reply.request(), size, plus};
  {
    const MutexLock hold{dir.mu};
    if (dir.fd() < 0) {
      fill_root(dir, offset, names);
    } else if (auto r = fill_mirror(fs, dir, size, offset, names); !r) {
      return r;
    }
  }
  reply.bytes(names.data());
  return {};
}

}  // namespace latchfs::fuse::control_ops
