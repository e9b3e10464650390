// The sockets: datagrams, connections with record marks (RFC 5531, 11), and the threads that serve
// them.
//
// Each thread waits for all sockets at once; a socket is given to one of them at a time
// (EPOLLONESHOT). So requests of one connection are answered in their order, and a client that does
// not read its answers, or sends half a record, holds up itself alone.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "base/mutex.h"
#include "base/seldom.h"
#include "base/unique_fd.h"
#include "latchfs/result.h"
#include "nlm/address.h"
#include "nlm/dispatcher.h"

namespace latchfs::nlm {

class Server {
 public:
  struct Listen {
    std::string address;  // numeric
    bool only_statd{};    // for this machine's statd alone
  };
  struct Options {
    std::vector<Listen> listen;
    std::uint16_t port{};        // 0: any, the same for all addresses and both transports
    std::vector<Network> allow;  // who may ask; empty: all. statd always may, as statd.
    unsigned threads{16};
    std::size_t most_connections{512};
    std::size_t most_of_one_address{64};
    std::int64_t idle_ns{360'000'000'000};   // a silent connection is closed
    std::int64_t record_ns{10'000'000'000};  // and one that takes longer for one record or answer
  };
  // The answer to a message, "": none. Any thread. What it throws costs that message.
  using Handler = std::function<std::string(std::string_view message, const Peer& peer)>;

  // Binds. EADDRINUSE, EADDRNOTAVAIL, EACCES, EINVAL (an address that is none).
  static Result<std::unique_ptr<Server>> open(Options options, Handler handler);
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  [[nodiscard]] std::uint16_t port() const { return port_; }

  // Begins to serve.
  void start();
  // Once a second or so: closes connections as the options say.
  void tick() EXCLUDES(mu_);
  // Waits for the requests that are being served.
  void stop() noexcept;

  [[nodiscard]] std::size_t connections() EXCLUDES(mu_);

 private:
  struct Socket;
  struct Connection;
  using ConnectionPtr = std::shared_ptr<Connection>;
  // What epoll gives back. Kept in sockets_ or connections_.
  struct Watched {
    virtual ~Watched() = default;
    UniqueFd fd;
    // Stored by the thread that gives it back to epoll, loaded by the one that gets it.
    std::atomic<std::uint32_t> turns{0};
  };

  Server(Options options, Handler handler);
  Result<void> bind_all(std::uint16_t port);
  Result<void> bind_one(const Listen& listen, bool tcp, std::uint16_t port);
  Result<void> watch(Watched& what, std::uint32_t events, bool first) noexcept;
  // Nothing: it is a socket, of sockets_.
  ConnectionPtr connection_at(Watched* what) noexcept EXCLUDES(mu_);
  void work() noexcept;
  [[nodiscard]] bool may_ask(Peer& peer) const;
  [[nodiscard]] std::string handle(std::string_view message, const Peer& peer) noexcept;
  void serve_datagram(Socket& socket) noexcept;
  void accept_some(Socket& socket) noexcept EXCLUDES(mu_);
  void accept_one(UniqueFd fd, const Endpoint& remote, const Socket& socket) EXCLUDES(mu_);
  // False: it is over.
  bool serve_connection(Connection& connection) noexcept;
  void forget(Connection& connection) noexcept EXCLUDES(mu_);
  static ConnectionPtr least_used(const std::vector<ConnectionPtr>& all, const Endpoint* of);

  const Options options_;
  const Handler handler_;
  std::uint16_t port_{};
  UniqueFd epoll_;
  UniqueFd quit_;  // eventfd
  std::vector<std::unique_ptr<Socket>> sockets_;
  std::vector<std::thread> threads_;
  std::atomic<bool> stopping_{false};
  Seldom complained_{10'000'000'000};
  Mutex mu_;  // leaf
  std::map<Watched*, ConnectionPtr> connections_ GUARDED_BY(mu_);
};

}  // namespace latchfs::nlm
