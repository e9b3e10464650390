// Clang's thread-safety attributes; nothing elsewhere. See docs/lock-order.md.
#pragma once

#if defined(__clang__)
#define LATCHFS_TSA(x) __attribute__((x))
#else
#define LATCHFS_TSA(x)
#endif

#define CAPABILITY(x) LATCHFS_TSA(capability(x))
#define SCOPED_CAPABILITY LATCHFS_TSA(scoped_lockable)
#define GUARDED_BY(x) LATCHFS_TSA(guarded_by(x))
#define PT_GUARDED_BY(x) LATCHFS_TSA(pt_guarded_by(x))
#define ACQUIRED_BEFORE(...) LATCHFS_TSA(acquired_before(__VA_ARGS__))
#define ACQUIRED_AFTER(...) LATCHFS_TSA(acquired_after(__VA_ARGS__))
#define REQUIRES(...) LATCHFS_TSA(requires_capability(__VA_ARGS__))
#define ACQUIRE(...) LATCHFS_TSA(acquire_capability(__VA_ARGS__))
#define RELEASE(...) LATCHFS_TSA(release_capability(__VA_ARGS__))
#define TRY_ACQUIRE(...) LATCHFS_TSA(try_acquire_capability(__VA_ARGS__))
#define EXCLUDES(...) LATCHFS_TSA(locks_excluded(__VA_ARGS__))
#define NO_THREAD_SAFETY_ANALYSIS LATCHFS_TSA(no_thread_safety_analysis)
