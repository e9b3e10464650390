#include "nlm/monitor.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>

#include "base/clock.h"
#include "base/log.h"
#include "base/unique_fd.h"
#include "nlm/address.h"
#include "nlm/codec.h"

namespace latchfs::nlm {
namespace {

constexpr const char* kWatched = "monitored";
constexpr const char* kToTell = "notify";
constexpr std::int64_t kSecond = 1'000'000'000;
constexpr std::int64_t kFailureHolds = 2 * kSecond;
constexpr std::int64_t kLongestPause = 60 * kSecond;
constexpr std::int64_t kTellFor = 600 * kSecond;
// statd looks up names and writes to the disk before it answers.
constexpr std::chrono::milliseconds kPatience{4000};

// statd takes calls from this machine only, and calls back at the port rpcbind has for us.
const Where& statd_here() {
  static const Where here{"127.0.0.1", "", false};
  return here;
}
const std::string& own_callback_name() {
  static const std::string name = "localhost";
  return name;
}

}  // namespace

Monitor::Monitor(Options options, Outside& outside, Outcalls& outcalls, Places& places)
    : options_{std::move(options)}, outside_{outside}, outcalls_{outcalls}, places_{places} {}

std::string Monitor::path(const char* folder, const std::string& address) const {
  return fmt::format("{}/{}/{}", options_.state_dir, folder, address);
}

void Monitor::restart() {
  if (!options_.state_dir.empty()) {
    namespace fs = std::filesystem;
    for (const char* folder : {kWatched, kToTell}) {
      fs::create_directories(fmt::format("{}/{}", options_.state_dir, folder));
    }
    // Whom an earlier run has not reached yet is told by this one.
    for (const auto& entry :
         fs::directory_iterator{fmt::format("{}/{}", options_.state_dir, kWatched)}) {
      fs::rename(entry.path(), path(kToTell, entry.path().filename().string()));
    }
  }
  if (!options_.statd) return;
  const auto answer = outside_.call(statd_here(), kStatdProgram, kStatdVersion,
                                    static_cast<std::uint32_t>(StatdProc::kUnmonAll),
                                    encode_unmonitor_all_call(own_callback_name()), kPatience);
  if (!answer) {
    log::warn(
        "rpc.statd does not answer on this machine ({}): clients get no locks until it runs "
        "(--no-statd: lock without noticing that clients restart)",
        answer.error().message());
  }
}

// NSM's states go up by two at each boot, from small numbers: none of them is the time. And by two
// at least, also of runs in the same second: a client's statd ignores what it has heard already.
std::int32_t Monitor::next_state() const {
  const std::string path = fmt::format("{}/state", options_.state_dir);
  std::int32_t last = 0;
  if (!(std::ifstream{path} >> last)) last = 0;
  const auto now = static_cast<std::int32_t>(realtime_ns() / kSecond | 1);
  const std::int32_t state = last < INT32_MAX - 2 ? std::max(now, (last + 2) | 1) : now;
  if (!(std::ofstream{path} << state << std::endl)) {
    log::warn("{} cannot be written", log::printable(path));
  }
  return state;
}

void Monitor::tell_clients() {
  if (options_.state_dir.empty()) return;
  namespace fs = std::filesystem;
  const std::int32_t state = next_state();
  for (const auto& entry :
       fs::directory_iterator{fmt::format("{}/{}", options_.state_dir, kToTell)}) {
    const std::string address = entry.path().filename().string();
    std::string local;
    std::getline(std::ifstream{entry.path()}, local);
    if (!Endpoint::parse(address, 0)) {
      log::warn("{} is no address: ignored", log::printable(entry.path().string()));
      continue;
    }
    log::info("{} may have held locks when the last run ended: it is told to reclaim them",
              address);
    tell_of_restart(address, local, state, monotonic_ns(), kSecond);
  }
}

void Monitor::tell_of_restart(const std::string& address, const std::string& local,
                              std::int32_t state, std::int64_t began, std::int64_t pause) {
  const auto tell = [=, this]() noexcept {
    try {
      const auto told = outside_.call({address, local, false}, kStatdProgram, kStatdVersion,
                                      static_cast<std::uint32_t>(StatdProc::kNotify),
                                      encode_notify_call(options_.own_name, state), kPatience);
      if (told) {
        log::info("{} knows that we restarted", address);
        return forget(kToTell, address);
      }
      if (monotonic_ns() - began < kTellFor) {
        return tell_of_restart(address, local, state, began, std::min(2 * pause, kLongestPause));
      }
      log::warn("{} could not be told that we restarted: {}", address, told.error().message());
      forget(kToTell, address);
    } catch (...) {
      log::error("out of memory: {} is not told that we restarted", address);
    }
  };
  const bool first = pause == kSecond;
  if (!outcalls_.at(first ? 0 : monotonic_ns() + pause, address, tell)) {
    log::warn("{} is not told that we restarted: too much is under way", address);
  }
}

Result<void> Monitor::ask(const std::string& address, const std::string& local,
                          const Secret& secret) {
  // Kept before it counts: dying in between tells one client too many.
  remember(address, local);
  // (Telling it of a restart of ours takes no statd here.)
  if (!options_.statd) return {};
  const auto answer = outside_.call(
      statd_here(), kStatdProgram, kStatdVersion, static_cast<std::uint32_t>(StatdProc::kMon),
      encode_monitor_call(address, own_callback_name(), secret), kPatience);
  std::error_code error = answer.error();
  if (answer) {
    const auto taken = decode_monitor_answer(*answer);
    if (taken && *taken) return {};
    error = errno_code(taken ? EPERM : EPROTO);
  }
  forget(kWatched, address);
  if (complained_.due()) {
    log::warn("rpc.statd does not monitor {} ({}): its locks are refused", address,
              error.message());
  }
  return error;
}

Result<void> Monitor::watch(const std::string& address, const std::string& local) {
  {
    const MutexLock hold{mu_};
    const auto it = watches_.find(address);
    if (it != watches_.end() && it->second.state == State::kWatched) {
      ++it->second.uses;
      return {};
    }
  }
  if (!options_.statd) return watch_slowly(address, local);
  const auto stay = places_.enter("statd");
  if (!stay) return errno_code(EAGAIN);
  return watch_slowly(address, local);
}

Result<void> Monitor::watch_slowly(const std::string& address, const std::string& local) {
  Secret secret{};
  {
    const MutexLock hold{mu_};
    for (;;) {
      const auto it = watches_.find(address);
      if (it == watches_.end()) break;
      Watch& watch = it->second;
      if (watch.state == State::kWatched) {
        ++watch.uses;
        return {};
      }
      if (watch.state == State::kFailed) {
        if (monotonic_ns() - watch.failed_at < kFailureHolds) return watch.error;
        break;
      }
      answered_.wait(mu_);
    }
    if (::getrandom(secret.data(), secret.size(), 0) != static_cast<ssize_t>(secret.size())) {
      return last_errno();
    }
    Watch watch;
    watch.secret = secret;
    watches_[address] = watch;
  }
  Result<void> asked = errno_code(ENOMEM);
  try {
    asked = ask(address, local, secret);
  } catch (const std::exception&) {
    log::error("out of memory: {} is not monitored", address);
  }
  const MutexLock hold{mu_};
  Watch& watch = watches_[address];
  watch.state = asked ? State::kWatched : State::kFailed;
  watch.uses = asked ? 1 : 0;
  watch.error = asked.error();
  watch.failed_at = monotonic_ns();
  answered_.notify_all();
  // Failures of hosts that never come again are not kept for ever.
  std::erase_if(watches_, [now = watch.failed_at](const auto& one) {
    return one.second.state == State::kFailed && now - one.second.failed_at > kFailureHolds;
  });
  return asked;
}

void Monitor::unwatch(const std::string& address) noexcept {
  {
    const MutexLock hold{mu_};
    const auto it = watches_.find(address);
    if (it == watches_.end() || it->second.state != State::kWatched || --it->second.uses != 0) {
      return;
    }
    // Whoever asks for it meanwhile waits, so that SM_MON does not overtake SM_UNMON.
    it->second.state = State::kAsking;
  }
  try {
    Result<std::string> answer{std::string{}};
    if (options_.statd) {
      answer = outside_.call(statd_here(), kStatdProgram, kStatdVersion,
                             static_cast<std::uint32_t>(StatdProc::kUnmon),
                             encode_unmonitor_call(address, own_callback_name()), kPatience);
    }
    if (!answer) {
      log::info("statd was not told that {} holds no lock any more: {}", address,
                answer.error().message());
    }
    forget(kWatched, address);
  } catch (...) {
    log::error("out of memory: {} stays monitored", address);
  }
  const MutexLock hold{mu_};
  watches_.erase(address);
  answered_.notify_all();
}

std::optional<std::string> Monitor::changed(const StatusCall& call) {
  const MutexLock hold{mu_};
  for (auto& [address, watch] : watches_) {
    if (watch.state != State::kWatched || watch.secret != call.secret) continue;
    // Another state, not a higher one: a client that lost its disk begins anew.
    if (watch.told == call.state) return std::nullopt;
    watch.told = call.state;
    return address;
  }
  return std::nullopt;
}

void Monitor::unnote_change(const StatusCall& call) noexcept {
  const MutexLock hold{mu_};
  for (auto& [address, watch] : watches_) {
    if (watch.secret == call.secret && watch.told == call.state) watch.told.reset();
  }
}

void Monitor::forget_all(const std::set<std::string>& holding) noexcept {
  std::map<std::string, Watch> all;
  {
    const MutexLock hold{mu_};
    all.swap(watches_);
  }
  for (const auto& [address, watch] : all) {
    if (!holding.contains(address)) forget(kWatched, address);
  }
  if (!options_.statd || all.empty()) return;
  try {
    const auto answer = outside_.call(statd_here(), kStatdProgram, kStatdVersion,
                                      static_cast<std::uint32_t>(StatdProc::kUnmonAll),
                                      encode_unmonitor_all_call(own_callback_name()), kPatience);
    if (!answer) log::info("statd was not told that we end: {}", answer.error().message());
  } catch (...) {
    log::info("statd was not told that we end");
  }
}

// On the disk, as of the machine's death it is told from here, too: at the start statd forgets whom
// it had monitored for us, and with that what sm-notify would tell, if it runs later (docs/nfs.md).
void Monitor::remember(const std::string& address, const std::string& local) noexcept {
  if (options_.state_dir.empty()) return;
  try {
    const UniqueFd file{
        ::open(path(kWatched, address).c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600)};
    const std::string line = local + "\n";
    const UniqueFd folder{::open(fmt::format("{}/{}", options_.state_dir, kWatched).c_str(),
                                 O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
    if (!file || !folder ||
        ::write(file.get(), line.data(), line.size()) != static_cast<ssize_t>(line.size()) ||
        ::fsync(file.get()) != 0 || ::fsync(folder.get()) != 0) {
      log::warn("{} cannot be remembered for the next start: {}", address, last_errno().message());
    }
  } catch (...) {
    log::warn("out of memory: {} is not remembered for the next start", address);
  }
}

void Monitor::forget(const char* folder, const std::string& address) noexcept {
  if (options_.state_dir.empty()) return;
  try {
    ::unlink(path(folder, address).c_str());
  } catch (...) {
    log::warn("out of memory: {} is told of the next start needlessly", address);
  }
}

}  // namespace latchfs::nlm
