// What the handlers of one mount share.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>

#include "base/caller.h"
#include "control/tree.h"
#include "fuse/file_view.h"
#include "fuse/handle_table.h"
#include "fuse/lock_edge.h"
#include "fuse/mount.h"
#include "fuse/open_file.h"
#include "fuse/reply.h"
#include "posix/inode_table.h"
#include "transport/channel.h"
#include "transport/wire.h"

namespace latchfs::fuse {

struct FileSystem : transport::Channel {
  FileSystem(MountConfig c, std::unique_ptr<posix::InodeTable> table, LockService& service,
             ParkingLot& lot);

  // The control tree's directory, or a real entry of that name, which it hides.
  [[nodiscard]] bool is_control_name(std::uint64_t parent, std::string_view name) const {
    return parent == posix::NodeIds::kRoot && name == config.control_name;
  }

  // Whether files open to be read only may be passed through. Any thread; may call become_daemon().
  [[nodiscard]] bool passes_through();
  // Whether reads are served from pages that the kernel keeps of this mount's files.
  [[nodiscard]] bool page_cached();
  [[nodiscard]] control::Serving serving();
  // What the kernel is to do with a file that is being opened.
  [[nodiscard]] transport::wire::OpenWay way_of(const OpenFile& file);

  const MountConfig config;
  const std::unique_ptr<posix::InodeTable> inodes;
  BackingFiles backing{*this};
  HandleTable<OpenFile> files;
  HandleTable<OpenDir> dirs;
  std::atomic<std::uint64_t> opens{0};
  MountFileView view;
  control::Tree tree;
  LockEdge locks;
};

[[nodiscard]] inline FileSystem& file_system(fuse_req_t req) {
  return static_cast<FileSystem&>(*static_cast<transport::Channel*>(::fuse_req_userdata(req)));
}
[[nodiscard]] inline Caller caller_of(fuse_req_t req) {
  const struct fuse_ctx* ctx = ::fuse_req_ctx(req);
  return Caller{ctx->uid, ctx->gid, ctx->pid, ctx->umask};
}

}  // namespace latchfs::fuse
