// READ, WRITE, FALLOCATE, LSEEK, COPY_FILE_RANGE: the bytes.
#include <fcntl.h>

#include <algorithm>
#include <array>
#include <span>
#include <string>

#include "fuse/control_ops.h"
#include "fuse/file_system.h"
#include "fuse/ops.h"
#include "posix/credentials.h"
#include "posix/file_io.h"
#include "posix/nfsd_clients.h"
#include "posix/sys.h"

namespace latchfs::fuse {
namespace {

// Smaller reads are copied: a splice through a pipe costs more than that.
constexpr std::size_t kSpliceFrom = 65536;

Result<OpenFilePtr> find_file(FileSystem& fs, const fuse_file_info* info) {
  OpenFilePtr file = fs.files.find(info->fh);
  if (!file) return errno_code(EBADF);
  return file;
}

// Whether a READ that fills the kernel's page cache may be answered. Of files that are passed
// through only sendfile(2) and splice(2) from what is open for writing too use that cache:
// mappings, and who only reads, go to the backing file. Nobody tells the kernel that those pages
// are stale. EINVAL is what makes programs read(2) instead.
//
// The kernel's NFS server does not: it splices what a client of NFSv4 has open for reading and
// writing, and EINVAL is the client's error (fs/nfsd/nfs4xdr.c nfsd4_encode_read()). A client asks
// for attributes before it believes its own cache, and with those the kernel drops the pages of a
// file that changed (FUSE_AUTO_INVAL_DATA), as where nothing is passed through.
bool may_fill_pages(fuse_req_t req, const OpenFile& file) {
  if (file.backing.id() == 0) return true;
  posix::become_daemon();
  return posix::NfsdClients::is_server_thread(caller_of(req).pid);
}

// What the lock edge is asked. Precondition: size > 0.
Result<IoRequest> io_request(IoKind kind, const OpenFilePtr& file, off_t offset, std::size_t size,
                             const fuse_file_info& info, const Caller& caller) {
  const auto begin = static_cast<std::uint64_t>(offset);
  const auto range =
      offset < 0 ? Result<ByteRange>{errno_code(EINVAL)}
                 : ByteRange::from_half_open(begin, std::min(begin + size, ByteRange::kEof));
  if (!range) return range.error();
  IoRequest io;
  io.kind = kind;
  io.file = file->id;
  io.range = *range;
  io.open = file;
  io.owner = info.lock_owner;
  io.nonblocking = (info.flags & O_NONBLOCK) != 0;
  io.caller = caller;
  return io;
}

// Appending goes to the end that the file has now, which other mounts may have moved since the
// kernel took its offset, and may move yet.
Result<void> widen_to_end(IoRequest& io) {
  const auto st = posix::stat_of(io.open->fd.get());
  if (!st) return st.error();
  const auto size = static_cast<std::uint64_t>(st->st_size);
  const auto range = ByteRange::from_half_open(std::min(io.range.begin(), size), ByteRange::kEof);
  if (!range) return range.error();
  io.range = *range;
  return {};
}

// space: of the request that is being handled, empty for one that waited.
Result<void> do_read(Reply& reply, const OpenFile& file, std::size_t size, off_t offset,
                     std::span<char> space) {
  if (space.size() >= size) {
    const auto got = posix::read_at(file.fd.get(), space.data(), size, offset, file.opener);
    if (!got) return got.error();
    reply.bytes({space.data(), *got});
    return {};
  }
  if (size >= kSpliceFrom) {
    if (auto r = posix::become_caller(file.opener); !r) return r;
    reply.file_data(file.fd.get(), size, offset);
    return {};
  }
  std::array<char, kSpliceFrom> buffer;
  const auto got = posix::read_at(file.fd.get(), buffer.data(), size, offset, file.opener);
  if (!got) return got.error();
  reply.bytes({buffer.data(), *got});
  return {};
}

// Pages that were stored to through a shared mapping: by whom, nobody can tell. So everybody who
// could have must be allowed to.
Result<ChangePass> admit_pages(FileSystem& fs, const IoRequest& io) {
  if (fs.changes.is_locked(*io.open)) {
    for (const OpenFilePtr& file : fs.files.all()) {
      if (file->node != io.open->node || !file->writable() || !file->readable()) continue;
      if (const auto pass = fs.changes.admit(*file, io.range, file->opener); !pass) {
        return pass.error();
      }
    }
  }
  return fs.changes.admit(*io.open, io.range, io.open->opener);
}

// The passes end before the answer: who hears that a write is done may count on its lock being
// free.
Result<std::size_t> do_write(FileSystem& fs, const IoRequest& io, bool pages, std::string_view data,
                             off_t offset, int flags) {
  const auto change = pages ? admit_pages(fs, io) : fs.changes.admit(*io.open, io.range, io.caller);
  if (!change) return change.error();
  const auto pass = fs.locks.admit_write(io);
  if (!pass) return pass.error();
  return posix::write_at(io.open->fd.get(), data.data(), data.size(), offset, flags, io.caller);
}

Result<void> do_allocate(FileSystem& fs, const IoRequest& io, int mode, off_t offset,
                         off_t length) {
  const auto change = fs.changes.admit(*io.open, io.range, io.caller);
  if (!change) return change.error();
  const auto pass = fs.locks.admit_write(io);
  if (!pass) return pass.error();
  return posix::allocate(io.open->fd.get(), mode, offset, length, io.caller);
}

}  // namespace

void op_read(fuse_req_t req, fuse_ino_t node, size_t size, off_t offset,
             fuse_file_info* info) noexcept {
  answer(req, [&](Reply& reply) -> Result<void> {
    FileSystem& fs = file_system(req);
    if (control::is_control(node)) return control_ops::read(fs, reply, info->fh, size, offset);
    const auto file = find_file(fs, info);
    if (!file) return file.error();
    // Only who fills pages names no lock owner.
    if (!transport::Channel::request().lock_owner && !may_fill_pages(req, **file)) {
      return errno_code(EINVAL);
    }
    if (size == 0) {
      reply.bytes({});
      return {};
    }
    const auto io = io_request(IoKind::kRead, *file, offset, size, *info, caller_of(req));
    if (!io) return io.error();
    const auto pass = fs.locks.admit_read(*io, reply, [&file, size, offset]() -> LockEdge::Resume {
      return [file = *file, size, offset](Reply later, IoPass) {
        if (auto r = do_read(later, *file, size, offset, {}); !r) later.error(r.error());
      };
    });
    if (!pass) return pass.error();
    if (!*pass) return {};
    return do_read(reply, **file, size, offset, transport::Channel::answer_space());
  });
}

void op_write(fuse_req_t req, fuse_ino_t node, const char* data, size_t size, off_t offset,
              fuse_file_info* info) noexcept {
  answer(req, [&](Reply& reply) -> Result<void> {
    FileSystem& fs = file_system(req);
    if (control::is_control(node)) {
      return control_ops::write(fs, reply, info->fh, {data, size}, offset);
    }
    const auto file = find_file(fs, info);
    if (!file) return file.error();
    if (size == 0) {
      reply.written(0);
      return {};
    }
    auto io = io_request(IoKind::kWrite, *file, offset, size, *info, caller_of(req));
    if (!io) return io.error();
    if (fs.config.mandatory && (info->flags & O_APPEND) != 0) {
      if (auto r = widen_to_end(*io); !r) return r;
    }
    const auto written = do_write(fs, *io, info->writepage != 0, {data, size}, offset, info->flags);
    if (!written) return written.error();
    reply.written(*written);
    return {};
  });
}

void op_fallocate(fuse_req_t req, fuse_ino_t node, int mode, off_t offset, off_t length,
                  fuse_file_info* info) noexcept {
  answer(req, [&](Reply& reply) -> Result<void> {
    FileSystem& fs = file_system(req);
    if (control::is_control(node)) return errno_code(EPERM);
    const auto file = find_file(fs, info);
    if (!file) return file.error();
    if (length <= 0) return errno_code(EINVAL);
    const auto io = io_request(IoKind::kWrite, *file, offset, static_cast<std::size_t>(length),
                               *info, caller_of(req));
    if (!io) return io.error();
    const auto r = do_allocate(fs, *io, mode, offset, length);
    if (!r) return r;
    reply.done();
    return {};
  });
}

void op_lseek(fuse_req_t req, fuse_ino_t node, off_t offset, int whence,
              fuse_file_info* info) noexcept {
  answer(req, [&](Reply& reply) -> Result<void> {
    FileSystem& fs = file_system(req);
    if (control::is_control(node)) return errno_code(EINVAL);
    const auto file = find_file(fs, info);
    if (!file) return file.error();
    const auto at = posix::seek_file((*file)->fd.get(), offset, whence);
    if (!at) return at.error();
    reply.offset(*at);
    return {};
  });
}

void op_copy_file_range(fuse_req_t req, fuse_ino_t from, off_t from_offset,
                        fuse_file_info* from_info, fuse_ino_t to, off_t to_offset,
                        fuse_file_info* to_info, size_t size, int flags) noexcept {
  answer(req, [&](Reply& reply) -> Result<void> {
    FileSystem& fs = file_system(req);
    // The kernel then reads and writes instead, and those requests carry the lock owner that
    // this one lacks (fuse_copy_file_range(), splice_copy_file_range()).
    if (fs.config.mandatory || control::is_control(from) || control::is_control(to)) {
      return errno_code(EOPNOTSUPP);
    }
    const auto source = find_file(fs, from_info);
    if (!source) return source.error();
    const auto target = find_file(fs, to_info);
    if (!target) return target.error();
    // Opened to append, and by F_SETFL, which does not get here, not any more: the daemon's
    // descriptor still is. Writing knows how (posix/file_io.h), so let the kernel write.
    if (((*target)->flags & O_APPEND) != 0) return errno_code(EOPNOTSUPP);
    if (size == 0) {
      reply.written(0);
      return {};
    }
    const auto io = io_request(IoKind::kWrite, *target, to_offset, size, *to_info, caller_of(req));
    if (!io) return io.error();
    const auto change = fs.changes.admit(**target, io->range, io->caller);
    if (!change) return change.error();
    const auto copied =
        posix::copy_range((*source)->fd.get(), from_offset, (*target)->fd.get(), to_offset, size,
                          static_cast<unsigned>(flags), caller_of(req));
    if (!copied) return copied.error();
    reply.written(*copied);
    return {};
  });
}

}  // namespace latchfs::fuse
