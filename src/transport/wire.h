// What FUSE's protocol has that the headers of Debian 12 (kernel 6.1, libfuse 3.14) do not know
// yet, in one place. Source: include/uapi/linux/fuse.h of Linux 6.18.
#pragma once

#include <sys/ioctl.h>
#include <sys/types.h>

#include <array>
#include <cstdint>

#include "transport/lowlevel.h"

namespace latchfs::transport::wire {

// INIT's flags, flags2 as the upper half.
inline constexpr std::uint64_t kHandleKillprivV2 = 1ULL << 28;
inline constexpr std::uint64_t kInitExt = 1ULL << 30;
inline constexpr std::uint64_t kDirectIoAllowMmap = 1ULL << 36;
inline constexpr std::uint64_t kPassthrough = 1ULL << 37;
inline constexpr std::uint64_t kOverIoUring = 1ULL << 41;

// open_flags of OPEN's and CREATE's answers.
inline constexpr std::uint32_t kDirectIo = 1U << 0;
inline constexpr std::uint32_t kParallelDirectWrites = 1U << 6;
inline constexpr std::uint32_t kFilePassthrough = 1U << 7;

struct BackingMap {
  std::int32_t fd;
  std::uint32_t flags;  // 0
  std::uint64_t padding;
};
inline constexpr unsigned long kBackingOpen = _IOW(229, 1, BackingMap);
inline constexpr unsigned long kBackingClose = _IOW(229, 2, std::uint32_t);

// fuse_init_out up to max_stack_depth, of which older headers have less.
struct InitOut {
  std::uint32_t major, minor, max_readahead, flags;
  std::uint16_t max_background, congestion_threshold;
  std::uint32_t max_write, time_gran;
  std::uint16_t max_pages, map_alignment;
  std::uint32_t flags2, max_stack_depth;
  std::array<std::uint32_t, 6> unused;
};
static_assert(sizeof(InitOut) == 64);

// FUSE over io_uring (Linux 6.14): what the kernel and the daemon tell each other by a ring entry.
// Its memory is RingHeaders and, apart from it, the payload: all of a message but its header and
// the first argument where that is of fixed size.
inline constexpr std::uint32_t kRingRegister = 1;
inline constexpr std::uint32_t kRingCommitAndFetch = 2;

struct RingEntryInfo {
  std::uint64_t flags;         // 0
  std::uint64_t commit_id;     // names the request when it is answered
  std::uint32_t payload_size;  // bytes
  std::uint32_t padding;
  std::uint64_t reserved;
};
struct RingHeaders {
  std::array<char, 128> in_out;  // fuse_in_header, then fuse_out_header
  std::array<char, 128> op_in;   // the first argument, where it is of fixed size
  RingEntryInfo entry;
};
static_assert(sizeof(RingHeaders) == 288);

// In the submission: which queue (the CPU's number), which request.
struct RingCommand {
  std::uint64_t flags;  // 0
  std::uint64_t commit_id;
  std::uint16_t queue;
  std::array<std::uint8_t, 6> padding;
};
static_assert(sizeof(RingCommand) == 24);

// How the kernel is to treat an open file.
struct OpenWay {
  std::uint32_t flags{};       // open_flags
  std::int32_t backing_id{0};  // with kFilePassthrough
};

using OpenAnswer = std::array<char, 16>;     // fuse_open_out
using CreateAnswer = std::array<char, 144>;  // fuse_entry_out, fuse_open_out

// The bodies of the answers, as fuse_reply_buf() takes them.
[[nodiscard]] OpenAnswer open_answer(std::uint64_t fh, const OpenWay& way) noexcept;
[[nodiscard]] CreateAnswer create_answer(const fuse_entry_param& entry, std::uint64_t fh,
                                         const OpenWay& way) noexcept;

}  // namespace latchfs::transport::wire
