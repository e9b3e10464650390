#include "nlm_session.h"

#include <netinet/in.h>
#include <nfsc/libnfs-raw-nlm.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "rpc_loop.h"

namespace latchfs::testing {

namespace {

struct Answer {
  bool done{};
  int status{};
  NlmRange held;
};

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

// RFC 5531, by hand: what a server calls back with is one of two calls, and NLM_GRANTED_RES is a
// call that libnfs has not.
class Record {
 public:
  Record() = default;
  explicit Record(std::string bytes) : bytes_{std::move(bytes)} {}

  void put(std::uint32_t word) {
    word = htonl(word);
    bytes_.append(reinterpret_cast<const char*>(&word), sizeof(word));
  }
  void put_opaque(const std::string& opaque) {
    put(static_cast<std::uint32_t>(opaque.size()));
    bytes_ += opaque;
    bytes_.resize((bytes_.size() + 3) / 4 * 4);
  }
  std::uint32_t take() {
    if (bytes_.size() - at_ < 4) give_up("callback", "short");
    std::uint32_t word = 0;
    std::memcpy(&word, bytes_.data() + at_, sizeof(word));
    at_ += sizeof(word);
    return ntohl(word);
  }
  std::string take_opaque() {
    const std::size_t n = take();
    const std::size_t padded = (n + 3) / 4 * 4;
    if (n > bytes_.size() - at_ || padded > bytes_.size() - at_) give_up("callback", "short");
    std::string opaque = bytes_.substr(at_, n);
    at_ += padded;
    return opaque;
  }

  void send(int fd) const {
    Record marked;
    marked.put(kLastFragment | static_cast<std::uint32_t>(bytes_.size()));
    marked.bytes_ += bytes_;
    if (::write(fd, marked.bytes_.data(), marked.bytes_.size()) !=
        static_cast<ssize_t>(marked.bytes_.size())) {
      give_up("record", "write");
    }
  }
  // False at the end of the connection.
  static bool receive(int fd, Record& record) {
    std::uint32_t mark = 0;
    if (::recv(fd, &mark, sizeof(mark), MSG_WAITALL) != static_cast<ssize_t>(sizeof(mark))) {
      return false;
    }
    const std::uint32_t size = ntohl(mark) & ~kLastFragment;
    std::string bytes(size, '\0');
    if (size > 8192 || (ntohl(mark) & kLastFragment) == 0 ||
        ::recv(fd, bytes.data(), size, MSG_WAITALL) != static_cast<ssize_t>(size)) {
      give_up("record", "size");
    }
    record = Record{std::move(bytes)};
    return true;
  }

 private:
  static constexpr std::uint32_t kLastFragment = 0x80000000;
  std::string bytes_;
  std::size_t at_{};
};

// The answer to NLM_GRANTED_MSG, to the lock service that `to_server` is connected with.
void call_granted_res(int to_server, const std::string& cookie) {
  constexpr std::uint32_t kGrantedRes = 15;
  struct sockaddr_storage address {};
  socklen_t size = sizeof(address);
  auto* const any = reinterpret_cast<struct sockaddr*>(&address);
  if (::getpeername(to_server, any, &size) != 0) give_up("granted_res", "peer");
  const int fd = ::socket(any->sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0 || ::connect(fd, any, size) != 0) give_up("granted_res", "connect");
  Record call;
  // Transaction, call, RPC version 2; credentials and verifier are AUTH_NONE.
  for (const std::uint32_t word : {0x6c617463U, 0U, 2U, std::uint32_t{NLM_PROGRAM},
                                   std::uint32_t{NLM_V4}, kGrantedRes, 0U, 0U, 0U, 0U}) {
    call.put(word);
  }
  call.put_opaque(cookie);
  call.put(NLM4_GRANTED);
  call.send(fd);
  // Its reply says no more than that the call was read.
  Record reply;
  Record::receive(fd, reply);
  ::close(fd);
}

// Answers the calls of one connection; true when one of them was GRANTED.
bool serve_granted(int fd, int to_server) {
  constexpr std::uint32_t kGranted = 5;
  constexpr std::uint32_t kGrantedMsg = 10;
  for (Record call; Record::receive(fd, call);) {
    const std::uint32_t transaction = call.take();
    for (int words = 0; words < 4; ++words) call.take();
    const std::uint32_t procedure = call.take();
    for (int of = 0; of < 2; ++of) {  // credentials, verifier
      call.take();
      call.take_opaque();
    }
    Record reply;
    // Reply, accepted, verifier AUTH_NONE, success.
    for (const std::uint32_t word : {transaction, 1U, 0U, 0U, 0U, 0U}) reply.put(word);
    const bool granted = procedure == kGranted || procedure == kGrantedMsg;
    const std::string cookie = granted ? call.take_opaque() : "";
    if (procedure == kGranted) {
      reply.put_opaque(cookie);
      reply.put(NLM4_GRANTED);
    }
    reply.send(fd);
    if (procedure == kGrantedMsg) call_granted_res(to_server, cookie);
    if (granted) return true;
  }
  return false;
}

}  // namespace

NlmSession::NlmSession(const std::string& server, std::string handle)
    : rpc_{rpc_init_context()}, handle_{std::move(handle)} {
  std::array<char, 65> name{};
  if (rpc_ == nullptr || ::gethostname(name.data(), name.size() - 1) != 0) give_up("start", "");
  host_ = name.data();
  owner_ = std::to_string(::getpid()) + '@' + host_;
  connect(rpc_, server, NLM_PROGRAM, NLM_V4, "connect");
}

NlmSession::~NlmSession() {
  if (listening_ >= 0) ::close(listening_);
  rpc_destroy_context(rpc_);
}

int NlmSession::lock(const NlmRange& range, bool wait, bool reclaim) {
  NLM4_LOCKargs args{};
  args.cookie = next_cookie();
  args.block = wait ? 1 : 0;
  args.reclaim = reclaim ? 1 : 0;
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
  connect(binder, "127.0.0.1", 100000, 2, "rpcbind");
  // What a process before us left there is nobody's.
  const auto done = [](struct rpc_context*, int, void*, void* data) {
    static_cast<Answer*>(data)->done = true;
  };
  Answer answer;
  rpc_pmap2_unset_async(binder, NLM_PROGRAM, NLM_V4, IPPROTO_TCP, 0, done, &answer);
  serve(binder, answer.done, "rpcbind");
  answer = {};
  rpc_pmap2_set_async(binder, NLM_PROGRAM, NLM_V4, IPPROTO_TCP, ntohs(address.sin_port), done,
                      &answer);
  serve(binder, answer.done, "rpcbind");
  rpc_destroy_context(binder);
}

void NlmSession::await_granted() {
  for (bool granted = false; !granted;) {
    const int fd = ::accept4(listening_, nullptr, nullptr, SOCK_CLOEXEC);
    if (fd < 0) give_up("callback", "accept");
    granted = serve_granted(fd, rpc_get_fd(rpc_));
    ::close(fd);
  }
}

}  // namespace latchfs::testing
