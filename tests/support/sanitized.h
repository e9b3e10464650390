// Whether this program, and so the daemon of the same build, runs under a sanitizer: several times
// slower, with tens of megabytes more a process.
#pragma once

namespace latchfs::test {

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif

}  // namespace latchfs::test
