#include "nlm/codec.h"

#include <rpc/rpc.h>

#include <algorithm>
#include <stdexcept>

#include "nlm4.h"
#include "sm_inter.h"

namespace latchfs::nlm {
namespace {

// The most any structure here takes: five fields of 1 KiB and their lengths.
constexpr std::size_t kMostBytes = 8192;

template <class Wire>
using Routine = bool_t (*)(XDR*, Wire*);

// A structure of rpcgen's that was decoded: what it points to goes with it.
template <class Wire>
class Decoded {
 public:
  Decoded(std::string_view bytes, Routine<Wire> routine) : routine_{routine} {
    XDR xdr;
    // (It reads only; the type is older than const.)
    xdrmem_create(&xdr, const_cast<char*>(bytes.data()), static_cast<u_int>(bytes.size()),
                  XDR_DECODE);
    ok_ = routine_(&xdr, &wire_) != FALSE;
  }
  ~Decoded() {
    XDR xdr;
    char nothing = 0;
    xdrmem_create(&xdr, &nothing, 0, XDR_FREE);
    routine_(&xdr, &wire_);
  }
  Decoded(const Decoded&) = delete;
  Decoded& operator=(const Decoded&) = delete;

  explicit operator bool() const { return ok_; }
  const Wire* operator->() const { return &wire_; }

 private:
  Routine<Wire> routine_;
  Wire wire_{};
  bool ok_{};
};

template <class Wire>
std::string encoded(Wire& wire, Routine<Wire> routine) {
  std::string bytes(kMostBytes, '\0');
  XDR xdr;
  xdrmem_create(&xdr, bytes.data(), static_cast<u_int>(bytes.size()), XDR_ENCODE);
  if (routine(&xdr, &wire) == FALSE) throw std::length_error{"too long for the protocol"};
  bytes.resize(xdr_getpos(&xdr));
  return bytes;
}

std::string text(const nlm4_bytes& bytes) {
  return bytes.nlm4_bytes_len == 0 ? std::string{}
                                   : std::string{bytes.nlm4_bytes_val, bytes.nlm4_bytes_len};
}
std::string text(const char* chars) { return chars == nullptr ? std::string{} : chars; }

// What encoding reads stays the value's.
nlm4_bytes wire(const std::string& bytes) {
  nlm4_bytes out;
  out.nlm4_bytes_len = static_cast<u_int>(bytes.size());
  out.nlm4_bytes_val = const_cast<char*>(bytes.data());
  return out;
}
char* wire_text(const std::string& chars) { return const_cast<char*>(chars.c_str()); }

What value(const nlm4_what& w) {
  What out;
  out.caller = text(w.caller);
  out.handle = text(w.handle);
  out.owner = text(w.owner);
  out.svid = w.svid;
  out.offset = w.offset;
  out.length = w.length;
  return out;
}
nlm4_what wire(const What& w) {
  nlm4_what out{};
  out.caller = wire_text(w.caller);
  out.handle = wire(w.handle);
  out.owner = wire(w.owner);
  out.svid = w.svid;
  out.offset = w.offset;
  out.length = w.length;
  return out;
}

// Any number but those of the protocol is a failure to whoever asked.
Status status_of(std::uint32_t number) {
  return number <= static_cast<std::uint32_t>(Status::kFailed) ? static_cast<Status>(number)
                                                               : Status::kFailed;
}
std::uint32_t number_of(Status status) { return static_cast<std::uint32_t>(status); }

sm_callback callback(const std::string& caller) {
  sm_callback out{};
  out.name = wire_text(caller);
  out.prog = static_cast<int>(kNlmProgram);
  out.vers = static_cast<int>(kNlmVersion);
  out.proc = static_cast<int>(Proc::kSmNotify);
  return out;
}

}  // namespace

std::optional<LockCall> decode_lock_call(Form form, std::string_view bytes) {
  LockCall out;
  switch (form) {
    case Form::kTest: {
      const Decoded<nlm4_test_call> in{bytes, xdr_nlm4_test_call};
      if (!in) return std::nullopt;
      out.cookie = text(in->cookie);
      out.exclusive = in->exclusive != FALSE;
      out.what = value(in->what);
      return out;
    }
    case Form::kLock: {
      const Decoded<nlm4_lock_call> in{bytes, xdr_nlm4_lock_call};
      if (!in) return std::nullopt;
      out.cookie = text(in->cookie);
      out.block = in->block != FALSE;
      out.exclusive = in->exclusive != FALSE;
      out.what = value(in->what);
      out.reclaim = in->reclaim != FALSE;
      out.state = in->state;
      return out;
    }
    case Form::kCancel: {
      const Decoded<nlm4_cancel_call> in{bytes, xdr_nlm4_cancel_call};
      if (!in) return std::nullopt;
      out.cookie = text(in->cookie);
      out.block = in->block != FALSE;
      out.exclusive = in->exclusive != FALSE;
      out.what = value(in->what);
      return out;
    }
    case Form::kUnlock: {
      const Decoded<nlm4_unlock_call> in{bytes, xdr_nlm4_unlock_call};
      if (!in) return std::nullopt;
      out.cookie = text(in->cookie);
      out.what = value(in->what);
      return out;
    }
  }
  return std::nullopt;
}

std::string encode_lock_call(Form form, const LockCall& call) {
  switch (form) {
    case Form::kTest: {
      nlm4_test_call out{wire(call.cookie), call.exclusive, wire(call.what)};
      return encoded(out, xdr_nlm4_test_call);
    }
    case Form::kLock: {
      nlm4_lock_call out{wire(call.cookie), call.block,   call.exclusive,
                         wire(call.what),   call.reclaim, call.state};
      return encoded(out, xdr_nlm4_lock_call);
    }
    case Form::kCancel: {
      nlm4_cancel_call out{wire(call.cookie), call.block, call.exclusive, wire(call.what)};
      return encoded(out, xdr_nlm4_cancel_call);
    }
    case Form::kUnlock: {
      nlm4_unlock_call out{wire(call.cookie), wire(call.what)};
      return encoded(out, xdr_nlm4_unlock_call);
    }
  }
  throw std::length_error{"no such form"};
}

std::optional<Answer> decode_answer(std::string_view bytes) {
  const Decoded<nlm4_answer> in{bytes, xdr_nlm4_answer};
  if (!in) return std::nullopt;
  return Answer{text(in->cookie), status_of(in->status)};
}

std::string encode_answer(const Answer& answer) {
  nlm4_answer out{wire(answer.cookie), number_of(answer.status)};
  return encoded(out, xdr_nlm4_answer);
}

std::optional<TestAnswer> decode_test_answer(std::string_view bytes) {
  const Decoded<nlm4_test_answer> in{bytes, xdr_nlm4_test_answer};
  if (!in) return std::nullopt;
  TestAnswer out;
  out.cookie = text(in->cookie);
  out.status = status_of(in->result.status);
  if (out.status == Status::kDenied) {
    const nlm4_holder& holder = in->result.nlm4_test_result_u.holder;
    out.holder = {holder.exclusive != FALSE, holder.svid, text(holder.owner), holder.offset,
                  holder.length};
  }
  return out;
}

std::string encode_test_answer(const TestAnswer& answer) {
  nlm4_test_answer out{};
  out.cookie = wire(answer.cookie);
  out.result.status = number_of(answer.status);
  if (answer.status == Status::kDenied) {
    const Holder4& holder = answer.holder;
    out.result.nlm4_test_result_u.holder = {holder.exclusive, holder.svid, wire(holder.owner),
                                            holder.offset, holder.length};
  }
  return encoded(out, xdr_nlm4_test_answer);
}

std::optional<ShareCall> decode_share_call(std::string_view bytes) {
  const Decoded<nlm4_share_call> in{bytes, xdr_nlm4_share_call};
  if (!in) return std::nullopt;
  ShareCall out;
  out.cookie = text(in->cookie);
  out.caller = text(in->caller);
  out.handle = text(in->handle);
  out.owner = text(in->owner);
  out.deny = in->deny;
  out.access = in->access;
  out.reclaim = in->reclaim != FALSE;
  constexpr std::uint32_t kReadingAndWriting = 3;
  if (out.deny > kReadingAndWriting || out.access > kReadingAndWriting) return std::nullopt;
  return out;
}

std::string encode_share_call(const ShareCall& call) {
  nlm4_share_call out{};
  out.cookie = wire(call.cookie);
  out.caller = wire_text(call.caller);
  out.handle = wire(call.handle);
  out.owner = wire(call.owner);
  out.deny = call.deny;
  out.access = call.access;
  out.reclaim = call.reclaim;
  return encoded(out, xdr_nlm4_share_call);
}

std::optional<ShareAnswer> decode_share_answer(std::string_view bytes) {
  const Decoded<nlm4_share_answer> in{bytes, xdr_nlm4_share_answer};
  if (!in) return std::nullopt;
  return ShareAnswer{text(in->cookie), status_of(in->status), in->sequence};
}

std::string encode_share_answer(const ShareAnswer& answer) {
  nlm4_share_answer out{wire(answer.cookie), number_of(answer.status), answer.sequence};
  return encoded(out, xdr_nlm4_share_answer);
}

std::optional<FreeCall> decode_free_call(std::string_view bytes) {
  const Decoded<nlm4_free_call> in{bytes, xdr_nlm4_free_call};
  if (!in) return std::nullopt;
  return FreeCall{text(in->name), in->state};
}

std::string encode_free_call(const FreeCall& call) {
  nlm4_free_call out{wire_text(call.name), call.state};
  return encoded(out, xdr_nlm4_free_call);
}

std::optional<StatusCall> decode_status_call(std::string_view bytes) {
  const Decoded<sm_status_call> in{bytes, xdr_sm_status_call};
  if (!in) return std::nullopt;
  StatusCall out{text(in->name), in->state, {}};
  std::copy_n(in->secret, out.secret.size(), out.secret.begin());
  return out;
}

std::string encode_status_call(const StatusCall& call) {
  sm_status_call out{};
  out.name = wire_text(call.name);
  out.state = call.state;
  std::copy(call.secret.begin(), call.secret.end(), out.secret);
  return encoded(out, xdr_sm_status_call);
}

std::string encode_monitor_call(const std::string& subject, const std::string& caller,
                                const Secret& secret) {
  sm_monitor_call out{};
  out.subject = {wire_text(subject), callback(caller)};
  std::copy(secret.begin(), secret.end(), out.secret);
  return encoded(out, xdr_sm_monitor_call);
}

std::string encode_unmonitor_call(const std::string& subject, const std::string& caller) {
  sm_subject out{wire_text(subject), callback(caller)};
  return encoded(out, xdr_sm_subject);
}

std::string encode_unmonitor_all_call(const std::string& caller) {
  sm_callback out = callback(caller);
  return encoded(out, xdr_sm_callback);
}

std::string encode_notify_call(const std::string& name, std::int32_t state) {
  sm_notify_call out{wire_text(name), state};
  return encoded(out, xdr_sm_notify_call);
}

std::optional<bool> decode_monitor_answer(std::string_view bytes) {
  const Decoded<sm_monitor_answer> in{bytes, xdr_sm_monitor_answer};
  if (!in) return std::nullopt;
  return in->result == 0;
}

}  // namespace latchfs::nlm
