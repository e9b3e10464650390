// How requests come from the kernel and answers go back, under libfuse, which stays the codec: by
// /dev/fuse (fuse_session_custom_io()) or, where the kernel has it switched on, by io_uring
// (transport/rings.h). This is the one place that decides.
//
// It makes of INIT's answer what libfuse 3.14 cannot say, tells of a request what libfuse 3.14
// drops, and registers backing files. A newer libfuse that could say these things itself is treated
// alike: what stands on the wire counts.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "latchfs/result.h"
#include "transport/lowlevel.h"
#include "transport/wire.h"

namespace latchfs::transport {

class Rings;

// What is asked of the kernel; it may have less.
struct Wanted {
  bool passthrough{};  // to files of file systems that are not stacked on others themselves
  bool direct_mmap{};  // shared mappings of files opened for direct I/O
  // Requests by io_uring: where it is not to be had, that is worth a warning to who asked for it.
  enum class Rings : std::uint8_t { kNo, kIfOffered, kYes } rings{Rings::kNo};
  unsigned workers{16};  // at most, for each CPU, of rings
};

// What a request carries and libfuse 3.14 does not pass on.
struct RequestFacts {
  std::uint32_t opcode{};
  // The lock owner of READ, WRITE and SETATTR, where the request carries one. Of READ: without it
  // the kernel fills its page cache (fs/fuse/file.c fuse_send_read(), fuse_read_args_fill()).
  std::optional<std::uint64_t> lock_owner;
};

// The user data of a session: derive from it. Thread-safe once attached.
class Channel {
 public:
  explicit Channel(Wanted wanted);
  ~Channel();
  Channel(const Channel&) = delete;
  Channel& operator=(const Channel&) = delete;

  // Between fuse_session_mount() and the loop; fd is the session's device. EBADF, ENOMEM.
  Result<void> attach(fuse_session* session, int fd);
  // From when this returns, no handler runs on a thread of ours (libfuse's loop has threads of its
  // own). Answers still go out. After the loop, before what handlers use is taken down.
  void quiesce() noexcept;
  // Before the session is unmounted and destroyed, when all answers are given; backing files are
  // then gone by themselves.
  void detach() noexcept;

  // How requests come in: "uring", or "dev". As long as the kernel has not said hello: "dev".
  [[nodiscard]] const char* transport() const noexcept { return by_rings() ? "uring" : "dev"; }
  [[nodiscard]] bool by_rings() const noexcept {
    return ring_ready_.load(std::memory_order_acquire);
  }

  // Of the request that the calling thread is handling: handlers only, not what they parked.
  [[nodiscard]] static const RequestFacts& request() noexcept;
  // Where that request's answer can be put so that it need not be copied again, empty where there
  // is no such place. What is put there destroys the data that the request brought.
  [[nodiscard]] static std::span<char> answer_space() noexcept;

  // Whether reads can go straight to the backing file: the kernel has it, the daemon may (it needs
  // CAP_SYS_ADMIN in the first namespace), and a trial worked. After INIT was answered; call it
  // with the daemon's own rights in force.
  [[nodiscard]] bool passthrough() noexcept;
  // Whether that is known, so that asking needs no rights.
  [[nodiscard]] bool settled() const noexcept {
    return trial_.load(std::memory_order_acquire) != Trial::kNotYet;
  }
  [[nodiscard]] bool direct_mmap() const noexcept {
    return (granted_.load(std::memory_order_acquire) & kMmap) != 0;
  }

  // The number under which the kernel knows a regular file that is open here (O_PATH will do).
  // It opens it again for each open file, with the calling thread's rights. EPERM, ELOOP (stacked
  // too deep), EOPNOTSUPP, …
  [[nodiscard]] Result<std::int32_t> open_backing(int fd) noexcept;
  // When no open file was answered with it, or all of those were released.
  void close_backing(std::int32_t id) noexcept;

 private:
  static constexpr unsigned kMmap = 1U;
  static constexpr unsigned kPass = 2U;
  enum class Trial : std::uint8_t { kNotYet, kWorked, kFailed };

  // Not noexcept: at the end libfuse cancels its threads in here, and that unwinds the stack.
  static ssize_t read(int fd, void* buffer, std::size_t size, void* self);
  static ssize_t writev(int fd, iovec* parts, int count, void* self) noexcept;
  ssize_t answer_init(int fd, const iovec* parts, int count) noexcept;
  // Rings for messages as large as INIT's answer lets them be; none where they cannot be had.
  [[nodiscard]] std::unique_ptr<Rings> make_rings(const wire::InitOut& answer) noexcept;
  void handle(char* message, std::size_t size) noexcept;

  const Wanted wanted_;
  fuse_session* session_{};
  std::atomic<int> device_{-1};  // the session's
  // INIT's, while it is not answered; 0 is no request's number.
  std::atomic<std::uint64_t> init_{0};
  std::uint64_t offered_{};  // written before init_
  std::atomic<unsigned> granted_{0};
  std::atomic<Trial> trial_{Trial::kNotYet};
  std::unique_ptr<Rings> rings_;  // made before INIT is answered
  std::atomic<bool> ring_ready_{false};
};

}  // namespace latchfs::transport
