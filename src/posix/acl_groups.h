// The groups that a file's access ACL names (acl(5)).
#pragma once

#include <sys/types.h>

#include <string_view>
#include <vector>

namespace latchfs::posix {

// Of a descriptor, O_PATH or not, by the daemon. None: it has no ACL, or it cannot be read.
[[nodiscard]] std::vector<gid_t> acl_groups(int fd);
// Of the value of system.posix_acl_access (linux/posix_acl_xattr.h); none of what is malformed.
[[nodiscard]] std::vector<gid_t> acl_groups_in(std::string_view value);

}  // namespace latchfs::posix
