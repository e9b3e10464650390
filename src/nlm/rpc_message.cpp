#include "nlm/rpc_message.h"

#include <rpc/rpc.h>

#include <array>
#include <cstring>
#include <stdexcept>

namespace latchfs::nlm {
namespace {

constexpr std::uint32_t kRpcVersion = 2;
constexpr std::size_t kWord = 4;

// Big-endian, at a place that is known to exist.
std::uint32_t word(std::string_view bytes, std::size_t index) {
  std::uint32_t value = 0;
  for (std::size_t i = 0; i < kWord; ++i) {
    value = value << 8 | static_cast<unsigned char>(bytes[index * kWord + i]);
  }
  return value;
}

XDR reader(std::string_view bytes) {
  XDR xdr;
  xdrmem_create(&xdr, const_cast<char*>(bytes.data()), static_cast<u_int>(bytes.size()),
                XDR_DECODE);
  return xdr;
}

bool_t no_results(XDR*, ...) { return TRUE; }

std::string encode(rpc_msg& message, std::string_view after) {
  // An envelope has 24 bytes of its own and two authenticators.
  std::string bytes(256 + 2 * MAX_AUTH_BYTES, '\0');
  XDR xdr;
  xdrmem_create(&xdr, bytes.data(), static_cast<u_int>(bytes.size()), XDR_ENCODE);
  const bool_t ok =
      message.rm_direction == CALL ? xdr_callmsg(&xdr, &message) : xdr_replymsg(&xdr, &message);
  if (ok == FALSE) throw std::length_error{"an RPC envelope"};
  bytes.resize(xdr_getpos(&xdr));
  bytes.append(after);
  return bytes;
}

std::string refuse_version(std::uint32_t xid) {
  rpc_msg reply{};
  reply.rm_xid = xid;
  reply.rm_direction = REPLY;
  reply.rm_reply.rp_stat = MSG_DENIED;
  reply.rjcted_rply.rj_stat = RPC_MISMATCH;
  reply.rjcted_rply.rj_vers.low = kRpcVersion;
  reply.rjcted_rply.rj_vers.high = kRpcVersion;
  return encode(reply, {});
}

std::string refuse_caller(std::uint32_t xid, auth_stat why) {
  rpc_msg reply{};
  reply.rm_xid = xid;
  reply.rm_direction = REPLY;
  reply.rm_reply.rp_stat = MSG_DENIED;
  reply.rjcted_rply.rj_stat = AUTH_ERROR;
  reply.rjcted_rply.rj_why = why;
  return encode(reply, {});
}

std::optional<Credentials> credentials_of(const opaque_auth& auth) {
  if (auth.oa_flavor == AUTH_NONE) return Credentials{};
  if (auth.oa_flavor != AUTH_SYS) return std::nullopt;
  XDR xdr = reader({auth.oa_base, auth.oa_length});
  authunix_parms parms{};
  const bool ok = xdr_authunix_parms(&xdr, &parms) != FALSE;
  Credentials out;
  if (ok) {
    out.sys = true;
    out.uid = parms.aup_uid;
    out.gid = parms.aup_gid;
    out.groups.assign(parms.aup_gids, parms.aup_gids + parms.aup_len);
  }
  xdr.x_op = XDR_FREE;
  xdr_authunix_parms(&xdr, &parms);
  if (!ok) return std::nullopt;
  return out;
}

std::string encode_with(std::uint32_t xid, std::uint32_t program, std::uint32_t version,
                        std::uint32_t procedure, const opaque_auth& who,
                        std::string_view arguments) {
  rpc_msg call{};
  call.rm_xid = xid;
  call.rm_direction = CALL;
  call.rm_call.cb_rpcvers = kRpcVersion;
  call.rm_call.cb_prog = program;
  call.rm_call.cb_vers = version;
  call.rm_call.cb_proc = procedure;
  call.rm_call.cb_cred = who;
  call.rm_call.cb_verf = {AUTH_NONE, nullptr, 0};
  return encode(call, arguments);
}

}  // namespace

std::variant<CallMessage, Refusal, NoCall> decode_call(std::string_view message) {
  // xid, direction, RPC version, program, version, procedure, two authenticators of no length.
  constexpr std::size_t kLeast = 10 * kWord;
  if (message.size() < 3 * kWord || message.size() > kMostMessage || word(message, 1) != CALL) {
    return NoCall{};
  }
  const std::uint32_t xid = word(message, 0);
  if (word(message, 2) != kRpcVersion) return Refusal{refuse_version(xid)};
  if (message.size() < kLeast) return NoCall{};

  // Places for the authenticators, so that nothing is allocated. (libtirpc aligns nothing in them.)
  alignas(std::uint32_t) std::array<std::array<char, MAX_AUTH_BYTES>, 2> places{};
  rpc_msg call{};
  call.rm_call.cb_cred.oa_base = places[0].data();
  call.rm_call.cb_verf.oa_base = places[1].data();
  XDR xdr = reader(message);
  if (xdr_callmsg(&xdr, &call) == FALSE) return NoCall{};
  CallMessage out;
  out.xid = xid;
  out.program = static_cast<std::uint32_t>(call.rm_call.cb_prog);
  out.version = static_cast<std::uint32_t>(call.rm_call.cb_vers);
  out.procedure = static_cast<std::uint32_t>(call.rm_call.cb_proc);
  auto who = credentials_of(call.rm_call.cb_cred);
  if (!who) return Refusal{refuse_caller(xid, AUTH_BADCRED)};
  out.credentials = std::move(*who);
  out.arguments = message.substr(std::min<std::size_t>(xdr_getpos(&xdr), message.size()));
  return out;
}

std::string encode_too_weak(std::uint32_t xid) { return refuse_caller(xid, AUTH_TOOWEAK); }

std::string encode_reply(std::uint32_t xid, Accept accept, std::string_view results,
                         std::uint32_t only_version) {
  rpc_msg reply{};
  reply.rm_xid = xid;
  reply.rm_direction = REPLY;
  reply.rm_reply.rp_stat = MSG_ACCEPTED;
  reply.acpted_rply.ar_verf = {AUTH_NONE, nullptr, 0};
  reply.acpted_rply.ar_stat = static_cast<accept_stat>(accept);
  if (accept == Accept::kProgramMismatch) {
    reply.acpted_rply.ar_vers.low = only_version;
    reply.acpted_rply.ar_vers.high = only_version;
  } else if (accept == Accept::kSuccess) {
    reply.acpted_rply.ar_results.where = nullptr;
    reply.acpted_rply.ar_results.proc = no_results;
  }
  return encode(reply, accept == Accept::kSuccess ? results : std::string_view{});
}

std::string encode_call(std::uint32_t xid, std::uint32_t program, std::uint32_t version,
                        std::uint32_t procedure, std::string_view arguments) {
  return encode_with(xid, program, version, procedure, {AUTH_NONE, nullptr, 0}, arguments);
}

std::string encode_call_as(std::uint32_t xid, std::uint32_t program, std::uint32_t version,
                           std::uint32_t procedure, const Credentials& who,
                           std::string_view arguments) {
  std::array<char, MAX_AUTH_BYTES> place{};
  char machine[] = "latchfs";
  std::vector<gid_t> groups(who.groups.begin(), who.groups.end());
  authunix_parms parms{};
  parms.aup_machname = machine;
  parms.aup_uid = who.uid;
  parms.aup_gid = who.gid;
  parms.aup_len = static_cast<u_int>(groups.size());
  parms.aup_gids = groups.data();
  XDR xdr;
  xdrmem_create(&xdr, place.data(), static_cast<u_int>(place.size()), XDR_ENCODE);
  if (xdr_authunix_parms(&xdr, &parms) == FALSE) throw std::length_error{"credentials"};
  return encode_with(xid, program, version, procedure, {AUTH_SYS, place.data(), xdr_getpos(&xdr)},
                     arguments);
}

std::optional<ReplyMessage> decode_reply(std::string_view message) {
  if (message.size() < 3 * kWord || message.size() > kMostMessage || word(message, 1) != REPLY) {
    return std::nullopt;
  }
  std::array<char, MAX_AUTH_BYTES> place{};
  rpc_msg reply{};
  reply.acpted_rply.ar_verf.oa_base = place.data();
  reply.acpted_rply.ar_results.where = nullptr;
  reply.acpted_rply.ar_results.proc = no_results;
  XDR xdr = reader(message);
  if (xdr_replymsg(&xdr, &reply) == FALSE) return std::nullopt;
  ReplyMessage out;
  out.xid = word(message, 0);
  out.denied = reply.rm_reply.rp_stat != MSG_ACCEPTED;
  if (!out.denied) {
    // Any number may have come: the enumeration's place is read as what it is to the wire.
    static_assert(sizeof reply.acpted_rply.ar_stat == sizeof out.accept);
    std::memcpy(&out.accept, &reply.acpted_rply.ar_stat, sizeof out.accept);
    if (out.accept == Accept::kSuccess) {
      out.results = message.substr(std::min<std::size_t>(xdr_getpos(&xdr), message.size()));
    }
  }
  return out;
}

}  // namespace latchfs::nlm

#if defined(__SANITIZE_THREAD__)
// libtirpc reads the bytes that fill a field up to a word into one variable for all threads, which
// nobody looks at (xdr_opaque(), "crud").
extern "C" const char* __tsan_default_suppressions() {  // NOLINT: the sanitizer's name
  return "called_from_lib:libtirpc.so\n";
}
#endif
