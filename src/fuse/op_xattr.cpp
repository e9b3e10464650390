// SETXATTR, GETXATTR, LISTXATTR, REMOVEXATTR. POSIX ACLs are system.posix_acl_*.
#include <linux/limits.h>

#include <string>

#include "fuse/file_system.h"
#include "fuse/ops.h"
#include "posix/attributes.h"

namespace latchfs::fuse {
namespace {

bool is_acl(std::string_view name) { return name.rfind("system.posix_acl_", 0) == 0; }

// The size when size is 0, else the bytes if they fit.
Result<void> reply_sized(Reply& reply, std::string_view value, std::size_t size) {
  if (size == 0) {
    reply.xattr_size(value.size());
  } else if (value.size() > size) {
    return errno_code(ERANGE);
  } else {
    reply.bytes(value);
  }
  return {};
}

}  // namespace

void op_setxattr(fuse_req_t req, fuse_ino_t node, const char* name, const char* value, size_t size,
                 int flags) noexcept {
  answer(req, [&](Reply& reply) -> Result<void> {
    if (control::is_control(node)) return errno_code(EPERM);
    const auto pin = file_system(req).inodes->pin(node);
    if (!pin) return pin.error();
    if (auto r = posix::set_xattr((*pin)->fd.get(), name, value, size, flags, caller_of(req)); !r) {
      return r;
    }
    reply.done();
    return {};
  });
}

void op_getxattr(fuse_req_t req, fuse_ino_t node, const char* name, size_t size) noexcept {
  answer(req, [&](Reply& reply) -> Result<void> {
    if (control::is_control(node)) return errno_code(is_acl(name) ? ENODATA : EOPNOTSUPP);
    const auto pin = file_system(req).inodes->pin(node);
    if (!pin) return pin.error();
    std::string value(std::min<std::size_t>(size, XATTR_SIZE_MAX), '\0');
    const auto length = posix::get_xattr((*pin)->fd.get(), name, value.data(), value.size());
    if (!length) return length.error();
    if (size == 0) {
      reply.xattr_size(*length);
    } else {
      reply.bytes({value.data(), *length});
    }
    return {};
  });
}

void op_listxattr(fuse_req_t req, fuse_ino_t node, size_t size) noexcept {
  answer(req, [&](Reply& reply) -> Result<void> {
    if (control::is_control(node)) return reply_sized(reply, {}, size);
    const auto pin = file_system(req).inodes->pin(node);
    if (!pin) return pin.error();
    const auto names = posix::list_xattrs((*pin)->fd.get(), caller_of(req));
    if (!names) return names.error();
    return reply_sized(reply, *names, size);
  });
}

void op_removexattr(fuse_req_t req, fuse_ino_t node, const char* name) noexcept {
  answer(req, [&](Reply& reply) -> Result<void> {
    if (control::is_control(node)) return errno_code(EPERM);
    const auto pin = file_system(req).inodes->pin(node);
    if (!pin) return pin.error();
    if (auto r = posix::remove_xattr((*pin)->fd.get(), name, caller_of(req)); !r) return r;
    reply.done();
    return {};
  });
}

}  // namespace latchfs::fuse
