// The Network Lock Manager protocol, version 4, and the part of the status monitor's that goes with
// it, as values. Source: X/Open XNFS chapters 10 and 11, RFC 1813 appendix II. Bytes: codec.h.
#pragma once

#include <array>
#include <cstdint>
#include <string>

namespace latchfs::nlm {

inline constexpr std::uint32_t kNlmProgram = 100021;
inline constexpr std::uint32_t kNlmVersion = 4;
inline constexpr std::uint32_t kStatdProgram = 100024;
inline constexpr std::uint32_t kStatdVersion = 1;

enum class Proc : std::uint32_t {
  kNull = 0,
  kTest = 1,
  kLock = 2,
  kCancel = 3,
  kUnlock = 4,
  kGranted = 5,
  // The answer comes as a call of its own, of the procedure five further on.
  kTestMsg = 6,
  kLockMsg = 7,
  kCancelMsg = 8,
  kUnlockMsg = 9,
  kGrantedMsg = 10,
  kTestRes = 11,
  kLockRes = 12,
  kCancelRes = 13,
  kUnlockRes = 14,
  kGrantedRes = 15,
  kSmNotify = 16,  // private to the machine: statd's callback
  kShare = 20,
  kUnshare = 21,
  kNmLock = 22,
  kFreeAll = 23,
};

enum class StatdProc : std::uint32_t { kMon = 2, kUnmon = 3, kUnmonAll = 4, kNotify = 6 };

enum class Status : std::uint32_t {
  kGranted = 0,
  kDenied = 1,
  kDeniedNolocks = 2,
  kBlocked = 3,
  kDeniedGracePeriod = 4,
  kDeadlock = 5,
  kReadOnly = 6,
  kStaleHandle = 7,
  kTooBig = 8,
  kFailed = 9,
  // Not of the wire: no answer, the client asks again.
  kUnanswered = 10,
};

// What is locked, and by whom. length 0: to the end of the file.
struct What {
  std::string caller;
  std::string handle;
  std::string owner;
  std::int32_t svid{};
  std::uint64_t offset{};
  std::uint64_t length{};
};

// The arguments of TEST, GRANTED (kTest), LOCK, NM_LOCK (kLock), CANCEL and UNLOCK: each form has
// the fields it has, the others are as they are here.
enum class Form : std::uint8_t { kTest, kLock, kCancel, kUnlock };
struct LockCall {
  std::string cookie;
  bool block{};
  bool exclusive{};
  What what;
  bool reclaim{};
  std::int32_t state{};
};

struct Answer {
  std::string cookie;
  Status status{};
};
struct Holder4 {
  bool exclusive{};
  std::int32_t svid{};
  std::string owner;
  std::uint64_t offset{};
  std::uint64_t length{};
};
// holder: where status is kDenied.
struct TestAnswer {
  std::string cookie;
  Status status{};
  Holder4 holder;
};

// deny and access: bit 0 reading, bit 1 writing.
struct ShareCall {
  std::string cookie;
  std::string caller;
  std::string handle;
  std::string owner;
  std::uint32_t deny{};
  std::uint32_t access{};
  bool reclaim{};
};
struct ShareAnswer {
  std::string cookie;
  Status status{};
  std::int32_t sequence{};
};

struct FreeCall {
  std::string name;
  std::int32_t state{};
};

using Secret = std::array<char, 16>;

// What statd calls back with (NLM procedure 16).
struct StatusCall {
  std::string name;
  std::int32_t state{};
  Secret secret{};
};

}  // namespace latchfs::nlm
