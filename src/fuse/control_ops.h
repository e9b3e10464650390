// Requests on nodes of the control tree (control::is_control), in FUSE's terms. The handlers in
// op_*.cpp hand them over here.
#pragma once

#include "fuse/file_system.h"

namespace latchfs::fuse::control_ops {

Result<void> lookup(FileSystem& fs, Reply& reply, std::uint64_t parent, const char* name);
// The tree's root, looked up in the mount's.
Result<void> lookup_root(FileSystem& fs, Reply& reply);
Result<void> getattr(FileSystem& fs, Reply& reply, std::uint64_t node);
Result<void> setattr(FileSystem& fs, Reply& reply, std::uint64_t node, const struct stat& attr,
                     int to_set);
Result<void> open(FileSystem& fs, Reply& reply, std::uint64_t node, const fuse_file_info& info);
Result<void> read(FileSystem& fs, Reply& reply, std::uint64_t fh, std::size_t size, off_t offset);
Result<void> write(FileSystem& fs, Reply& reply, std::uint64_t fh, std::string_view data,
                   off_t offset);
Result<void> flush(FileSystem& fs, Reply& reply, std::uint64_t fh);
Result<void> release(FileSystem& fs, Reply& reply, std::uint64_t fh);

Result<void> opendir(FileSystem& fs, Reply& reply, std::uint64_t node, const fuse_file_info& info);
// Below files/ with the mirrored directory's own cookies; the root's offsets are positions.
Result<void> readdir(FileSystem& fs, Reply& reply, OpenDir& dir, std::size_t size, off_t offset,
                     bool plus);

}  // namespace latchfs::fuse::control_ops
