// XDR of what protocol.h has: bytes to values and back. The only file that knows rpcgen's
// structures.
//
// Any thread. Decoding takes any bytes: nothing where they are too few, or a field is longer than
// the protocol lets it be. What follows the arguments is ignored, as every implementation does.
// Encoding throws std::bad_alloc, and std::length_error for what the protocol has no room for.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "nlm/protocol.h"

namespace latchfs::nlm {

[[nodiscard]] std::optional<LockCall> decode_lock_call(Form form, std::string_view bytes);
[[nodiscard]] std::string encode_lock_call(Form form, const LockCall& call);

[[nodiscard]] std::optional<Answer> decode_answer(std::string_view bytes);
[[nodiscard]] std::string encode_answer(const Answer& answer);

[[nodiscard]] std::optional<TestAnswer> decode_test_answer(std::string_view bytes);
[[nodiscard]] std::string encode_test_answer(const TestAnswer& answer);

[[nodiscard]] std::optional<ShareCall> decode_share_call(std::string_view bytes);
[[nodiscard]] std::string encode_share_call(const ShareCall& call);
[[nodiscard]] std::optional<ShareAnswer> decode_share_answer(std::string_view bytes);
[[nodiscard]] std::string encode_share_answer(const ShareAnswer& answer);

[[nodiscard]] std::optional<FreeCall> decode_free_call(std::string_view bytes);
[[nodiscard]] std::string encode_free_call(const FreeCall& call);

[[nodiscard]] std::optional<StatusCall> decode_status_call(std::string_view bytes);
[[nodiscard]] std::string encode_status_call(const StatusCall& call);

// Of statd's procedures. `caller` is the name statd finds us by, for its callback.
[[nodiscard]] std::string encode_monitor_call(const std::string& subject, const std::string& caller,
                                              const Secret& secret);
[[nodiscard]] std::string encode_unmonitor_call(const std::string& subject,
                                                const std::string& caller);
[[nodiscard]] std::string encode_unmonitor_all_call(const std::string& caller);
[[nodiscard]] std::string encode_notify_call(const std::string& name, std::int32_t state);
// Whether it will monitor; nothing: not an answer.
[[nodiscard]] std::optional<bool> decode_monitor_answer(std::string_view bytes);

}  // namespace latchfs::nlm
