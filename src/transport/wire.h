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
inline constexpr std::uint64_t kInitExt = 1ULL << 30;
inline constexpr std::uint64_t kDirectIoAllowMmap = 1ULL << 36;
inline constexpr std::uint64_t kPassthrough = 1ULL << 37;

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
