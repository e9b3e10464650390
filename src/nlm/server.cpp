#include "nlm/server.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "base/clock.h"
#include "base/log.h"

namespace latchfs::nlm {
namespace {

constexpr std::uint32_t kLastFragment = 0x80000000;
constexpr std::size_t kMark = 4;
constexpr int kMostFragments = 64;
constexpr int kRecordsATurn = 16;
constexpr int kAcceptsATurn = 16;
constexpr int kPortTries = 64;

// Room for the one control message we ask for.
union Control {
  cmsghdr align;
  std::array<char, CMSG_SPACE(sizeof(in6_pktinfo))> bytes;
};

// Which of our addresses a datagram was sent to.
Endpoint destination(msghdr& message, const Endpoint& bound) {
  Endpoint out = bound;
  for (cmsghdr* c = CMSG_FIRSTHDR(&message); c != nullptr; c = CMSG_NXTHDR(&message, c)) {
    if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_PKTINFO) {
      in_pktinfo info{};
      std::memcpy(&info, CMSG_DATA(c), sizeof info);
      sockaddr_in address{};
      address.sin_family = AF_INET;
      address.sin_addr = info.ipi_addr;
      address.sin_port = htons(bound.port());
      if (const auto found =
              Endpoint::from(reinterpret_cast<sockaddr*>(&address), sizeof address)) {
        out = *found;
      }
    } else if (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_PKTINFO) {
      in6_pktinfo info{};
      std::memcpy(&info, CMSG_DATA(c), sizeof info);
      sockaddr_in6 address{};
      address.sin6_family = AF_INET6;
      address.sin6_addr = info.ipi6_addr;
      address.sin6_port = htons(bound.port());
      if (IN6_IS_ADDR_LINKLOCAL(&info.ipi6_addr)) address.sin6_scope_id = info.ipi6_ifindex;
      if (const auto found =
              Endpoint::from(reinterpret_cast<sockaddr*>(&address), sizeof address)) {
        out = *found;
      }
    }
  }
  return out;
}

// So that the answer leaves from the address that was asked. The control message is the one that
// came, but that the kernel chooses the interface again.
void answer_from(msghdr& message) {
  for (cmsghdr* c = CMSG_FIRSTHDR(&message); c != nullptr; c = CMSG_NXTHDR(&message, c)) {
    if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_PKTINFO) {
      in_pktinfo info{};
      std::memcpy(&info, CMSG_DATA(c), sizeof info);
      info.ipi_spec_dst = info.ipi_addr;
      info.ipi_ifindex = 0;
      std::memcpy(CMSG_DATA(c), &info, sizeof info);
    }
  }
}

Result<Endpoint> local_of(int fd) {
  sockaddr_storage storage{};
  socklen_t size = sizeof storage;
  if (::getsockname(fd, reinterpret_cast<sockaddr*>(&storage), &size) != 0) return last_errno();
  const auto out = Endpoint::from(reinterpret_cast<sockaddr*>(&storage), size);
  if (!out) return errno_code(EAFNOSUPPORT);
  return *out;
}

}  // namespace

struct Server::Socket final : Watched {
  Endpoint bound;
  bool tcp{};
  bool only_statd{};
};

// Touched by the thread that has it, but for the atomics.
struct Server::Connection final : Watched {
  Peer peer;
  std::string in;      // received, not taken apart
  std::string record;  // fragments so far
  int fragments{};
  std::string out;                     // of an answer, not sent yet
  std::atomic<std::int64_t> used{0};   // monotonic ns: when a record was complete last
  std::atomic<std::int64_t> since{0};  // when it began what it has not finished; 0: nothing

  enum class Next : std::uint8_t { kMore, kRecord, kBroken };
  // Takes the next record from `in`.
  Next next(std::string& message) {
    for (;;) {
      if (in.size() < kMark) return Next::kMore;
      std::uint32_t mark = 0;
      std::memcpy(&mark, in.data(), sizeof mark);
      mark = ntohl(mark);
      const std::size_t size = mark & ~kLastFragment;
      if (record.size() + size > kMostMessage || ++fragments > kMostFragments) {
        return Next::kBroken;
      }
      if (in.size() < kMark + size) {
        --fragments;
        return Next::kMore;
      }
      record.append(in, kMark, size);
      in.erase(0, kMark + size);
      if ((mark & kLastFragment) == 0) continue;
      fragments = 0;
      message = std::move(record);
      record.clear();
      return Next::kRecord;
    }
  }
};

Server::Server(Options options, Handler handler)
    : options_{std::move(options)}, handler_{std::move(handler)} {}

Result<std::unique_ptr<Server>> Server::open(Options options, Handler handler) {
  std::unique_ptr<Server> server{new Server{std::move(options), std::move(handler)}};
  server->epoll_ = UniqueFd{::epoll_create1(EPOLL_CLOEXEC)};
  server->quit_ = UniqueFd{::eventfd(0, EFD_CLOEXEC)};
  if (!server->epoll_ || !server->quit_) return last_errno();
  epoll_event event{EPOLLIN, {nullptr}};
  if (::epoll_ctl(server->epoll_.get(), EPOLL_CTL_ADD, server->quit_.get(), &event) != 0) {
    return last_errno();
  }
  for (int tries = 1;; ++tries) {
    const auto bound = server->bind_all(server->options_.port);
    if (bound) return server;
    // One the kernel chose for the first may be taken at the next.
    const bool again = bound.error() == errno_code(EADDRINUSE) && server->options_.port == 0;
    if (!again || tries == kPortTries) return bound.error();
  }
}

Server::~Server() { stop(); }

Result<void> Server::bind_all(std::uint16_t port) {
  sockets_.clear();
  for (const Listen& listen : options_.listen) {
    for (const bool tcp : {false, true}) {
      if (auto bound = bind_one(listen, tcp, port); !bound) return bound;
      port = sockets_.back()->bound.port();
    }
  }
  port_ = port;
  return {};
}

Result<void> Server::bind_one(const Listen& listen, bool tcp, std::uint16_t port) {
  const auto where = Endpoint::parse(listen.address, port);
  if (!where) return errno_code(EINVAL);
  auto socket = std::make_unique<Socket>();
  socket->tcp = tcp;
  socket->only_statd = listen.only_statd;
  socket->fd = UniqueFd{::socket(
      where->family(), (tcp ? SOCK_STREAM : SOCK_DGRAM) | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)};
  if (!socket->fd) return last_errno();
  const int fd = socket->fd.get();
  const int on = 1;
  if (where->family() == AF_INET6) {
    ::setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on);
    ::setsockopt(fd, IPPROTO_IPV6, IPV6_RECVPKTINFO, &on, sizeof on);
  } else {
    ::setsockopt(fd, IPPROTO_IP, IP_PKTINFO, &on, sizeof on);
  }
  // For a port somebody asked for, at once after a restart; not for one of the kernel's choice.
  if (tcp) ::setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (::bind(fd, where->data(), where->size()) != 0) return last_errno();
  if (tcp && ::listen(fd, 128) != 0) return last_errno();
  const auto bound = local_of(fd);
  if (!bound) return bound.error();
  socket->bound = *bound;
  sockets_.push_back(std::move(socket));
  return {};
}

Result<void> Server::watch(Watched& what, std::uint32_t events, bool first) noexcept {
  epoll_event event{events | EPOLLONESHOT, {&what}};
  const int fd = what.fd.get();
  what.turns.fetch_add(1, std::memory_order_release);
  // From here on it is somebody else's.
  if (::epoll_ctl(epoll_.get(), first ? EPOLL_CTL_ADD : EPOLL_CTL_MOD, fd, &event) != 0) {
    return last_errno();
  }
  return {};
}

void Server::start() {
  for (const auto& socket : sockets_) {
    if (const auto watched = watch(*socket, EPOLLIN, true); !watched) {
      log::error("a socket cannot be served: {}", watched.error().message());
    }
  }
  for (unsigned i = 0; i < options_.threads; ++i) threads_.emplace_back([this] { work(); });
}

void Server::stop() noexcept {
  stopping_ = true;
  const std::uint64_t one = 1;
  [[maybe_unused]] const ssize_t n = ::write(quit_.get(), &one, sizeof one);
  for (std::thread& thread : threads_) {
    if (thread.joinable()) thread.join();
  }
  std::map<Watched*, ConnectionPtr> gone;
  const MutexLock hold{mu_};
  gone.swap(connections_);
}

void Server::work() noexcept {
  while (!stopping_) {
    epoll_event event{};
    if (::epoll_wait(epoll_.get(), &event, 1, -1) != 1 || event.data.ptr == nullptr) continue;
    auto* const what = static_cast<Watched*>(event.data.ptr);
    // Kept until this thread is out of the call that passed it on: nobody closes it before.
    if (const ConnectionPtr connection = connection_at(what)) {
      static_cast<void>(connection->turns.load(std::memory_order_acquire));
      if (!serve_connection(*connection)) forget(*connection);
    } else if (auto* const socket = static_cast<Socket*>(what); socket->tcp) {
      accept_some(*socket);
    } else {
      serve_datagram(*socket);
    }
  }
}

Server::ConnectionPtr Server::connection_at(Watched* what) noexcept {
  const MutexLock hold{mu_};
  const auto it = connections_.find(what);
  return it == connections_.end() ? nullptr : it->second;
}

bool Server::may_ask(Peer& peer) const {
  if (peer.only_statd) return peer.remote.loopback();
  const auto allows = [&](const Network& n) { return n.contains(peer.remote); };
  if (options_.allow.empty() || std::any_of(options_.allow.begin(), options_.allow.end(), allows)) {
    return true;
  }
  peer.only_statd = peer.remote.loopback();
  return peer.only_statd;
}

std::string Server::handle(std::string_view message, const Peer& peer) noexcept {
  try {
    return handler_(message, peer);
  } catch (const std::exception& e) {
    if (complained_.due()) log::error("a request is not answered: {}", e.what());
    return {};
  }
}

void Server::serve_datagram(Socket& socket) noexcept {
  std::array<char, kMostMessage> buffer;
  Control control;
  sockaddr_storage from{};
  iovec part{buffer.data(), buffer.size()};
  msghdr message{};
  message.msg_name = &from;
  message.msg_namelen = sizeof from;
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = &control;
  message.msg_controllen = sizeof control;
  const ssize_t n = ::recvmsg(socket.fd.get(), &message, 0);
  // The next datagram is somebody else's work.
  if (const auto watched = watch(socket, EPOLLIN, false); !watched && complained_.due()) {
    log::error("a socket is not served any more: {}", watched.error().message());
  }
  if (n < 0 || (message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0) return;
  const auto remote = Endpoint::from(reinterpret_cast<sockaddr*>(&from), message.msg_namelen);
  // (Nobody can be answered at port 0.)
  if (!remote || remote->port() == 0) return;
  Peer peer{*remote, destination(message, socket.bound), false, socket.only_statd};
  if (!may_ask(peer)) return;
  std::string answer = handle({buffer.data(), static_cast<std::size_t>(n)}, peer);
  if (answer.empty()) return;
  part = {answer.data(), answer.size()};
  message.msg_flags = 0;
  answer_from(message);
  // What does not fit now is lost, as datagrams are.
  ::sendmsg(socket.fd.get(), &message, MSG_DONTWAIT);
}

void Server::accept_some(Socket& socket) noexcept {
  for (int i = 0; i < kAcceptsATurn; ++i) {
    sockaddr_storage from{};
    socklen_t size = sizeof from;
    UniqueFd fd{::accept4(socket.fd.get(), reinterpret_cast<sockaddr*>(&from), &size,
                          SOCK_CLOEXEC | SOCK_NONBLOCK)};
    if (!fd) {
      if (errno != EMFILE && errno != ENFILE) break;
      // One that somebody may still need goes for one that somebody needs now.
      std::vector<ConnectionPtr> all;
      try {
        const MutexLock hold{mu_};
        for (const auto& [raw, connection] : connections_) all.push_back(connection);
      } catch (...) {
        break;
      }
      if (const ConnectionPtr oldest = least_used(all, nullptr)) {
        ::shutdown(oldest->fd.get(), SHUT_RDWR);
      }
      if (complained_.due()) log::warn("no descriptors left: a connection has to wait");
      const timespec moment{0, 10'000'000};
      ::nanosleep(&moment, nullptr);
      break;
    }
    const auto remote = Endpoint::from(reinterpret_cast<sockaddr*>(&from), size);
    if (!remote) continue;
    try {
      accept_one(std::move(fd), *remote, socket);
    } catch (const std::exception& e) {
      if (complained_.due()) log::error("a connection is refused: {}", e.what());
    }
  }
  if (const auto watched = watch(socket, EPOLLIN, false); !watched && complained_.due()) {
    log::error("a socket is not served any more: {}", watched.error().message());
  }
}

Server::ConnectionPtr Server::least_used(const std::vector<ConnectionPtr>& all,
                                         const Endpoint* of) {
  ConnectionPtr out;
  for (const ConnectionPtr& one : all) {
    if (of != nullptr && one->peer.remote.bytes() != of->bytes()) continue;
    if (!out || one->used < out->used) out = one;
  }
  return out;
}

void Server::accept_one(UniqueFd fd, const Endpoint& remote, const Socket& socket) {
  auto connection = std::make_shared<Connection>();
  const auto local = local_of(fd.get());
  connection->peer = {remote, local ? *local : socket.bound, true, socket.only_statd};
  if (!may_ask(connection->peer)) return;
  const int on = 1;
  ::setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  ::setsockopt(fd.get(), SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
  connection->fd = std::move(fd);
  connection->used = monotonic_ns();
  std::vector<ConnectionPtr> all;
  std::size_t of_address = 0;
  {
    const MutexLock hold{mu_};
    for (const auto& [raw, one] : connections_) {
      all.push_back(one);
      of_address += one->peer.remote.bytes() == remote.bytes() ? 1 : 0;
    }
    connections_.emplace(connection.get(), connection);
  }
  // Who has served longest without a request goes; whoever it was connects again when he needs to.
  ConnectionPtr least;
  if (of_address >= options_.most_of_one_address) {
    least = least_used(all, &remote);
  } else if (all.size() >= options_.most_connections) {
    least = least_used(all, nullptr);
  }
  if (least) ::shutdown(least->fd.get(), SHUT_RDWR);
  if (const auto watched = watch(*connection, EPOLLIN, true); !watched) forget(*connection);
}

bool Server::serve_connection(Connection& c) noexcept {
  try {
    for (int records = 0;;) {
      while (!c.out.empty()) {
        const ssize_t n = TEMP_FAILURE_RETRY(
            ::send(c.fd.get(), c.out.data(), c.out.size(), MSG_NOSIGNAL | MSG_DONTWAIT));
        if (n < 0) {
          if (errno != EAGAIN) return false;
          if (c.since == 0) c.since = monotonic_ns();
          return watch(c, EPOLLOUT, false).ok();
        }
        c.out.erase(0, static_cast<std::size_t>(n));
        if (c.out.empty()) c.since = 0;
      }
      std::string message;
      const Connection::Next next = c.next(message);
      if (next == Connection::Next::kBroken) return false;
      if (next == Connection::Next::kRecord) {
        c.since = 0;
        c.used = monotonic_ns();
        const std::string answer = handle(message, c.peer);
        if (!answer.empty()) {
          const std::uint32_t mark =
              htonl(static_cast<std::uint32_t>(answer.size()) | kLastFragment);
          c.out.assign(reinterpret_cast<const char*>(&mark), sizeof mark);
          c.out += answer;
        }
        // Others have their turn; a socket that can be written comes back at once.
        if (++records == kRecordsATurn) return watch(c, EPOLLIN | EPOLLOUT, false).ok();
        continue;
      }
      std::array<char, kMostMessage> buffer;
      const ssize_t n = ::recv(c.fd.get(), buffer.data(), buffer.size(), MSG_DONTWAIT);
      if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) return false;
      if (n > 0) {
        c.in.append(buffer.data(), static_cast<std::size_t>(n));
        continue;
      }
      if (c.in.empty() && c.record.empty()) {
        c.since = 0;
      } else if (c.since == 0) {
        c.since = monotonic_ns();
      }
      return watch(c, EPOLLIN, false).ok();
    }
  } catch (const std::exception& e) {
    if (complained_.due()) log::error("a connection is closed: {}", e.what());
    return false;
  }
}

void Server::forget(Connection& connection) noexcept {
  ConnectionPtr gone;  // closed after the mutex
  const MutexLock hold{mu_};
  const auto it = connections_.find(&connection);
  if (it == connections_.end()) return;
  gone = std::move(it->second);
  connections_.erase(it);
}

void Server::tick() {
  const std::int64_t now = monotonic_ns();
  std::vector<ConnectionPtr> late;
  {
    const MutexLock hold{mu_};
    for (const auto& [raw, connection] : connections_) {
      const std::int64_t since = connection->since;
      if ((since != 0 && now - since > options_.record_ns) ||
          now - connection->used > options_.idle_ns) {
        late.push_back(connection);
      }
    }
  }
  // Whoever has it in hand sees that it is over.
  for (const ConnectionPtr& connection : late) ::shutdown(connection->fd.get(), SHUT_RDWR);
}

std::size_t Server::connections() {
  const MutexLock hold{mu_};
  return connections_.size();
}

}  // namespace latchfs::nlm
