#include "nlm_session.h"

#include <netinet/in.h>
#include <nfsc/libnfs-raw-nlm.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <cstdlib>

namespace latchfs::testing {

namespace {

[[noreturn]] void give_up(const char* what, const char* why) {
  std::fprintf(stderr, "nlm: %s: %s\n", what, why);
  std::exit(3);
}

struct Answer {
  bool done{};
  int status{};
  NlmRange held;
};

// Until `done`, or the connection is gone.
void serve(struct rpc_context* rpc, const bool& done, const char* what) {
  while (!done) {
    struct pollfd one {};
    one.fd = rpc_get_fd(rpc);
    one.events = static_cast<short>(rpc_which_events(rpc));
    if (::poll(&one, 1, 1000) < 0) give_up(what, "poll");
    if (rpc_service(rpc, one.revents) != 0) give_up(what, rpc_get_error(rpc));
  }
}

void connected(struct rpc_context* rpc, int status, void*, void* answer) {
  if (status != RPC_STATUS_SUCCESS) give_up("connect", rpc_get_error(rpc));
  static_cast<Answer*>(answer)->done = true;
}

template <class Result>
void answered(struct rpc_context* rpc, int status, void* data, void* answer) {
  if (status != RPC_STATUS_SUCCESS) give_up("call", rpc_get_error(rpc));
  auto* const a = static_cast<Answer*>(answer);
  a->status = static_cast<const Result*>(data)->status;
  a->done = true;
}

void tested(struct rpc_context* rpc, int status, void* data, void* answer) {
  if (status != RPC_STATUS_SUCCESS) give_up("call", rpc_get_error(rpc));
  auto* const a = static_cast<Answer*>(answer);
  const nlm4_testreply& reply = static_cast<const NLM4_TESTres*>(data)->reply;
  a->status = reply.status;
  if (reply.status == NLM4_DENIED) {
    const nlm4_holder& holder = reply.nlm4_testreply_u.lock.holder;
    a->held = {holder.exclusive != 0, holder.l_offset, holder.l_len};
  }
  a->done = true;
}

nlm4_lock lock_of(std::string& host, std::string& handle, std::string& owner,
                  const NlmRange& range) {
  nlm4_lock lock{};
  lock.caller_name = host.data();
  lock.fh.data.data_len = static_cast<u_int>(handle.size());
  lock.fh.data.data_val = handle.data();
  lock.oh = owner.data();
  lock.svid = static_cast<u_int>(::getpid());
  lock.l_offset = range.start;
  lock.l_len = range.length;
  return lock;
}

nlm_cookie next_cookie() {
  static std::array<char, 4> bytes{};
  ++bytes[0];
  nlm_cookie cookie{};
  cookie.data.data_len = bytes.size();
  cookie.data.data_val = bytes.data();
  return cookie;
}

// A server's GRANTED has come: there is one waiter a process, so it is for that.
bool granted_came = false;
// A connection's descriptor whose other end is the server's lock service.
int to_server = -1;

void append(std::string& record, std::uint32_t word) {
  word = htonl(word);
  record.append(reinterpret_cast<const char*>(&word), sizeof(word));
}

// NLM_GRANTED_RES, the answer to NLM_GRANTED_MSG: a call of its own, which libnfs has not. (RFC
// 5531: record mark, call; credentials and verifier are AUTH_NONE.)
void call_granted_res(const nlm_cookie& cookie) {
  constexpr std::uint32_t kGrantedRes = 15;
  constexpr std::uint32_t kLastFragment = 0x80000000;
  struct sockaddr_in address {};
  socklen_t size = sizeof(address);
  auto* const any = reinterpret_cast<struct sockaddr*>(&address);
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0 || ::getpeername(to_server, any, &size) != 0 || ::connect(fd, any, size) != 0) {
    give_up("granted_res", "connect");
  }
  std::string record;
  for (const std::uint32_t word : {0x6c617463U, 0U, 2U, std::uint32_t{NLM_PROGRAM},
                                   std::uint32_t{NLM_V4}, kGrantedRes, 0U, 0U, 0U, 0U}) {
    append(record, word);
  }
  append(record, cookie.data.data_len);
  record.append(cookie.data.data_val, cookie.data.data_len);
  record.resize((record.size() + 3) / 4 * 4);
  append(record, NLM4_GRANTED);
  std::string marked;
  append(marked, kLastFragment | static_cast<std::uint32_t>(record.size()));
  marked += record;
  if (::write(fd, marked.data(), marked.size()) != static_cast<ssize_t>(marked.size())) {
    give_up("granted_res", "write");
  }
  // Its reply says nothing, but that the call was read.
  std::array<char, 64> reply{};
  if (::read(fd, reply.data(), reply.size()) < 0) give_up("granted_res", "read");
  ::close(fd);
}

int on_null(struct rpc_context* rpc, struct rpc_msg* call) {
  return rpc_send_reply(rpc, call, nullptr, reinterpret_cast<zdrproc_t>(zdr_void), 0);
}

int on_granted(struct rpc_context* rpc, struct rpc_msg* call) {
  const auto* const args = static_cast<const NLM4_GRANTEDargs*>(call->body.cbody.args);
  NLM4_GRANTEDres result{};
  result.cookie = args->cookie;
  result.status = NLM4_GRANTED;
  granted_came = true;
  return rpc_send_reply(rpc, call, &result, reinterpret_cast<zdrproc_t>(zdr_NLM4_GRANTEDres), 256);
}

int on_granted_msg(struct rpc_context* rpc, struct rpc_msg* call) {
  const auto* const args = static_cast<const NLM4_GRANTEDargs*>(call->body.cbody.args);
  const int sent = on_null(rpc, call);
  call_granted_res(args->cookie);
  granted_came = true;
  return sent;
}

}  // namespace

NlmSession::NlmSession(const std::string& server, std::string handle)
    : rpc_{rpc_init_context()}, handle_{std::move(handle)} {
  std::array<char, 65> name{};
  if (rpc_ == nullptr || ::gethostname(name.data(), name.size() - 1) != 0) give_up("start", "");
  host_ = name.data();
  owner_ = std::to_string(::getpid()) + '@' + host_;
  Answer answer;
  if (rpc_connect_program_async(rpc_, server.c_str(), NLM_PROGRAM, NLM_V4, connected, &answer) !=
      0) {
    give_up("connect", rpc_get_error(rpc_));
  }
  serve(rpc_, answer.done, "connect");
}

NlmSession::~NlmSession() {
  if (listening_ >= 0) ::close(listening_);
  rpc_destroy_context(rpc_);
}

int NlmSession::lock(const NlmRange& range, bool wait) {
  NLM4_LOCKargs args{};
  args.cookie = next_cookie();
  args.block = wait ? 1 : 0;
  args.exclusive = range.exclusive ? 1 : 0;
  args.lock = lock_of(host_, handle_, owner_, range);
  Answer answer;
  if (rpc_nlm4_lock_async(rpc_, answered<NLM4_LOCKres>, &args, &answer) != 0) give_up("lock", "");
  serve(rpc_, answer.done, "lock");
  return answer.status;
}

int NlmSession::cancel(const NlmRange& range) {
  NLM4_CANCargs args{};
  args.cookie = next_cookie();
  args.block = 1;
  args.exclusive = range.exclusive ? 1 : 0;
  args.lock = lock_of(host_, handle_, owner_, range);
  Answer answer;
  if (rpc_nlm4_cancel_async(rpc_, answered<NLM4_CANCres>, &args, &answer) != 0) {
    give_up("cancel", "");
  }
  serve(rpc_, answer.done, "cancel");
  return answer.status;
}

int NlmSession::unlock(const NlmRange& range) {
  NLM4_UNLOCKargs args{};
  args.cookie = next_cookie();
  args.lock = lock_of(host_, handle_, owner_, range);
  Answer answer;
  if (rpc_nlm4_unlock_async(rpc_, answered<NLM4_UNLOCKres>, &args, &answer) != 0) {
    give_up("unlock", "");
  }
  serve(rpc_, answer.done, "unlock");
  return answer.status;
}

int NlmSession::test(const NlmRange& range, NlmRange& held) {
  NLM4_TESTargs args{};
  args.cookie = next_cookie();
  args.exclusive = range.exclusive ? 1 : 0;
  args.lock = lock_of(host_, handle_, owner_, range);
  Answer answer;
  if (rpc_nlm4_test_async(rpc_, tested, &args, &answer) != 0) give_up("test", "");
  serve(rpc_, answer.done, "test");
  held = answer.held;
  return answer.status;
}

void NlmSession::offer_granted() {
  listening_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  struct sockaddr_in address {};
  address.sin_family = AF_INET;
  socklen_t size = sizeof(address);
  auto* const any = reinterpret_cast<struct sockaddr*>(&address);
  if (listening_ < 0 || ::bind(listening_, any, size) != 0 || ::listen(listening_, 4) != 0 ||
      ::getsockname(listening_, any, &size) != 0) {
    give_up("callback", "socket");
  }
  struct rpc_context* const binder = rpc_init_context();
  Answer answer;
  if (rpc_connect_program_async(binder, "127.0.0.1", 100000, 2, connected, &answer) != 0) {
    give_up("rpcbind", rpc_get_error(binder));
  }
  serve(binder, answer.done, "rpcbind");
  // What a process before us left there is nobody's.
  const auto done = [](struct rpc_context*, int, void*, void* data) {
    static_cast<Answer*>(data)->done = true;
  };
  answer = {};
  rpc_pmap2_unset_async(binder, NLM_PROGRAM, NLM_V4, IPPROTO_TCP, 0, done, &answer);
  serve(binder, answer.done, "rpcbind");
  answer = {};
  rpc_pmap2_set_async(binder, NLM_PROGRAM, NLM_V4, IPPROTO_TCP, ntohs(address.sin_port), done,
                      &answer);
  serve(binder, answer.done, "rpcbind");
  rpc_destroy_context(binder);
}

void NlmSession::await_granted() {
  to_server = rpc_get_fd(rpc_);
  static std::array<struct service_proc, 3> procs{{
      {NLM4_NULL, on_null, reinterpret_cast<zdrproc_t>(zdr_void), 0},
      {NLM4_GRANT, on_granted, reinterpret_cast<zdrproc_t>(zdr_NLM4_GRANTEDargs),
       sizeof(NLM4_GRANTEDargs)},
      {NLM4_GRANT_MSG, on_granted_msg, reinterpret_cast<zdrproc_t>(zdr_NLM4_GRANTEDargs),
       sizeof(NLM4_GRANTEDargs)},
  }};
  while (!granted_came) {
    const int socket = ::accept4(listening_, nullptr, nullptr, SOCK_CLOEXEC);
    if (socket < 0) give_up("callback", "accept");
    struct rpc_context* const server = rpc_init_server_context(socket);
    if (server == nullptr ||
        rpc_register_service(server, NLM_PROGRAM, NLM_V4, procs.data(), procs.size()) != 0) {
      give_up("callback", "service");
    }
    // Until the reply is sent too.
    for (bool open = true; open && (!granted_came || (rpc_which_events(server) & POLLOUT) != 0);) {
      struct pollfd one {};
      one.fd = rpc_get_fd(server);
      one.events = static_cast<short>(rpc_which_events(server));
      if (::poll(&one, 1, -1) < 0) give_up("callback", "poll");
      open = rpc_service(server, one.revents) == 0;
    }
    rpc_destroy_context(server);
  }
}

}  // namespace latchfs::testing
