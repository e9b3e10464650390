#include "nlm/net_outside.h"

#include <poll.h>
#include <rpc/rpc.h>
#include <sys/random.h>
#include <unistd.h>

#include <array>
#include <charconv>
#include <cstring>

#include "base/clock.h"
#include "base/unique_fd.h"
#include "nlm/rpc_message.h"

namespace latchfs::nlm {
namespace {

using std::chrono::milliseconds;

constexpr std::uint32_t kRpcbindProgram = 100000;
constexpr std::uint32_t kGetPort = 3;  // of version 2; GETADDR of version 3
constexpr std::int64_t kRememberedNs = 60'000'000'000;
constexpr std::size_t kMostPorts = 8192;
constexpr int kMostRecords = 8;  // that come on a connection of one call, and are not its answer
constexpr std::uint32_t kLastFragment = 0x80000000;

class Deadline {
 public:
  explicit Deadline(milliseconds patience)
      : at_{monotonic_ns() + std::chrono::nanoseconds{patience}.count()} {}
  // ms, rounded up; 0: it is over.
  [[nodiscard]] int left() const {
    const std::int64_t ns = at_ - monotonic_ns();
    return ns <= 0 ? 0 : static_cast<int>(ns / 1'000'000 + 1);
  }

 private:
  std::int64_t at_;
};

// Until the socket can be read or written. ETIMEDOUT.
Result<void> ready(int fd, short what, int timeout_ms) {
  pollfd one{fd, what, 0};
  const auto n = TEMP_FAILURE_RETRY(::poll(&one, 1, timeout_ms));
  if (n < 0) return last_errno();
  if (n == 0) return errno_code(ETIMEDOUT);
  return {};
}

std::uint32_t fresh_xid() {
  std::uint32_t xid = 0;
  if (::getrandom(&xid, sizeof xid, 0) != sizeof xid)
    xid = static_cast<std::uint32_t>(monotonic_ns());
  return xid;
}

Result<UniqueFd> connected(const Endpoint& endpoint, const std::string& local, bool tcp,
                           const Deadline& deadline) {
  UniqueFd fd{::socket(endpoint.family(),
                       (tcp ? SOCK_STREAM : SOCK_DGRAM) | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)};
  if (!fd) return last_errno();
  // A client takes a grant only from the address it sent its request to.
  auto own = local.empty() ? std::nullopt : Endpoint::parse(local, 0);
  if (own && (own->family() != endpoint.family() || own->any())) own.reset();
  sockaddr_storage source{};
  source.ss_family = static_cast<sa_family_t>(endpoint.family());
  if (own) std::memcpy(&source, own->data(), own->size());
  // statd listens to reserved ports only. Not by TCP, whose closed connections would use up the few
  // there are.
  const bool reserved = !tcp && ::geteuid() == 0 &&
                        ::bindresvport_sa(fd.get(), reinterpret_cast<sockaddr*>(&source)) == 0;
  if (!reserved && own && ::bind(fd.get(), own->data(), own->size()) != 0) return last_errno();
  if (::connect(fd.get(), endpoint.data(), endpoint.size()) == 0) return fd;
  if (errno != EINPROGRESS) return last_errno();
  if (auto done = ready(fd.get(), POLLOUT, deadline.left()); !done) return done.error();
  int err = 0;
  socklen_t size = sizeof err;
  if (::getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &err, &size) != 0) return last_errno();
  if (err != 0) return errno_code(err);
  return fd;
}

Result<void> send_all(int fd, std::string_view bytes, const Deadline& deadline) {
  while (!bytes.empty()) {
    const ssize_t n =
        TEMP_FAILURE_RETRY(::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT));
    if (n >= 0) {
      bytes.remove_prefix(static_cast<std::size_t>(n));
      continue;
    }
    if (errno != EAGAIN) return last_errno();
    if (auto done = ready(fd, POLLOUT, deadline.left()); !done) return done;
  }
  return {};
}

Result<std::string> receive_exactly(int fd, std::size_t size, const Deadline& deadline) {
  std::string bytes(size, '\0');
  std::size_t have = 0;
  while (have < size) {
    // Also of who never pauses.
    if (deadline.left() == 0) return errno_code(ETIMEDOUT);
    const ssize_t n =
        TEMP_FAILURE_RETRY(::recv(fd, bytes.data() + have, size - have, MSG_DONTWAIT));
    if (n > 0) {
      have += static_cast<std::size_t>(n);
      continue;
    }
    if (n == 0) return errno_code(ECONNRESET);
    if (errno != EAGAIN) return last_errno();
    if (auto done = ready(fd, POLLIN, deadline.left()); !done) return done.error();
  }
  return bytes;
}

Result<std::string> receive_record(int fd, const Deadline& deadline) {
  std::string record;
  for (int fragments = 0; fragments < 64; ++fragments) {
    const auto head = receive_exactly(fd, 4, deadline);
    if (!head) return head.error();
    std::uint32_t mark = 0;
    std::memcpy(&mark, head->data(), sizeof mark);
    mark = ntohl(mark);
    const std::size_t size = mark & ~kLastFragment;
    if (record.size() + size > kMostMessage) return errno_code(EPROTO);
    const auto bytes = receive_exactly(fd, size, deadline);
    if (!bytes) return bytes.error();
    record += *bytes;
    if ((mark & kLastFragment) != 0) return record;
  }
  return errno_code(EPROTO);
}

std::string framed(std::string_view message) {
  const std::uint32_t mark = htonl(static_cast<std::uint32_t>(message.size()) | kLastFragment);
  std::string out(reinterpret_cast<const char*>(&mark), sizeof mark);
  out += message;
  return out;
}

// Nothing: it is the answer to something else.
std::optional<Result<std::string>> results_of(std::string_view message, std::uint32_t xid) {
  const auto reply = decode_reply(message);
  if (!reply || reply->xid != xid) return std::nullopt;
  if (reply->denied) return Result<std::string>{errno_code(EACCES)};
  if (reply->accept == Accept::kProgramUnavailable) {
    return Result<std::string>{errno_code(ENOENT)};
  }
  if (reply->accept != Accept::kSuccess) return Result<std::string>{errno_code(EPROTO)};
  return Result<std::string>{std::string{reply->results}};
}

Result<std::string> exchange_datagrams(int fd, std::string_view message, std::uint32_t xid,
                                       const Deadline& deadline, milliseconds patience,
                                       unsigned& unanswered) {
  const unsigned before = unanswered;
  const auto resend = static_cast<int>(patience.count() / 3 + 1);
  std::array<char, kMostMessage> buffer;
  while (deadline.left() > 0) {
    if (auto sent = send_all(fd, message, deadline); !sent) return sent.error();
    ++unanswered;
    const Deadline round{milliseconds{std::min(resend, deadline.left())}};
    while (round.left() > 0) {
      if (auto can = ready(fd, POLLIN, round.left()); !can) {
        if (can.error() == errno_code(ETIMEDOUT)) break;
        return can.error();
      }
      const ssize_t n = TEMP_FAILURE_RETRY(::recv(fd, buffer.data(), buffer.size(), MSG_DONTWAIT));
      if (n < 0 && errno == EAGAIN) continue;
      if (n < 0) {
        // Nobody is there: nor was he for the only copy.
        if (errno == ECONNREFUSED && unanswered == before + 1) unanswered = before;
        return last_errno();
      }
      if (auto results = results_of({buffer.data(), static_cast<std::size_t>(n)}, xid)) {
        --unanswered;
        return *results;
      }
    }
  }
  return errno_code(ETIMEDOUT);
}

// XDR of a few words and strings, for rpcbind.
void put_word(std::string& out, std::uint32_t word) {
  const std::uint32_t bytes = htonl(word);
  out.append(reinterpret_cast<const char*>(&bytes), sizeof bytes);
}
void put_text(std::string& out, std::string_view text) {
  put_word(out, static_cast<std::uint32_t>(text.size()));
  out += text;
  out.append((4 - text.size() % 4) % 4, '\0');
}
std::optional<std::uint32_t> get_word(std::string_view& in) {
  if (in.size() < 4) return std::nullopt;
  std::uint32_t word = 0;
  std::memcpy(&word, in.data(), sizeof word);
  in.remove_prefix(4);
  return ntohl(word);
}

// The port of a universal address: "ADDRESS.HIGH.LOW" (RFC 5665).
std::uint16_t port_in(std::string_view universal) {
  std::uint32_t port = 0;
  std::uint32_t weight = 1;
  for (int part = 0; part < 2; ++part) {
    const std::size_t dot = universal.rfind('.');
    if (dot == std::string_view::npos) return 0;
    const std::string_view digits = universal.substr(dot + 1);
    std::uint32_t byte = 0;
    const auto [end, err] = std::from_chars(digits.data(), digits.data() + digits.size(), byte);
    if (err != std::errc{} || end != digits.data() + digits.size() || byte > 255) return 0;
    port += byte * weight;
    weight = 256;
    universal = universal.substr(0, dot);
  }
  return static_cast<std::uint16_t>(port);
}

bool worth_another_port(std::error_code error) {
  return error == errno_code(ETIMEDOUT) || error == errno_code(ECONNREFUSED) ||
         error == errno_code(ENOENT) || error == errno_code(ECONNRESET);
}

}  // namespace

Result<std::string> call_at(const Endpoint& endpoint, const std::string& local, bool tcp,
                            std::uint32_t program, std::uint32_t version, std::uint32_t procedure,
                            std::string_view arguments, milliseconds patience,
                            unsigned& unanswered) {
  const Deadline deadline{patience};
  const std::uint32_t xid = fresh_xid();
  const std::string message = encode_call(xid, program, version, procedure, arguments);
  const auto fd = connected(endpoint, local, tcp, deadline);
  if (!fd) return fd.error();
  if (!tcp) return exchange_datagrams(fd->get(), message, xid, deadline, patience, unanswered);
  if (auto sent = send_all(fd->get(), framed(message), deadline); !sent) return sent.error();
  ++unanswered;  // (of less than the whole nothing is done)
  for (int records = 0; records < kMostRecords; ++records) {
    const auto record = receive_record(fd->get(), deadline);
    if (!record) return record.error();
    if (auto results = results_of(*record, xid)) {
      --unanswered;
      return *results;
    }
  }
  return errno_code(EPROTO);
}

Result<std::uint16_t> NetOutside::port_of(const Where& where, std::uint32_t program,
                                          std::uint32_t version, milliseconds patience) {
  const auto rpcbind = Endpoint::parse(where.address, rpcbind_port_);
  unsigned unanswered = 0;  // asked twice is as good as once
  if (!rpcbind) return errno_code(EINVAL);
  std::string arguments;
  put_word(arguments, program);
  put_word(arguments, version);
  if (rpcbind->family() == AF_INET) {
    put_word(arguments, where.tcp ? IPPROTO_TCP : IPPROTO_UDP);
    put_word(arguments, 0);
    const auto answer = call_at(*rpcbind, where.local, false, kRpcbindProgram, 2, kGetPort,
                                arguments, patience, unanswered);
    if (!answer) return answer.error();
    std::string_view rest = *answer;
    const auto port = get_word(rest);
    if (!port || *port > 0xffff) return errno_code(EPROTO);
    if (*port == 0) return errno_code(ENOENT);
    return static_cast<std::uint16_t>(*port);
  }
  put_text(arguments, where.tcp ? "tcp6" : "udp6");
  put_text(arguments, "");
  put_text(arguments, "");
  const auto answer = call_at(*rpcbind, where.local, false, kRpcbindProgram, 3, kGetPort, arguments,
                              patience, unanswered);
  if (!answer) return answer.error();
  std::string_view rest = *answer;
  const auto size = get_word(rest);
  if (!size || *size > rest.size()) return errno_code(EPROTO);
  if (*size == 0) return errno_code(ENOENT);
  const std::uint16_t port = port_in(rest.substr(0, *size));
  if (port == 0) return errno_code(EPROTO);
  return port;
}

std::optional<std::uint16_t> NetOutside::remembered(const Key& key) {
  const MutexLock hold{mu_};
  const auto it = ports_.find(key);
  if (it == ports_.end() || monotonic_ns() - it->second.at > kRememberedNs) return std::nullopt;
  return it->second.number;
}

void NetOutside::remember(const Key& key, std::uint16_t port) {
  const MutexLock hold{mu_};
  if (ports_.size() >= kMostPorts) ports_.clear();
  ports_[key] = {port, monotonic_ns()};
}

void NetOutside::forget(const Key& key) {
  const MutexLock hold{mu_};
  ports_.erase(key);
}

Result<std::string> NetOutside::exchange(const Where& where, std::uint32_t program,
                                         std::uint32_t version, std::uint32_t procedure,
                                         std::string_view arguments, milliseconds patience,
                                         unsigned& unanswered) {
  unanswered = 0;
  const Key key{where.address, program, version, where.tcp};
  auto known = remembered(key);
  for (;;) {
    std::uint16_t number = known.value_or(0);
    if (!known) {
      const auto port = port_of(where, program, version, patience);
      if (!port) return port.error();
      number = *port;
    }
    const auto endpoint = Endpoint::parse(where.address, number);
    if (!endpoint) return errno_code(EINVAL);
    auto results = call_at(*endpoint, where.local, where.tcp, program, version, procedure,
                           arguments, patience, unanswered);
    if (results) {
      if (!known) remember(key, number);
      return results;
    }
    forget(key);
    // It may have moved since.
    if (!known || !worth_another_port(results.error())) return results;
    known.reset();
  }
}

Result<void> NetOutside::tell(const Where& where, std::uint32_t program, std::uint32_t version,
                              std::uint32_t procedure, std::string_view arguments,
                              milliseconds patience) {
  const Key key{where.address, program, version, where.tcp};
  auto known = remembered(key);
  if (!known) {
    const auto port = port_of(where, program, version, patience);
    if (!port) return port.error();
    known = *port;
    // By a datagram nobody would learn that it has moved: then it is asked for each minute.
    remember(key, *port);
  }
  const auto endpoint = Endpoint::parse(where.address, *known);
  if (!endpoint) return errno_code(EINVAL);
  const Deadline deadline{patience};
  const std::string message = encode_call(fresh_xid(), program, version, procedure, arguments);
  const auto fd = connected(*endpoint, where.local, where.tcp, deadline);
  Result<void> sent = fd ? send_all(fd->get(), where.tcp ? framed(message) : message, deadline)
                         : Result<void>{fd.error()};
  if (!sent) forget(key);
  return sent;
}

}  // namespace latchfs::nlm
