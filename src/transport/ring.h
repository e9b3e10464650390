// One thread's io_uring to the FUSE device: liburing, with the two commands of the kernel's
// protocol. Made and used by one thread only (IORING_SETUP_SINGLE_ISSUER).
#pragma once

#include <liburing.h>

#include <cerrno>
#include <cstdint>
#include <memory>

#include "latchfs/result.h"
#include "transport/ring_entry.h"

namespace latchfs::transport {

// Whether an error of the ring or the device says that the mount is gone.
[[nodiscard]] constexpr bool session_is_over(int err) noexcept {
  return err == ENOTCONN || err == ECONNABORTED || err == ENODEV || err == ECANCELED;
}

class Ring {
 public:
  // What has come of something that was submitted.
  struct Completion {
    RingEntry* entry{};  // null: mail
    int result{};        // 0: the entry carries a request; else -errno
  };

  // device: the session's. mail: an eventfd whose writing ends wait(). EPERM (switched off:
  // kernel.io_uring_disabled), ENOSYS, ENOMEM, EINVAL (too old), …
  [[nodiscard]] static Result<std::unique_ptr<Ring>> create(int device, int mail);
  ~Ring();
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;

  // To be told to the kernel by the next submit() or wait().
  // A new entry is made known to the kernel, which may use it at once.
  void add_register(RingEntry& entry) noexcept;
  // The entry's answer is given, and its next request asked for.
  void add_commit(RingEntry& entry) noexcept;

  // EBADR, EINVAL, … if the ring itself is broken.
  [[nodiscard]] Result<void> submit() noexcept;
  // Submits, and sleeps until there is a completion.
  [[nodiscard]] Result<void> wait() noexcept;
  // The next completion, false if there is none.
  [[nodiscard]] bool next(Completion& completion) noexcept;
  [[nodiscard]] bool has_next() noexcept { return io_uring_cq_ready(&ring_) != 0; }

 private:
  explicit Ring(int mail) : mail_{mail} {}
  [[nodiscard]] io_uring_sqe* slot() noexcept;
  void add(RingEntry& entry, std::uint32_t command) noexcept;
  void listen() noexcept;

  const int mail_;
  std::uint64_t mail_count_{};  // the eventfd is read into it
  io_uring ring_{};
};

}  // namespace latchfs::transport
