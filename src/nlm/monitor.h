// Which clients restart: by the status monitor (rpc.statd) of this machine, which tells theirs
// about us as well.
//
// A client is monitored by its address, as lockd does (nsm_use_hostnames=0): statd then matches who
// reboots by the address the word of it comes from. What is monitored is also kept as files in the
// state directory, an address each: who of them still held locks when we ended, however we did, is
// told that we restarted, so that it reclaims (forget_all()).
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "base/seldom.h"
#include "latchfs/result.h"
#include "nlm/outcalls.h"
#include "nlm/outside.h"
#include "nlm/places.h"
#include "nlm/protocol.h"

namespace latchfs::nlm {

// Any thread.
class Monitor {
 public:
  struct Options {
    bool statd{true};       // false: nobody is monitored, only remembered; watch() succeeds
    std::string state_dir;  // "": nothing is kept. Exists, and is ours alone.
    std::string own_name;   // in SM_NOTIFY, for the clients' monitors
  };
  Monitor(Options options, Outside& outside, Outcalls& outcalls, Places& places);

  // At start, before the first client: statd forgets what it was asked for by the run before. Waits
  // for it, seconds at worst; says in the log when it does not run.
  void restart();
  // After restart(), when clients are served: those which the run before had monitored are told
  // that we restarted, for ten minutes at most.
  void tell_clients();

  // Has the client at `address`, who knows us as `local`, monitored from the return on. Each call
  // that succeeds is one use. Waits for statd, seconds at worst; the error of a failure is
  // remembered a moment. EAGAIN: others wait for statd, which does not answer; ask again.
  Result<void> watch(const std::string& address, const std::string& local) EXCLUDES(mu_);
  // Gives a use back. With the last one the client is monitored no more.
  void unwatch(const std::string& address) noexcept EXCLUDES(mu_);

  // statd says that a client changed its state: its address, if it is monitored, the secret is
  // right, and the state is another than statd said before.
  [[nodiscard]] std::optional<std::string> changed(const StatusCall& call) EXCLUDES(mu_);
  // What that asks for was not done: the same word again counts.
  void unnote_change(const StatusCall& call) noexcept EXCLUDES(mu_);

  // At the end: nobody is monitored any more. Who holds something, of these addresses, stays in the
  // state directory: the next run tells him.
  void forget_all(const std::set<std::string>& holding) noexcept EXCLUDES(mu_);

 private:
  enum class State : std::uint8_t { kAsking, kWatched, kFailed };
  struct Watch {
    State state{State::kAsking};
    std::uint64_t uses{};
    Secret secret{};
    std::int64_t failed_at{};  // monotonic ns
    std::error_code error;
    std::optional<std::int32_t> told;  // the state of the last change
  };

  Result<void> ask(const std::string& address, const std::string& local, const Secret& secret);
  void tell_of_restart(const std::string& address, const std::string& local, std::int32_t state,
                       std::int64_t began, std::int64_t pause);
  [[nodiscard]] std::int32_t next_state() const;
  Result<void> watch_slowly(const std::string& address, const std::string& local) EXCLUDES(mu_);
  [[nodiscard]] std::string path(const char* folder, const std::string& address) const;
  void remember(const std::string& address, const std::string& local) noexcept;
  void forget(const char* folder, const std::string& address) noexcept;

  const Options options_;
  Outside& outside_;
  Outcalls& outcalls_;
  Places& places_;
  Seldom complained_{10'000'000'000};
  Mutex mu_;  // leaf
  CondVar answered_;
  std::map<std::string, Watch> watches_ GUARDED_BY(mu_);
};

}  // namespace latchfs::nlm
