// SETXATTR, GETXATTR, LISTXATTR, REMOVEXATTR. POSIX ACLs are system.posix_acl_*.
#include <linux/limits.h>
#include <sys/stat.h>

#include <algorithm>
#include <string>
#include <string_view>

#include "filelock/mark.h"
#include "fuse/file_system.h"
#include "fuse/ops.h"
#include "posix/attributes.h"

namespace latchfs::fuse {
namespace {

constexpr std::string_view kAccessAcl = "system.posix_acl_access";

bool is_acl(std::string_view name) { return name.rfind("system.posix_acl_", 0) == 0; }

// For the kernel's permission check a file system without ACLs is one whose files have none: any
// other error than ENODATA refuses all but the owner (fs/fuse/acl.c __fuse_get_acl(); EOPNOTSUPP
// counts as none only after an ENOSYS, which would hold for the whole mount). It asks for callers
// of getxattr(2) the same way, so they hear ENODATA as well.
std::error_code without_acl(std::error_code error, std::string_view name) {
  return error == errno_code(EOPNOTSUPP) && is_acl(name) ? errno_code(ENODATA) : error;
}

// The list as of a file without a filelock: each name ends with a NUL.
std::string without_mark(std::string_view names) {
  std::string out;
  while (!names.empty()) {
    const std::string_view name = names.substr(0, names.find('\0'));
    if (!filelock::is_mark_name(name)) out.append(name).push_back('\0');
    names.remove_prefix(std::min(names.size(), name.size() + 1));
  }
  return out;
}

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
    if (control::is_control(node) || filelock::is_mark_name(name)) return errno_code(EPERM);
    FileSystem& fs = file_system(req);
    const auto pin = fs.inodes->pin(node);
    if (!pin) return pin.error();
    const auto leave = fs.changes.admit((*pin)->fd.get(), (*pin)->id, caller_of(req), EACCES);
    if (!leave) return leave.error();
    if (auto r = posix::set_xattr((*pin)->fd.get(), name, value, size, flags, caller_of(req)); !r) {
      return r;
    }
    reply.done();
    return {};
  });
}

void op_getxattr(fuse_req_t req, fuse_ino_t node, const char* name, size_t size) noexcept {
  answer(req, [&](Reply& reply) -> Result<void> {
    const bool control = control::is_control(node);
    if (control && !is_acl(name)) return errno_code(EOPNOTSUPP);
    if (filelock::is_mark_name(name)) return errno_code(ENODATA);
    const std::uint64_t of = control ? control::mirrored_node(node) : node;
    if (of == 0) return errno_code(ENODATA);
    const auto pin = file_system(req).inodes->pin(of);
    if (!pin) return pin.error();
    // Below .locks/files a directory lets in whom it lets in in the mount; a file there has a mode
    // of its own.
    const bool counts = (*pin)->type == S_IFDIR && std::string_view{name} == kAccessAcl;
    if (control && !counts) return errno_code(ENODATA);
    std::string value(std::min<std::size_t>(size, XATTR_SIZE_MAX), '\0');
    const auto length = posix::get_xattr((*pin)->fd.get(), name, value.data(), value.size());
    if (!length) return without_acl(length.error(), name);
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
    return reply_sized(reply, without_mark(*names), size);
  });
}

void op_removexattr(fuse_req_t req, fuse_ino_t node, const char* name) noexcept {
  answer(req, [&](Reply& reply) -> Result<void> {
    if (control::is_control(node) || filelock::is_mark_name(name)) return errno_code(EPERM);
    FileSystem& fs = file_system(req);
    const auto pin = fs.inodes->pin(node);
    if (!pin) return pin.error();
    const auto leave = fs.changes.admit((*pin)->fd.get(), (*pin)->id, caller_of(req), EACCES);
    if (!leave) return leave.error();
    if (auto r = posix::remove_xattr((*pin)->fd.get(), name, caller_of(req)); !r) return r;
    reply.done();
    return {};
  });
}

}  // namespace latchfs::fuse
