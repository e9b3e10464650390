#include "nlm/dispatcher.h"

#include <chrono>

#include "base/log.h"
#include "nlm/codec.h"

namespace latchfs::nlm {
namespace {

constexpr std::uint16_t kFirstOrdinaryPort = 1024;
constexpr std::size_t kMostDuplicates = 8192;
constexpr std::int64_t kDuplicateAgeNs = 120'000'000'000;
constexpr std::chrono::milliseconds kTellPatience{1000};

Form form_of(Proc procedure) {
  switch (procedure) {
    case Proc::kLock:
    case Proc::kLockMsg:
    case Proc::kNmLock:
      return Form::kLock;
    case Proc::kCancel:
    case Proc::kCancelMsg:
      return Form::kCancel;
    case Proc::kUnlock:
    case Proc::kUnlockMsg:
      return Form::kUnlock;
    default:
      return Form::kTest;
  }
}

bool is_message(Proc procedure) {
  return procedure >= Proc::kTestMsg && procedure <= Proc::kGrantedMsg;
}
// The procedure of the answer to a _MSG one.
Proc result_of(Proc procedure) {
  return static_cast<Proc>(static_cast<std::uint32_t>(procedure) + 5);
}
// The procedure that does the same and answers itself.
Proc plain(Proc procedure) {
  return is_message(procedure) ? static_cast<Proc>(static_cast<std::uint32_t>(procedure) - 5)
                               : procedure;
}

}  // namespace

Dispatcher::Dispatcher(Options options, LockDesk& desk, Monitor& monitor, Outside& outside,
                       Outcalls& outcalls)
    : options_{options},
      key_{random_key()},
      desk_{desk},
      monitor_{monitor},
      outside_{outside},
      outcalls_{outcalls},
      duplicates_{kMostDuplicates, kDuplicateAgeNs} {}

User Dispatcher::user_of(const Credentials& credentials) const {
  if (!credentials.sys) return {options_.anonymous_uid, options_.anonymous_gid, {}};
  User out{credentials.uid, credentials.gid, credentials.groups};
  if (!options_.root_squash) return out;
  if (out.uid == 0) out.uid = options_.anonymous_uid;
  if (out.gid == 0) out.gid = options_.anonymous_gid;
  std::erase(out.groups, 0U);
  return out;
}

std::string Dispatcher::answer(std::string_view message, const Peer& peer) {
  const auto decoded = decode_call(message);
  if (std::holds_alternative<NoCall>(decoded)) return {};
  if (const auto* refusal = std::get_if<Refusal>(&decoded)) return refusal->answer;
  const CallMessage& call = std::get<CallMessage>(decoded);
  if (call.program != kNlmProgram) return encode_reply(call.xid, Accept::kProgramUnavailable, {});
  if (call.version != kNlmVersion) {
    return encode_reply(call.xid, Accept::kProgramMismatch, {}, kNlmVersion);
  }
  return serve(call, message, peer);
}

std::string Dispatcher::serve(const CallMessage& call, std::string_view message, const Peer& peer) {
  const auto procedure = static_cast<Proc>(call.procedure);
  const Request request{call, peer, {peer.remote.address(), peer.local.address(), peer.tcp}};
  if (peer.only_statd && procedure != Proc::kNull && procedure != Proc::kSmNotify) {
    return encode_reply(call.xid, Accept::kProcedureUnavailable, {});
  }
  if (!port_suffices(procedure, peer)) {
    if (complained_.due()) {
      log::warn("{} asks from port {}, which anybody there can have: refused (--insecure-ports)",
                request.from.address, peer.remote.port());
    }
    return encode_too_weak(call.xid);
  }
  const bool shares = procedure == Proc::kShare || procedure == Proc::kUnshare;
  const bool locks =
      (procedure >= Proc::kTest && procedure <= Proc::kGrantedMsg) || procedure == Proc::kNmLock;
  if (!shares && !locks) return serve_other(request, procedure);

  // What asked twice does no harm needs no memory of it.
  const Proc what = plain(procedure);
  const bool harmless = what == Proc::kTest || what == Proc::kGranted;
  std::uint64_t id = 0;
  if (!harmless) {
    std::string all = request.from.address;
    all += '\0';
    all += message;
    id = siphash(key_, all);
    Said said;
    switch (duplicates_.ask(id, said)) {
      case Duplicates::Seen::kUnderWay:
        return {};
      case Duplicates::Seen::kAnswered:
        tell(request, said);
        return said.reply;
      case Duplicates::Seen::kNew:
        break;
    }
  }
  try {
    auto said = shares ? serve_share_call(request, procedure) : serve_lock_call(request, procedure);
    if (!said) {
      if (!harmless) duplicates_.dropped(id);
      return {};
    }
    tell(request, *said);
    std::string reply = said->reply;
    if (!harmless) duplicates_.answered(id, std::move(*said));
    return reply;
  } catch (...) {
    if (!harmless) duplicates_.dropped(id);
    throw;
  }
}

bool Dispatcher::port_suffices(Proc procedure, const Peer& peer) const {
  if (peer.remote.port() < kFirstOrdinaryPort) return true;
  switch (procedure) {
    case Proc::kNull:
    case Proc::kSmNotify:    // looked at there
    case Proc::kGrantedRes:  // its cookie is a secret
    case Proc::kTestRes:
    case Proc::kLockRes:
    case Proc::kCancelRes:
    case Proc::kUnlockRes:
      return true;
    case Proc::kFreeAll:
      return !options_.root_port_reserved;
    default:
      return options_.insecure_ports;
  }
}

std::optional<Dispatcher::Said> Dispatcher::serve_lock_call(const Request& request,
                                                            Proc procedure) {
  const CallMessage& message = request.call;
  const auto call = decode_lock_call(form_of(procedure), message.arguments);
  if (!call) return Said{encode_reply(message.xid, Accept::kGarbageArguments, {}), {}, {}};
  const User user = user_of(message.credentials);
  std::string results;
  if (plain(procedure) == Proc::kTest) {
    const TestAnswer answer = desk_.test(*call, request.from, user);
    if (answer.status == Status::kUnanswered) return std::nullopt;
    results = encode_test_answer(answer);
  } else {
    Answer answer{call->cookie, Status::kDenied};
    switch (plain(procedure)) {
      case Proc::kLock:
        answer.status = desk_.lock(*call, request.from, user, {true, is_message(procedure)});
        break;
      case Proc::kNmLock:
        answer.status = desk_.lock(*call, request.from, user, {false, false});
        break;
      case Proc::kCancel:
        answer.status = desk_.cancel(*call, request.from);
        break;
      case Proc::kUnlock:
        answer.status = desk_.unlock(*call, request.from);
        break;
      default:
        break;  // GRANTED: we wait for nobody's locks
    }
    if (answer.status == Status::kUnanswered) return std::nullopt;
    results = encode_answer(answer);
  }
  if (is_message(procedure)) {
    return Said{encode_reply(message.xid, Accept::kSuccess, {}), result_of(procedure),
                std::move(results)};
  }
  return Said{encode_reply(message.xid, Accept::kSuccess, results), {}, {}};
}

std::optional<Dispatcher::Said> Dispatcher::serve_share_call(const Request& request,
                                                             Proc procedure) {
  const CallMessage& message = request.call;
  const auto call = decode_share_call(message.arguments);
  if (!call) return Said{encode_reply(message.xid, Accept::kGarbageArguments, {}), {}, {}};
  ShareAnswer answer{call->cookie, Status::kDenied, 0};
  answer.status = procedure == Proc::kShare
                      ? desk_.share(*call, request.from, user_of(message.credentials))
                      : desk_.unshare(*call, request.from);
  if (answer.status == Status::kUnanswered) return std::nullopt;
  return Said{encode_reply(message.xid, Accept::kSuccess, encode_share_answer(answer)), {}, {}};
}

std::string Dispatcher::serve_other(const Request& request, Proc procedure) {
  const CallMessage& message = request.call;
  const std::string garbage = encode_reply(message.xid, Accept::kGarbageArguments, {});
  const std::string done = encode_reply(message.xid, Accept::kSuccess, {});
  switch (procedure) {
    case Proc::kNull:
    // Answers to calls we never make.
    case Proc::kTestRes:
    case Proc::kLockRes:
    case Proc::kCancelRes:
    case Proc::kUnlockRes:
      return done;
    case Proc::kGrantedRes: {
      const auto answer = decode_answer(message.arguments);
      if (!answer) return garbage;
      desk_.granted_answer(*answer);
      return done;
    }
    case Proc::kFreeAll: {
      const auto call = decode_free_call(message.arguments);
      if (!call) return garbage;
      desk_.free_all(*call, request.from);
      return done;
    }
    case Proc::kSmNotify: {
      // From this machine's root only, as lockd (nlm_privileged_requester()).
      const Endpoint& remote = request.peer.remote;
      if (!remote.loopback() ||
          (options_.root_port_reserved && remote.port() >= kFirstOrdinaryPort)) {
        if (complained_.due()) {
          log::warn("{} calls itself our statd: ignored", request.from.address);
        }
        return encode_reply(message.xid, Accept::kSystemError, {});
      }
      const auto call = decode_status_call(message.arguments);
      if (!call) return garbage;
      const auto address = monitor_.changed(*call);
      if (!address) return done;
      try {
        desk_.client_restarted(*address, call->state);
      } catch (...) {
        // statd says it again.
        monitor_.unnote_change(*call);
        throw;
      }
      return done;
    }
    default:
      return encode_reply(message.xid, Accept::kProcedureUnavailable, {});
  }
}

void Dispatcher::tell(const Request& request, const Said& said) {
  if (!said.procedure) return;
  const Where where{request.from.address, request.from.local, request.from.tcp};
  const auto call = [this, where, procedure = *said.procedure,
                     arguments = said.arguments]() noexcept {
    try {
      const auto told =
          outside_.tell(where, kNlmProgram, kNlmVersion, static_cast<std::uint32_t>(procedure),
                        arguments, kTellPatience);
      if (!told) log::debug("an answer to {}: {}", where.address, told.error().message());
    } catch (const std::exception& e) {
      log::debug("an answer to {}: {}", where.address, e.what());
    }
  };
  // Too much under way: it asks again.
  if (!outcalls_.at(0, where.address, call)) log::debug("no answer to {}", where.address);
}

}  // namespace latchfs::nlm
