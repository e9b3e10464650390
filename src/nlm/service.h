// The whole lock manager on one lock service: sockets at the top, the desk below.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <thread>

#include "base/mutex.h"
#include "latchfs/lock_service.h"
#include "latchfs/result.h"
#include "nlm/dispatcher.h"
#include "nlm/files_in_turn.h"
#include "nlm/hosts.h"
#include "nlm/lock_desk.h"
#include "nlm/monitor.h"
#include "nlm/outcalls.h"
#include "nlm/places.h"
#include "nlm/server.h"

namespace latchfs::nlm {

class Service {
 public:
  struct Options {
    Server::Options server;
    Dispatcher::Options dispatcher;
    LockDesk::Options desk;
    Hosts::Options hosts;
    Monitor::Options monitor;
    // How long statd or a mount may hold up a request before no more than a quarter of the threads
    // are left to it.
    std::int64_t patience_ns{2'000'000'000};
  };

  // Binds the sockets; nobody is served yet. waits: the sink that `locks` tells. All must outlive
  // the service. Errors as Server::open().
  static Result<std::unique_ptr<Service>> open(Options options, LockService& locks, Waits& waits,
                                               Files& files, Outside& outside);
  // As stop().
  ~Service();
  Service(const Service&) = delete;
  Service& operator=(const Service&) = delete;

  // Begins to serve; clients that may have held locks of an earlier run are told to reclaim them.
  // Once the port can be found: they come at once. Waits for statd, 12 s at most.
  void start();
  // Ends serving; statd forgets our clients. Locks go with the lock service. Once, any thread.
  void stop() noexcept EXCLUDES(mu_);

  [[nodiscard]] std::uint16_t port() const { return server_->port(); }
  [[nodiscard]] Server& server() { return *server_; }
  [[nodiscard]] LockDesk& desk() { return desk_; }
  [[nodiscard]] Hosts& hosts() { return hosts_; }

 private:
  Service(const Options& options, LockService& locks, Waits& waits, Files& files, Outside& outside);
  void each_second(const std::function<void()>& what) noexcept EXCLUDES(mu_);

  // Made in this order, and gone in the opposite one: what calls goes before what is called.
  Places places_;
  FilesInTurn files_;
  Outcalls grants_;
  Outcalls answers_;
  Outcalls restarts_;  // SM_NOTIFY, and statd
  Monitor monitor_;
  Hosts hosts_;
  LockDesk desk_;
  Dispatcher dispatcher_;
  std::unique_ptr<Server> server_;
  Mutex mu_;  // leaf
  CondVar stopped_;
  bool stopping_ GUARDED_BY(mu_){false};
  std::thread ticker_;
  std::thread sweeper_;  // closes files, for which a mount that hangs lets it wait
};

}  // namespace latchfs::nlm
