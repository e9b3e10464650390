#include "fuse/reply.h"

#include <cstring>

#include "base/log.h"
#include "base/seldom.h"
#include "transport/channel.h"

namespace latchfs::fuse {

namespace {

// At most once a minute.
void note_no_descriptors() noexcept {
  static Seldom once_a_minute{60'000'000'000};
  if (!once_a_minute.due()) return;
  log::error("out of file descriptors (RLIMIT_NOFILE): who opens a file gets ENFILE");
}

}  // namespace

Reply::~Reply() {
  if (req_ == nullptr) return;
  log::error("a request was dropped without an answer; it gets EIO");
  ::fuse_reply_err(req_, EIO);
}

void Reply::error(std::error_code error) noexcept {
  fuse_req_t req = take();
  if (req == nullptr) return;
  int err = error.category() == std::generic_category() ? error.value() : EIO;
  if (err <= 0) err = EIO;
  if (err == ENOSYS) err = EOPNOTSUPP;
  // The daemon's own limit, which the mount's users share: not that of the process that asked.
  if (err == EMFILE) {
    err = ENFILE;
    note_no_descriptors();
  }
  ::fuse_reply_err(req, err);
}

void Reply::done() noexcept {
  if (fuse_req_t req = take()) ::fuse_reply_err(req, 0);
}
void Reply::none() noexcept {
  if (fuse_req_t req = take()) ::fuse_reply_none(req);
}
void Reply::attr(const struct stat& st, double timeout) noexcept {
  if (fuse_req_t req = take()) ::fuse_reply_attr(req, &st, timeout);
}
void Reply::link(const char* target) noexcept {
  if (fuse_req_t req = take()) ::fuse_reply_readlink(req, target);
}
void Reply::bytes(std::string_view data) noexcept {
  if (fuse_req_t req = take()) ::fuse_reply_buf(req, data.data(), data.size());
}
void Reply::written(std::size_t size) noexcept {
  if (fuse_req_t req = take()) ::fuse_reply_write(req, size);
}
void Reply::xattr_size(std::size_t size) noexcept {
  if (fuse_req_t req = take()) ::fuse_reply_xattr(req, size);
}
void Reply::statfs(const struct statvfs& sv) noexcept {
  if (fuse_req_t req = take()) ::fuse_reply_statfs(req, &sv);
}
void Reply::offset(off_t at) noexcept {
  if (fuse_req_t req = take()) ::fuse_reply_lseek(req, at);
}
void Reply::lock(const struct flock& lk) noexcept {
  if (fuse_req_t req = take()) ::fuse_reply_lock(req, &lk);
}
void Reply::ioctl(int result, const void* data, std::size_t size) noexcept {
  if (fuse_req_t req = take()) ::fuse_reply_ioctl(req, result, data, size);
}

void Reply::file_data(int fd, std::size_t size, off_t offset) noexcept {
  fuse_req_t req = take();
  if (req == nullptr) return;
  struct fuse_bufvec data {};
  data.count = 1;
  data.buf[0].size = size;
  data.buf[0].flags = static_cast<enum fuse_buf_flags>(FUSE_BUF_IS_FD | FUSE_BUF_FD_SEEK);
  data.buf[0].fd = fd;
  data.buf[0].pos = offset;
  // A splice goes to /dev/fuse, whoever asked.
  const auto& channel = *static_cast<const transport::Channel*>(::fuse_req_userdata(req));
  ::fuse_reply_data(req, &data,
                    channel.by_rings() ? FUSE_BUF_NO_SPLICE : static_cast<fuse_buf_copy_flags>(0));
}

fuse_entry_param entry_param(const posix::Entry& found, const Timeouts& timeouts) {
  fuse_entry_param param;
  std::memset(&param, 0, sizeof param);
  param.ino = found.node;
  param.generation = found.generation;
  param.attr = found.attr;
  param.attr_timeout = timeouts.attr;
  param.entry_timeout = timeouts.entry;
  return param;
}

bool Reply::entry(const posix::Entry& found, const Timeouts& timeouts) noexcept {
  fuse_req_t req = take();
  if (req == nullptr) return false;
  const fuse_entry_param param = entry_param(found, timeouts);
  return ::fuse_reply_entry(req, &param) == 0;
}

bool Reply::open(const fuse_file_info& info) noexcept {
  fuse_req_t req = take();
  return req != nullptr && ::fuse_reply_open(req, &info) == 0;
}

bool Reply::open(std::uint64_t fh, const transport::wire::OpenWay& way) noexcept {
  fuse_req_t req = take();
  if (req == nullptr) return false;
  const auto answer = transport::wire::open_answer(fh, way);
  return ::fuse_reply_buf(req, answer.data(), answer.size()) == 0;
}

bool Reply::create(const posix::Entry& found, const Timeouts& timeouts, std::uint64_t fh,
                   const transport::wire::OpenWay& way) noexcept {
  fuse_req_t req = take();
  if (req == nullptr) return false;
  const auto answer = transport::wire::create_answer(entry_param(found, timeouts), fh, way);
  return ::fuse_reply_buf(req, answer.data(), answer.size()) == 0;
}

bool Reply::entries(std::string_view data) noexcept {
  fuse_req_t req = take();
  return req != nullptr && ::fuse_reply_buf(req, data.data(), data.size()) == 0;
}

void Reply::no_entry(const Timeouts& timeouts) noexcept {
  if (timeouts.negative <= 0) return error(errno_code(ENOENT));
  fuse_req_t req = take();
  if (req == nullptr) return;
  fuse_entry_param param;
  std::memset(&param, 0, sizeof param);
  param.entry_timeout = timeouts.negative;
  ::fuse_reply_entry(req, &param);
}

}  // namespace latchfs::fuse
