// What the handlers of one mount share.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string_view>
#include <vector>

#include "base/caller.h"
#include "control/tree.h"
#include "fuse/change_edge.h"
#include "fuse/file_view.h"
#include "fuse/filelocks.h"
#include "fuse/handle_table.h"
#include "fuse/listing_habit.h"
#include "fuse/lock_edge.h"
#include "fuse/mount.h"
#include "fuse/open_file.h"
#include "fuse/recent_listings.h"
#include "fuse/reply.h"
#include "posix/inode_table.h"
#include "transport/channel.h"
#include "transport/wire.h"

namespace latchfs::fuse {

struct FileSystem : transport::Channel {
  FileSystem(MountConfig c, transport::Wanted wanted, std::unique_ptr<posix::InodeTable> table,
             LockService& lock_service, ChangeGate& gate, ParkingLot& lot);

  // The control tree's directory, or a real entry of that name, which it hides.
  [[nodiscard]] bool is_control_name(std::uint64_t parent, std::string_view name) const {
    return parent == posix::NodeIds::kRoot && name == config.control_name;
  }

  // The names of filelocks' side files are made by admins only. (Those that are there are protected
  // as the locked files are.)
  [[nodiscard]] bool may_make(std::string_view name, const Caller& caller) const;

  // Whether what is stored to a shared mapping of the mount's files may be there before, or
  // without, the daemon being asked.
  [[nodiscard]] bool maps_shared();

  // Whether files open to be read only may be passed through. Any thread; may call become_daemon().
  [[nodiscard]] bool passes_through();
  // Whether reads are served from pages that the kernel keeps of this mount's files.
  [[nodiscard]] bool page_cached();
  [[nodiscard]] control::Serving serving();
  // How long the kernel may believe what it is told of a file that looks so, or of a name that is
  // not there: not at all where other mounts may change it. Set-ID bits go when somebody writes,
  // of which the kernel takes no notice (fs/fuse/file.c fuse_direct_write_iter()), so where there
  // are some it always asks. Any thread; as short a time before the answer as may be.
  [[nodiscard]] Timeouts believed(const struct stat& attr) const noexcept;
  [[nodiscard]] Timeouts believed_absence() const noexcept;

  // What the kernel is to do with a file that is being opened.
  [[nodiscard]] transport::wire::OpenWay way_of(const OpenFile& file);

  // Makes the kernel forget the attributes it has of a node. Set once, before the first request.
  std::function<void(std::uint64_t node)> forget_attributes;

  const MountConfig config;
  LockService& service;
  ChangeGate& gate;
  const std::unique_ptr<posix::InodeTable> inodes;
  BackingFiles backing{*this};
  HandleTable<OpenFile> files;
  HandleTable<OpenDir> dirs;
  std::atomic<std::uint64_t> opens{0};
  RecentListings listings;
  ListingHabit habit;
  MountFileView view;
  MountFilelocks filelocks;
  control::Tree tree;
  LockEdge locks;
  ChangeEdge changes;
};

[[nodiscard]] inline FileSystem& file_system(fuse_req_t req) {
  return static_cast<FileSystem&>(*static_cast<transport::Channel*>(::fuse_req_userdata(req)));
}
[[nodiscard]] inline Caller caller_of(fuse_req_t req) {
  const struct fuse_ctx* ctx = ::fuse_req_ctx(req);
  return Caller{ctx->uid, ctx->gid, ctx->pid, ctx->umask};
}

}  // namespace latchfs::fuse
