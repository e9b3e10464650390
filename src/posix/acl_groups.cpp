#include "posix/acl_groups.h"

#include <endian.h>
#include <linux/posix_acl.h>
#include <linux/posix_acl_xattr.h>
#include <sys/xattr.h>

#include <cerrno>
#include <cstring>
#include <string>

#include "posix/sys.h"

namespace latchfs::posix {

std::vector<gid_t> acl_groups_in(std::string_view value) {
  posix_acl_xattr_header header{};
  if (value.size() < sizeof header) return {};
  std::memcpy(&header, value.data(), sizeof header);
  value.remove_prefix(sizeof header);
  if (le32toh(header.a_version) != POSIX_ACL_XATTR_VERSION) return {};
  if (value.size() % sizeof(posix_acl_xattr_entry) != 0) return {};
  std::vector<gid_t> groups;
  for (; !value.empty(); value.remove_prefix(sizeof(posix_acl_xattr_entry))) {
    posix_acl_xattr_entry entry{};
    std::memcpy(&entry, value.data(), sizeof entry);
    if (le16toh(entry.e_tag) == ACL_GROUP) groups.push_back(le32toh(entry.e_id));
  }
  return groups;
}

std::vector<gid_t> acl_groups(int fd) {
  const FdName name{fd};
  std::string value;
  for (;;) {
    const ssize_t size =
        ::getxattr(name.absolute(), "system.posix_acl_access", value.data(), value.size());
    if (size < 0 && errno == ERANGE) {
      value.clear();  // it grew: its size anew
      continue;
    }
    if (size <= 0) return {};
    if (static_cast<std::size_t>(size) <= value.size()) {
      value.resize(static_cast<std::size_t>(size));
      return acl_groups_in(value);
    }
    value.resize(static_cast<std::size_t>(size));
  }
}

}  // namespace latchfs::posix
