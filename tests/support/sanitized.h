// Whether this program, and so the daemon of the same build, runs under a sanitizer: several times
// slower, with tens of megabytes more a process.
#pragma once

namespace latchfs::test {

#if defined(__has_feature)  // clang
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define LATCHFS_SANITIZED 1
#endif
#endif
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)  // gcc
#define LATCHFS_SANITIZED 1
#endif

#ifdef LATCHFS_SANITIZED
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif

}  // namespace latchfs::test
