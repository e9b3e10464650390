#include "nlm/service.h"

#include <chrono>

#include "base/log.h"

namespace latchfs::nlm {
namespace {

// As many calls may take their time at once: each to another client.
constexpr unsigned kCallers = 8;
constexpr std::size_t kMostCalls = 65'536;
constexpr std::chrono::seconds kTick{1};

}  // namespace

Service::Service(const Options& options, LockService& locks, Waits& waits, Files& files,
                 Outside& outside)
    : outcalls_{kCallers, kMostCalls},
      monitor_{options.monitor, outside, outcalls_},
      hosts_{options.hosts, locks, monitor_, outcalls_},
      desk_{options.desk, locks, waits, files, hosts_, outside, outcalls_},
      dispatcher_{options.dispatcher, desk_, monitor_, outside, outcalls_} {}

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
  server_->start();
  ticker_ = std::thread{[this] { tick(); }};
  monitor_.restart();
}

void Service::tick() noexcept {
  for (;;) {
    {
      const MutexLock hold{mu_};
      if (!stopping_) stopped_.wait_for(mu_, kTick);
      if (stopping_) return;
    }
    try {
      server_->tick();
      desk_.let_go();
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
  if (server_) server_->stop();
  desk_.shutdown();
  try {
    monitor_.forget_all(hosts_.addresses_holding());
  } catch (const std::exception& e) {
    log::error("statd is not told that we end: {}", e.what());
  }
}

}  // namespace latchfs::nlm
