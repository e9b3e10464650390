// The answer to one FUSE request, given exactly once.
//
// Movable: a request that waits parks its Reply and the worker thread goes on. An unanswered Reply
// that is destroyed logs it and answers EIO, so that no caller hangs.
// The answer may free what the request spoke of (the kernel goes on at once): drop every lock
// first.
#pragma once

#include <new>
#include <string_view>
#include <system_error>
#include <utility>

#include "latchfs/result.h"
#include "posix/inode_table.h"
#include "transport/lowlevel.h"
#include "transport/wire.h"

namespace latchfs::fuse {

// How long the kernel may believe what it is told, in seconds.
struct Timeouts {
  double entry{};
  double attr{};
  double negative{};
};

class Reply {
 public:
  explicit Reply(fuse_req_t req) noexcept : req_{req} {}
  Reply(Reply&& o) noexcept : req_{std::exchange(o.req_, nullptr)}, once_{o.once_} {}
  Reply& operator=(Reply&&) = delete;
  Reply(const Reply&) = delete;
  Reply& operator=(const Reply&) = delete;
  ~Reply();

  // Null once answered or moved from.
  [[nodiscard]] fuse_req_t request() const noexcept { return req_; }

  // What this request does is not to be done twice, whatever it fails of.
  void only_once() noexcept { once_ = true; }
  [[nodiscard]] bool again() const noexcept { return !once_; }

  // Each of these answers. ENOSYS would make the kernel never ask again: it is sent as EOPNOTSUPP.
  // After the answer was given, or for a request that wants none, they do nothing.
  void error(std::error_code error) noexcept;
  void done() noexcept;
  void none() noexcept;
  void attr(const struct stat& st, double timeout) noexcept;
  void link(const char* target) noexcept;
  void bytes(std::string_view data) noexcept;
  // Straight from a file, without a copy through the daemon where the kernel can.
  void file_data(int fd, std::size_t size, off_t offset) noexcept;
  void written(std::size_t size) noexcept;
  void xattr_size(std::size_t size) noexcept;
  void statfs(const struct statvfs& sv) noexcept;
  void offset(off_t at) noexcept;
  void lock(const struct flock& lk) noexcept;
  void ioctl(int result, const void* data, std::size_t size) noexcept;

  // These hand a reference or an open file to the kernel. False: it did not take it (the caller
  // was killed meanwhile) and will never give it back.
  [[nodiscard]] bool entry(const posix::Entry& found, const Timeouts& timeouts) noexcept;
  [[nodiscard]] bool open(const fuse_file_info& info) noexcept;
  [[nodiscard]] bool open(std::uint64_t fh, const transport::wire::OpenWay& way) noexcept;
  [[nodiscard]] bool create(const posix::Entry& found, const Timeouts& timeouts, std::uint64_t fh,
                            const transport::wire::OpenWay& way) noexcept;
  [[nodiscard]] bool entries(std::string_view data) noexcept;  // readdirplus

  // "There is no such name", believed for timeouts.negative.
  void no_entry(const Timeouts& timeouts) noexcept;

 private:
  fuse_req_t take() noexcept { return std::exchange(req_, nullptr); }
  fuse_req_t req_;
  bool once_{};
};

[[nodiscard]] fuse_entry_param entry_param(const posix::Entry& found, const Timeouts& timeouts);

// Where the error is that there is no room, gives back what removed files hold. True: try again.
[[nodiscard]] bool made_room(fuse_req_t req, std::error_code error) noexcept;

// A handler: fn answers through the reply, moves it away to answer later, or returns the error.
// Called once more where there was no room, unless Reply::only_once().
template <class Fn>
void answer(fuse_req_t req, Fn&& fn) noexcept {
  Reply reply{req};
  try {
    Result<void> r = fn(reply);
    if (!r && reply.again() && made_room(req, r.error())) r = fn(reply);
    if (!r) reply.error(r.error());
  } catch (const std::bad_alloc&) {
    reply.error(std::make_error_code(std::errc::not_enough_memory));
  } catch (...) {
    reply.error(std::make_error_code(std::errc::io_error));
  }
}

}  // namespace latchfs::fuse
