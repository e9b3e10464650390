#include "transport/channel.h"

#include <fcntl.h>
#include <linux/fuse.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "base/log.h"
#include "base/unique_fd.h"
#include "transport/ring_handler.h"
#include "transport/rings.h"
#include "transport/wire.h"

namespace latchfs::transport {
namespace {

thread_local RequestFacts t_request;

template <class Body>
bool take_body(const void* message, std::size_t size, Body& body) {
  if (size < sizeof(fuse_in_header) + sizeof body) return false;
  std::memcpy(&body, static_cast<const char*>(message) + sizeof(fuse_in_header), sizeof body);
  return true;
}

RequestFacts facts_of(const fuse_in_header& header, const void* message, std::size_t size) {
  RequestFacts facts;
  facts.opcode = header.opcode;
  switch (header.opcode) {
    case FUSE_READ: {
      fuse_read_in in{};
      if (take_body(message, size, in) && (in.read_flags & FUSE_READ_LOCKOWNER) != 0) {
        facts.lock_owner = in.lock_owner;
      }
      break;
    }
    case FUSE_WRITE: {
      fuse_write_in in{};
      if (take_body(message, size, in) && (in.write_flags & FUSE_WRITE_LOCKOWNER) != 0) {
        facts.lock_owner = in.lock_owner;
      }
      break;
    }
    case FUSE_SETATTR: {
      fuse_setattr_in in{};
      if (take_body(message, size, in) && (in.valid & FATTR_LOCKOWNER) != 0) {
        facts.lock_owner = in.lock_owner;
      }
      break;
    }
    default:
      break;
  }
  return facts;
}

// fuse_init_in with its flags2: older headers end before.
struct InitIn {
  std::uint32_t major, minor, max_readahead, flags, flags2;
};
using wire::InitOut;
static_assert(sizeof(InitOut) == sizeof(fuse_init_out));
static_assert(offsetof(InitOut, max_write) == offsetof(fuse_init_out, max_write));
static_assert(offsetof(InitOut, max_pages) == offsetof(fuse_init_out, max_pages));
static_assert(offsetof(InitOut, flags2) == offsetof(fuse_init_out, flags2));

std::uint64_t flags_offered(const void* message, std::size_t size) {
  std::array<std::uint32_t, 4> head{};
  if (!take_body(message, size, head)) return 0;
  std::uint64_t flags = head[3];
  InitIn in{};
  if ((flags & wire::kInitExt) != 0 && take_body(message, size, in)) {
    flags |= static_cast<std::uint64_t>(in.flags2) << 32;
  }
  return flags;
}

#if FUSE_VERSION >= FUSE_MAKE_VERSION(3, 17)
int clone_device(int of) {
  UniqueFd fd{::open("/dev/fuse", O_RDWR | O_CLOEXEC)};
  auto number = static_cast<std::uint32_t>(of);
  if (!fd || ::ioctl(fd.get(), FUSE_DEV_IOC_CLONE, &number) != 0) return -1;
  return fd.release();
}
#endif

}  // namespace

Channel::Channel(Wanted wanted) : wanted_{wanted} {}
Channel::~Channel() = default;

Result<void> Channel::attach(fuse_session* session, int fd) {
  fuse_custom_io io{};
  io.read = &Channel::read;
  io.writev = &Channel::writev;
  io.splice_receive = [](int in, off_t* in_at, int out, off_t* out_at, std::size_t size,
                         unsigned flags,
                         void*) { return ::splice(in, in_at, out, out_at, size, flags); };
  io.splice_send = io.splice_receive;
#if FUSE_VERSION >= FUSE_MAKE_VERSION(3, 17)
  // Else it would have only this one descriptor for all its threads.
  io.clone_fd = clone_device;
  const int err = ::fuse_session_custom_io_317(session, &io, sizeof io, fd);
#else
  const int err = ::fuse_session_custom_io(session, &io, fd);
#endif
  if (err != 0) {
    return errno_code(err < 0 ? -err : ENOMEM);
  }
  session_ = session;
  device_ = fd;
  return {};
}

void Channel::quiesce() noexcept {
  if (rings_) rings_->quiesce();
}

void Channel::detach() noexcept {
  if (rings_) rings_->stop();
  device_ = -1;
}

const RequestFacts& Channel::request() noexcept { return t_request; }

std::span<char> Channel::answer_space() noexcept { return RingHandler::answer_space(); }

void Channel::handle(char* message, std::size_t size) noexcept {
  fuse_in_header header;
  std::memcpy(&header, message, sizeof header);
  t_request = facts_of(header, message, size);
  fuse_buf buffer{};
  buffer.mem = message;
  buffer.size = size;
  ::fuse_session_process_buf(session_, &buffer);
}

ssize_t Channel::read(int fd, void* buffer, std::size_t size, void* self) {
  auto& channel = *static_cast<Channel*>(self);
  for (;;) {
    const ssize_t got = ::read(fd, buffer, size);
    if (got < static_cast<ssize_t>(sizeof(fuse_in_header))) return got;
    const auto length = static_cast<std::size_t>(got);
    fuse_in_header header;
    std::memcpy(&header, buffer, sizeof header);
    t_request = facts_of(header, buffer, length);
    if (header.opcode == FUSE_INIT) {
      channel.offered_ = flags_offered(buffer, length);
      channel.init_.store(header.unique, std::memory_order_release);
    }
    if (header.opcode != FUSE_INTERRUPT || !channel.ring_ready_.load(std::memory_order_acquire)) {
      return got;
    }
    // Of a request that came by a ring, libfuse knows the number that we gave it.
    fuse_interrupt_in body;
    if (!take_body(buffer, length, body)) return got;
    const auto number = channel.rings_->interrupted(body.unique);
    if (!number) continue;
    body.unique = *number;
    std::memcpy(static_cast<char*>(buffer) + sizeof header, &body, sizeof body);
    return got;
  }
}

ssize_t Channel::writev(int fd, iovec* parts, int count, void* self) noexcept {
  auto& channel = *static_cast<Channel*>(self);
  if (count > 0 && parts[0].iov_len >= sizeof(fuse_out_header)) {
    fuse_out_header header;
    std::memcpy(&header, parts[0].iov_base, sizeof header);
    if (is_ring_number(header.unique)) {
      return channel.rings_->answer(header.unique, parts, count);
    }
    const std::uint64_t init = channel.init_.load(std::memory_order_acquire);
    if (init != 0 && header.unique == init && header.error == 0 &&
        header.len == sizeof header + sizeof(InitOut)) {
      channel.init_.store(0, std::memory_order_relaxed);
      return channel.answer_init(fd, parts, count);
    }
  }
  return ::writev(fd, parts, count);
}

ssize_t Channel::answer_init(int fd, const iovec* parts, int count) noexcept {
  std::array<char, sizeof(fuse_out_header) + sizeof(InitOut)> message{};
  std::size_t at = 0;
  for (int i = 0; i < count; ++i) {
    const std::size_t size = std::min(parts[i].iov_len, message.size() - at);
    std::memcpy(message.data() + at, parts[i].iov_base, size);
    at += size;
  }
  InitOut out{};
  std::memcpy(&out, message.data() + sizeof(fuse_out_header), sizeof out);
  unsigned granted = 0;
  const auto grant = [&](std::uint64_t flag, unsigned bit) {
    if ((offered_ & flag) == 0) return;
    out.flags |= static_cast<std::uint32_t>(flag | wire::kInitExt);
    out.flags2 |= static_cast<std::uint32_t>(flag >> 32);
    granted |= bit;
  };
  // Else a cached write asks for security.capability first, each time. Set-ID bits and capabilities
  // go on the backing file: who handles a request has its caller's rights.
  grant(wire::kHandleKillprivV2, 0);
  if (wanted_.direct_mmap) grant(wire::kDirectIoAllowMmap, kMmap);
  if (wanted_.passthrough) grant(wire::kPassthrough, kPass);
  if ((granted & kPass) != 0) out.max_stack_depth = 1;
  if (wanted_.rings != Wanted::Rings::kNo) {
    if ((offered_ & wire::kOverIoUring) == 0) {
      if (wanted_.rings == Wanted::Rings::kYes) {
        log::warn(
            "the kernel does not offer FUSE over io_uring, /dev/fuse it is: it wants Linux 6.14, "
            "and Y in /sys/module/fuse/parameters/enable_uring");
      }
    } else if ((rings_ = make_rings(out))) {
      grant(wire::kOverIoUring, 0);
    }
  }
  std::memcpy(message.data() + sizeof(fuse_out_header), &out, sizeof out);
  // Before the kernel knows: its next request is another thread's.
  granted_.store(granted, std::memory_order_release);
  const ssize_t written = ::write(fd, message.data(), message.size());
  if (rings_ && written > 0) {
    // Before the first request can come by one.
    ring_ready_.store(true, std::memory_order_release);
    if (const auto started = rings_->start(); !started) {
      ring_ready_.store(false, std::memory_order_release);
      log::warn("the kernel refuses io_uring for FUSE, /dev/fuse it is: {}",
                started.error().message());
    }
  }
  return written;
}

std::unique_ptr<Rings> Channel::make_rings(const InitOut& answer) noexcept {
  // fs/fuse/dev_uring.c fuse_uring_create().
  constexpr std::size_t kLeast = 8192;
  const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  Rings::Config config;
  config.device = device_;
  config.payload = std::max({kLeast, std::size_t{answer.max_write}, answer.max_pages * page});
  config.most_workers = wanted_.workers;
  config.handle = [this](char* message, std::size_t size) { handle(message, size); };
  try {
    auto rings = Rings::create(std::move(config));
    if (rings) return std::move(*rings);
    log::warn("no io_uring for FUSE, /dev/fuse it is: {}", rings.error().message());
  } catch (const std::exception& e) {
    log::warn("no io_uring for FUSE, /dev/fuse it is: {}", e.what());
  }
  return nullptr;
}

bool Channel::passthrough() noexcept {
  const Trial known = trial_.load(std::memory_order_acquire);
  if (known != Trial::kNotYet) return known == Trial::kWorked;
  Trial found = Trial::kFailed;
  if ((granted_.load(std::memory_order_acquire) & kPass) != 0) {
    const UniqueFd file{::memfd_create("latchfs-trial", MFD_CLOEXEC)};
    if (const auto id = open_backing(file.get())) {
      close_backing(*id);
      found = Trial::kWorked;
    } else {
      log::info("no passthrough of reads: {}", id.error().message());
    }
  }
  // Of two threads that try at once the first decides for good: what is open must stay as it is.
  Trial first = Trial::kNotYet;
  if (trial_.compare_exchange_strong(first, found, std::memory_order_acq_rel)) first = found;
  return first == Trial::kWorked;
}

Result<std::int32_t> Channel::open_backing(int fd) noexcept {
  wire::BackingMap map{fd, 0, 0};
  const int id = ::ioctl(device_.load(std::memory_order_relaxed), wire::kBackingOpen, &map);
  if (id <= 0) return id < 0 ? last_errno() : errno_code(EIO);
  return id;
}

void Channel::close_backing(std::int32_t id) noexcept {
  const int device = device_.load(std::memory_order_relaxed);
  if (device < 0) return;
  auto number = static_cast<std::uint32_t>(id);
  if (::ioctl(device, wire::kBackingClose, &number) != 0) {
    log::error("backing file {} cannot be closed: {}", id, last_errno().message());
  }
}

}  // namespace latchfs::transport
