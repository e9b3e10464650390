#include "nlm/service.h"

#include <algorithm>
#include <chrono>

#include "base/log.h"

namespace latchfs::nlm {
namespace {

// Of their own each, so that no flood of one kind keeps the others from their clients. A client has
// as many calls waiting as it may have waits (most_waiting) and, of answers to _MSG procedures,
// which it can ask for without end, a few.
constexpr Outcalls::Options kGrants{16, 65'536, 4096, 1'000'000'000};
constexpr Outcalls::Options kAnswers{8, 8192, 64, 1'000'000'000};
constexpr Outcalls::Options kRestarts{32, 65'536, 65'536, 1'000'000'000};
constexpr std::chrono::seconds kTick{1};

}  // namespace

Service::Service(const Options& options, LockService& locks, Waits& waits, Files& files,
                 Outside& outside)
    : places_{{std::max(1U, options.server.threads / 4),
               std::max(1U, options.server.threads / 4 * 3), options.patience_ns}},
      files_{files, places_},
      grants_{kGrants},
      answers_{kAnswers},
      restarts_{kRestarts},
      monitor_{options.monitor, outside, restarts_, places_},
      hosts_{options.hosts, locks, monitor_, restarts_},
      desk_{options.desk, locks, waits, files_, hosts_, outside, grants_},
      dispatcher_{options.dispatcher, desk_, monitor_, outside, answers_} {}

Result<std::unique_ptr<Service>> Service::open(Options options, LockService& locks, Waits& waits,
                                               Files& files, Outside& outside) {
  std::unique_ptr<Service> service{new Service{options, locks, waits, files, outside}};
  auto server = Server::open(
      std::move(options.server),
      [dispatcher = &service->dispatcher_](std::string_view message, const Peer& peer) {
        return dispatcher->answer(message, peer);
      });
  if (!server) return server.error();
  service->server_ = std::move(*server);
  return service;
}

Service::~Service() { stop(); }

void Service::start() {
  // What statd knew is forgotten before anybody is monitored anew, and who is told to reclaim is
  // told when he can.
  monitor_.restart();
  server_->start();
  ticker_ = std::thread{[this] { each_second([this] { server_->tick(); }); }};
  sweeper_ = std::thread{[this] { each_second([this] { desk_.let_go(); }); }};
  monitor_.tell_clients();
}

void Service::each_second(const std::function<void()>& what) noexcept {
  for (;;) {
    {
      const MutexLock hold{mu_};
      if (!stopping_) stopped_.wait_for(mu_, kTick);
      if (stopping_) return;
    }
    try {
      what();
    } catch (const std::exception& e) {
      log::error("what is not used any more is kept: {}", e.what());
    }
  }
}

void Service::stop() noexcept {
  {
    const MutexLock hold{mu_};
    if (stopping_) return;
    stopping_ = true;
    stopped_.notify_all();
  }
  if (ticker_.joinable()) ticker_.join();
  if (sweeper_.joinable()) sweeper_.join();
  if (server_) server_->stop();
  answers_.stop();
  desk_.shutdown();
  restarts_.stop();
  try {
    monitor_.forget_all(hosts_.addresses_holding());
  } catch (const std::exception& e) {
    log::error("statd is not told that we end: {}", e.what());
  }
}

}  // namespace latchfs::nlm
