// The envelope of every call and answer: ONC RPC version 2 (RFC 5531), by libtirpc's XDR routines.
// Any thread; decoding takes any bytes.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace latchfs::nlm {

// The most a message of ours may have: four fields of 1 KiB, credentials and numbers fit.
inline constexpr std::size_t kMostMessage = 8192;

// Who says he asks. AUTH_NONE: sys is false, the rest empty.
struct Credentials {
  bool sys{};
  std::uint32_t uid{};
  std::uint32_t gid{};
  std::vector<std::uint32_t> groups;  // 16 at most
};

struct CallMessage {
  std::uint32_t xid{};
  std::uint32_t program{};
  std::uint32_t version{};
  std::uint32_t procedure{};
  Credentials credentials;
  std::string_view arguments;  // of the bytes that were decoded
};
struct Refusal {
  std::string answer;
};
struct NoCall {};  // not to be answered

// A call; or the answer to one that cannot be taken for what it is (another RPC version, AUTH_ERROR
// for credentials but AUTH_NONE and AUTH_SYS); or nothing to answer.
[[nodiscard]] std::variant<CallMessage, Refusal, NoCall> decode_call(std::string_view message);

enum class Accept : std::uint32_t {
  kSuccess = 0,
  kProgramUnavailable = 1,
  kProgramMismatch = 2,
  kProcedureUnavailable = 3,
  kGarbageArguments = 4,
  kSystemError = 5,
};
// results: only with kSuccess. only_version: with kProgramMismatch, the one that is served.
[[nodiscard]] std::string encode_reply(std::uint32_t xid, Accept accept, std::string_view results,
                                       std::uint32_t only_version = 0);

// AUTH_TOOWEAK: what speaks for the caller does not suffice.
[[nodiscard]] std::string encode_too_weak(std::uint32_t xid);

// As AUTH_NONE.
[[nodiscard]] std::string encode_call(std::uint32_t xid, std::uint32_t program,
                                      std::uint32_t version, std::uint32_t procedure,
                                      std::string_view arguments);
// With AUTH_SYS.
[[nodiscard]] std::string encode_call_as(std::uint32_t xid, std::uint32_t program,
                                         std::uint32_t version, std::uint32_t procedure,
                                         const Credentials& who, std::string_view arguments);

struct ReplyMessage {
  std::uint32_t xid{};
  bool denied{};    // then accept says nothing
  Accept accept{};  // kSuccess: results has the bytes
  std::string_view results;
};
// Nothing: not a reply.
[[nodiscard]] std::optional<ReplyMessage> decode_reply(std::string_view message);

}  // namespace latchfs::nlm
