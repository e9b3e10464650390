// LOOKUP, FORGET: the kernel's references to inodes.
#include "base/clock.h"
#include "fuse/control_ops.h"
#include "fuse/file_system.h"
#include "fuse/ops.h"

namespace latchfs::fuse {
namespace {

void forget_one(FileSystem& fs, std::uint64_t node, std::uint64_t count) {
  if (control::is_control(node)) {
    fs.tree.forget(node, count);
  } else {
    fs.inodes->forget(node, count);
  }
}

}  // namespace

void op_lookup(fuse_req_t req, fuse_ino_t parent, const char* name) noexcept {
  answer(req, [&](Reply& reply) -> Result<void> {
    FileSystem& fs = file_system(req);
    if (control::is_control(parent)) return control_ops::lookup(fs, reply, parent, name);
    if (fs.is_control_name(parent, name)) return control_ops::lookup_root(fs, reply);
    const auto found = fs.inodes->lookup(parent, name);
    if (!found) {
      if (found.error() != errno_code(ENOENT)) return found.error();
      reply.no_entry(fs.believed_absence());
      return {};
    }
    fs.habit.looked_up(parent, monotonic_ns);
    if (!reply.entry(*found, fs.believed(found->attr))) fs.inodes->forget(found->node, 1);
    return {};
  });
}

void op_forget(fuse_req_t req, fuse_ino_t node, uint64_t count) noexcept {
  answer(req, [&](Reply& reply) -> Result<void> {
    forget_one(file_system(req), node, count);
    reply.none();
    return {};
  });
}

void op_forget_multi(fuse_req_t req, size_t count, fuse_forget_data* forgets) noexcept {
  answer(req, [&](Reply& reply) -> Result<void> {
    FileSystem& fs = file_system(req);
    for (std::size_t i = 0; i < count; ++i) forget_one(fs, forgets[i].ino, forgets[i].nlookup);
    reply.none();
    return {};
  });
}

}  // namespace latchfs::fuse
