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

// fuse_init_in with its flags2, fuse_init_out with max_stack_depth: older headers end before.
struct InitIn {
  std::uint32_t major, minor, max_readahead, flags, flags2;
};
struct InitOut {
  std::array<std::uint32_t, 16> words;
};
constexpr std::size_t kFlags = 3;
constexpr std::size_t kFlags2 = 8;
constexpr std::size_t kMaxStackDepth = 9;
static_assert(sizeof(InitOut) == sizeof(fuse_init_out));
static_assert(offsetof(fuse_init_out, flags) == kFlags * 4);
static_assert(offsetof(fuse_init_out, flags2) == kFlags2 * 4);

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
  device_ = fd;
  return {};
}

const RequestFacts& Channel::request() noexcept { return t_request; }

ssize_t Channel::read(int fd, void* buffer, std::size_t size, void* self) {
  const ssize_t got = ::read(fd, buffer, size);
  if (got < static_cast<ssize_t>(sizeof(fuse_in_header))) return got;
  fuse_in_header header;
  std::memcpy(&header, buffer, sizeof header);
  t_request = facts_of(header, buffer, static_cast<std::size_t>(got));
  if (header.opcode == FUSE_INIT) {
    auto& channel = *static_cast<Channel*>(self);
    channel.offered_ = flags_offered(buffer, static_cast<std::size_t>(got));
    channel.init_.store(header.unique, std::memory_order_release);
  }
  return got;
}

ssize_t Channel::writev(int fd, iovec* parts, int count, void* self) noexcept {
  auto& channel = *static_cast<Channel*>(self);
  const std::uint64_t init = channel.init_.load(std::memory_order_acquire);
  if (init != 0 && count > 0 && parts[0].iov_len >= sizeof(fuse_out_header)) {
    fuse_out_header header;
    std::memcpy(&header, parts[0].iov_base, sizeof header);
    if (header.unique == init && header.error == 0 &&
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
    out.words[kFlags] |= static_cast<std::uint32_t>(wire::kInitExt);
    out.words[kFlags2] |= static_cast<std::uint32_t>(flag >> 32);
    granted |= bit;
  };
  if (wanted_.direct_mmap) grant(wire::kDirectIoAllowMmap, kMmap);
  if (wanted_.passthrough) grant(wire::kPassthrough, kPass);
  if ((granted & kPass) != 0) out.words[kMaxStackDepth] = 1;
  std::memcpy(message.data() + sizeof(fuse_out_header), &out, sizeof out);
  // Before the kernel knows: its next request is another thread's.
  granted_.store(granted, std::memory_order_release);
  return ::write(fd, message.data(), message.size());
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
