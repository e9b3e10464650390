// OPENDIR, READDIR, READDIRPLUS, RELEASEDIR, FSYNCDIR.
#include <dirent.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "base/clock.h"
#include "fuse/control_ops.h"
#include "fuse/file_system.h"
#include "fuse/ops.h"
#include "posix/file_io.h"
#include "posix/names.h"

namespace latchfs::fuse {
namespace {

bool is_dot(const char* name) {
  return std::strcmp(name, ".") == 0 || std::strcmp(name, "..") == 0;
}

// One READDIR or READDIRPLUS being answered.
class Listing {
 public:
  Listing(FileSystem& fs, fuse_req_t req, OpenDir& dir, std::size_t size, bool plus)
      : fs_{fs}, req_{req}, dir_{dir}, plus_{plus}, buffer_(size, '\0') {}

  // From a cookie on, until the buffer is full. An error after the first entry comes back with
  // the next request.
  Result<void> fill(off_t offset) {
    const MutexLock hold{dir_.mu};
    if (auto r = dir_.stream.seek(offset); !r) return r;
    if (plus_) choose(offset == 0);
    // Entries take more room in the answer than in getdents64's buffer: 24 bytes a name, or 152.
    const std::size_t expected = plus_ ? buffer_.size() / 4 : buffer_.size();
    for (;;) {
      const auto item = dir_.stream.peek(expected);
      if (!item && used_ == 0) return item.error();
      if (item && *item == nullptr && dir_.told_all) fs_.listings.note(dir_.node, dir_.began);
      if (!item || *item == nullptr) return {};
      if (!hidden((*item)->name) && !add(**item)) return {};
      dir_.stream.advance();
    }
  }

  [[nodiscard]] std::string_view data() const { return {buffer_.data(), used_}; }

  // The kernel did not take the answer.
  void give_back() noexcept {
    for (const std::uint64_t node : referenced_) fs_.inodes->forget(node, 1);
  }

 private:
  bool hidden(const char* name) const { return fs_.is_control_name(dir_.node, name); }

  // False: no room.
  bool add(const posix::DirItem& item) REQUIRES(dir_.mu) {
    const std::size_t room = buffer_.size() - used_;
    // Asked without a buffer it only tells the size: no reference is taken in vain.
    const std::size_t need = plus_
                                 ? ::fuse_add_direntry_plus(req_, nullptr, 0, item.name, nullptr, 0)
                                 : ::fuse_add_direntry(req_, nullptr, 0, item.name, nullptr, 0);
    if (need > room) return false;
    char* const to = buffer_.data() + used_;
    if (plus_) {
      const fuse_entry_param param = look_up(item);
      ::fuse_add_direntry_plus(req_, to, room, item.name, &param, item.next);
    } else {
      const struct stat st = name_only(item);
      ::fuse_add_direntry(req_, to, room, item.name, &st, item.next);
    }
    used_ += need;
    return true;
  }

  struct stat name_only(const posix::DirItem& item) const {
    struct stat st {};
    st.st_ino = fs_.inodes->shown_ino(dir_.dev, item.ino);
    st.st_mode = DTTOIF(item.type);
    return st;
  }

  // Names only, or attributes too.
  void choose(bool from_the_start) REQUIRES(dir_.mu) {
    const std::int64_t now = monotonic_ns();
    if (from_the_start) {
      const Timeouts believed = fs_.believed_absence();
      const auto shortest =
          static_cast<std::int64_t>(std::min(believed.entry, believed.attr) * 1e9);
      // What the kernel believes for long enough that who reads the names can look at them yet, or
      // would believe for no time, need not be told.
      dir_.needless = shortest == 0 || fs_.listings.within(dir_.node, now, shortest / 8 * 7);
      dir_.names_only = dir_.needless;
      dir_.told_all = !dir_.needless;
      dir_.began = now;
    } else if (!dir_.needless) {
      dir_.names_only = !fs_.habit.wants_attributes(now);
      if (dir_.names_only && std::exchange(dir_.told_all, false)) fs_.habit.told_names(dir_.node);
    }
  }

  // Node 0 where there is nothing to refer to ("." and "..", or gone meanwhile), or nothing to
  // tell.
  fuse_entry_param look_up(const posix::DirItem& item) REQUIRES(dir_.mu) {
    if (!is_dot(item.name) && !dir_.names_only) {
      if (const auto found = fs_.inodes->lookup(dir_.node, item.name, item.ino)) {
        referenced_.push_back(found->node);
        return entry_param(*found, fs_.believed(found->attr));
      }
    }
    fuse_entry_param param;
    std::memset(&param, 0, sizeof param);
    param.attr = name_only(item);
    return param;
  }

  FileSystem& fs_;
  fuse_req_t req_;
  OpenDir& dir_;
  const bool plus_;
  std::string buffer_;
  std::size_t used_{};
  std::vector<std::uint64_t> referenced_;
};

void read_directory(fuse_req_t req, fuse_ino_t node, size_t size, off_t offset,
                    const fuse_file_info* info, bool plus) noexcept {
  answer(req, [&](Reply& reply) -> Result<void> {
    FileSystem& fs = file_system(req);
    const auto dir = fs.dirs.find(info->fh);
    if (!dir || dir->node != node) return errno_code(EBADF);
    if (control::is_control(node)) {
      return control_ops::readdir(fs, reply, *dir, size, offset, plus);
    }
    Listing listing{fs, req, *dir, size, plus};
    if (auto r = listing.fill(offset); !r) {
      listing.give_back();
      return r;
    }
    if (!reply.entries(listing.data())) listing.give_back();
    return {};
  });
}

}  // namespace

void op_opendir(fuse_req_t req, fuse_ino_t node, fuse_file_info* info) noexcept {
  answer(req, [&](Reply& reply) -> Result<void> {
    FileSystem& fs = file_system(req);
    if (control::is_control(node)) return control_ops::opendir(fs, reply, node, *info);
    const auto pin = fs.inodes->pin(node);
    if (!pin) return pin.error();
    auto fd = posix::open_directory((*pin)->fd.get(), info->flags);
    if (!fd) return fd.error();
    auto dir = std::make_shared<OpenDir>(std::move(*fd));
    dir->node = node;
    dir->dev = static_cast<dev_t>((*pin)->id.dev);
    fuse_file_info out = *info;
    out.fh = fs.dirs.insert(std::move(dir));
    if (!reply.open(out)) fs.dirs.remove(out.fh);
    return {};
  });
}

void op_readdir(fuse_req_t req, fuse_ino_t node, size_t size, off_t offset,
                fuse_file_info* info) noexcept {
  read_directory(req, node, size, offset, info, false);
}

void op_readdirplus(fuse_req_t req, fuse_ino_t node, size_t size, off_t offset,
                    fuse_file_info* info) noexcept {
  read_directory(req, node, size, offset, info, true);
}

void op_releasedir(fuse_req_t req, fuse_ino_t node, fuse_file_info* info) noexcept {
  static_cast<void>(node);
  answer(req, [&](Reply& reply) -> Result<void> {
    if (!file_system(req).dirs.remove(info->fh)) return errno_code(EBADF);
    reply.done();
    return {};
  });
}

void op_fsyncdir(fuse_req_t req, fuse_ino_t node, int data_only, fuse_file_info* info) noexcept {
  answer(req, [&](Reply& reply) -> Result<void> {
    FileSystem& fs = file_system(req);
    if (!control::is_control(node)) {
      const auto dir = fs.dirs.find(info->fh);
      if (!dir) return errno_code(EBADF);
      // Not under dir->mu: the descriptor does not change, and fsync may take long.
      if (auto r = posix::sync_file(dir->fd(), data_only != 0); !r) return r;
    }
    reply.done();
    return {};
  });
}

}  // namespace latchfs::fuse
