// The handlers, an op family a file: decode, call down, reply once.
#pragma once

#include "transport/lowlevel.h"

namespace latchfs::fuse {

// op_lookup.cpp
void op_lookup(fuse_req_t req, fuse_ino_t parent, const char* name) noexcept;
void op_forget(fuse_req_t req, fuse_ino_t node, uint64_t count) noexcept;
void op_forget_multi(fuse_req_t req, size_t count, fuse_forget_data* forgets) noexcept;
// op_attr.cpp
void op_getattr(fuse_req_t req, fuse_ino_t node, fuse_file_info* info) noexcept;
void op_setattr(fuse_req_t req, fuse_ino_t node, struct stat* attr, int to_set,
                fuse_file_info* info) noexcept;
void op_readlink(fuse_req_t req, fuse_ino_t node) noexcept;
void op_statfs(fuse_req_t req, fuse_ino_t node) noexcept;
void op_access(fuse_req_t req, fuse_ino_t node, int mask) noexcept;
// op_names.cpp
void op_mknod(fuse_req_t req, fuse_ino_t parent, const char* name, mode_t mode,
              dev_t rdev) noexcept;
void op_mkdir(fuse_req_t req, fuse_ino_t parent, const char* name, mode_t mode) noexcept;
void op_symlink(fuse_req_t req, const char* target, fuse_ino_t parent, const char* name) noexcept;
void op_link(fuse_req_t req, fuse_ino_t node, fuse_ino_t parent, const char* name) noexcept;
void op_unlink(fuse_req_t req, fuse_ino_t parent, const char* name) noexcept;
void op_rmdir(fuse_req_t req, fuse_ino_t parent, const char* name) noexcept;
void op_rename(fuse_req_t req, fuse_ino_t parent, const char* name, fuse_ino_t new_parent,
               const char* new_name, unsigned flags) noexcept;
// op_open.cpp
void op_open(fuse_req_t req, fuse_ino_t node, fuse_file_info* info) noexcept;
void op_create(fuse_req_t req, fuse_ino_t parent, const char* name, mode_t mode,
               fuse_file_info* info) noexcept;
void op_tmpfile(fuse_req_t req, fuse_ino_t parent, mode_t mode, fuse_file_info* info) noexcept;
void op_flush(fuse_req_t req, fuse_ino_t node, fuse_file_info* info) noexcept;
void op_release(fuse_req_t req, fuse_ino_t node, fuse_file_info* info) noexcept;
void op_fsync(fuse_req_t req, fuse_ino_t node, int data_only, fuse_file_info* info) noexcept;
// op_data.cpp
void op_read(fuse_req_t req, fuse_ino_t node, size_t size, off_t offset,
             fuse_file_info* info) noexcept;
void op_write(fuse_req_t req, fuse_ino_t node, const char* data, size_t size, off_t offset,
              fuse_file_info* info) noexcept;
void op_fallocate(fuse_req_t req, fuse_ino_t node, int mode, off_t offset, off_t length,
                  fuse_file_info* info) noexcept;
void op_lseek(fuse_req_t req, fuse_ino_t node, off_t offset, int whence,
              fuse_file_info* info) noexcept;
void op_copy_file_range(fuse_req_t req, fuse_ino_t from, off_t from_offset,
                        fuse_file_info* from_info, fuse_ino_t to, off_t to_offset,
                        fuse_file_info* to_info, size_t size, int flags) noexcept;
// op_dir.cpp
void op_opendir(fuse_req_t req, fuse_ino_t node, fuse_file_info* info) noexcept;
void op_readdir(fuse_req_t req, fuse_ino_t node, size_t size, off_t offset,
                fuse_file_info* info) noexcept;
void op_readdirplus(fuse_req_t req, fuse_ino_t node, size_t size, off_t offset,
                    fuse_file_info* info) noexcept;
void op_releasedir(fuse_req_t req, fuse_ino_t node, fuse_file_info* info) noexcept;
void op_fsyncdir(fuse_req_t req, fuse_ino_t node, int data_only, fuse_file_info* info) noexcept;
// op_xattr.cpp
void op_setxattr(fuse_req_t req, fuse_ino_t node, const char* name, const char* value, size_t size,
                 int flags) noexcept;
void op_getxattr(fuse_req_t req, fuse_ino_t node, const char* name, size_t size) noexcept;
void op_listxattr(fuse_req_t req, fuse_ino_t node, size_t size) noexcept;
void op_removexattr(fuse_req_t req, fuse_ino_t node, const char* name) noexcept;
// op_ioctl.cpp
void op_ioctl(fuse_req_t req, fuse_ino_t node, unsigned command, void* argument,
              fuse_file_info* info, unsigned flags, const void* in, size_t in_size,
              size_t out_size) noexcept;
// op_locks.cpp
void op_getlk(fuse_req_t req, fuse_ino_t node, fuse_file_info* info, struct flock* lk) noexcept;
void op_setlk(fuse_req_t req, fuse_ino_t node, fuse_file_info* info, struct flock* lk,
              int wait) noexcept;
void op_flock(fuse_req_t req, fuse_ino_t node, fuse_file_info* info, int operation) noexcept;

// ops.cpp: all of them, and what is negotiated at INIT. The user data is a FileSystem.
[[nodiscard]] const fuse_lowlevel_ops& operations();

}  // namespace latchfs::fuse
