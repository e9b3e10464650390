// GETLK, SETLK, FLOCK: to the lock edge.
#include <cerrno>

#include "fuse/file_system.h"
#include "fuse/ops.h"
#include "posix/credentials.h"

namespace latchfs::fuse {
namespace {

// Calls fn(reply by value, open file). Files of the control tree have no locks.
template <class Fn>
void with_file(fuse_req_t req, fuse_ino_t node, const fuse_file_info* info, Fn&& fn) noexcept {
  answer(req, [&](Reply& reply) -> Result<void> {
    FileSystem& fs = file_system(req);
    if (control::is_control(node)) return errno_code(EOPNOTSUPP);
    const OpenFilePtr file = fs.files.find(info->fh);
    if (!file) return errno_code(EBADF);
    posix::become_daemon();
    fn(fs.locks, std::move(reply), file);
    return {};
  });
}

}  // namespace

void op_getlk(fuse_req_t req, fuse_ino_t node, fuse_file_info* info, struct flock* lk) noexcept {
  with_file(req, node, info, [&](LockEdge& locks, Reply reply, const OpenFilePtr& file) {
    locks.getlk(std::move(reply), file, info->lock_owner, *lk, caller_of(req));
  });
}

void op_setlk(fuse_req_t req, fuse_ino_t node, fuse_file_info* info, struct flock* lk,
              int wait) noexcept {
  with_file(req, node, info, [&](LockEdge& locks, Reply reply, const OpenFilePtr& file) {
    locks.setlk(std::move(reply), file, info->lock_owner, *lk, wait != 0, caller_of(req));
  });
}

void op_flock(fuse_req_t req, fuse_ino_t node, fuse_file_info* info, int operation) noexcept {
  with_file(req, node, info, [&](LockEdge& locks, Reply reply, const OpenFilePtr& file) {
    locks.flock(std::move(reply), file, info->lock_owner, operation, caller_of(req));
  });
}

}  // namespace latchfs::fuse
