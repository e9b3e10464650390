#include "transport/rings.h"

#include <linux/fuse.h>
#include <sched.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <future>
#include <semaphore>
#include <utility>

#include "base/clock.h"
#include "base/log.h"
#include "transport/caller_state.h"

namespace latchfs::transport {
namespace {

// More interrupts than this, all within the microseconds before their requests are parked, do not
// happen; most that are kept came too late, for requests that are over.
constexpr std::size_t kMostEarly = 1024;

// The kernel makes a queue for each CPU that could be there ("0-3,8-11": the highest number), and
// takes no request by io_uring before all have an entry.
unsigned possible_cpus() {
  std::ifstream file{"/sys/devices/system/cpu/possible"};
  std::string text;
  std::getline(file, text);
  const auto last = text.find_last_of("-,");
  try {
    return static_cast<unsigned>(
               std::stoul(last == std::string::npos ? text : text.substr(last + 1))) +
           1;
  } catch (const std::exception&) {
    return 0;
  }
}

// A worker belongs on its CPU. Who keeps the daemon off some (taskset, a cpuset) means it.
bool may_run_everywhere() {
  cpu_set_t mine;
  CPU_ZERO(&mine);
  return ::sched_getaffinity(0, sizeof mine, &mine) == 0 &&
         CPU_COUNT(&mine) >= ::sysconf(_SC_NPROCESSORS_ONLN);
}

// Threads made meanwhile get no signals.
class NoSignals {
 public:
  NoSignals() {
    sigset_t all;
    ::sigfillset(&all);
    ::pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~NoSignals() { ::pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  NoSignals(const NoSignals&) = delete;
  NoSignals& operator=(const NoSignals&) = delete;

 private:
  sigset_t before_{};
};

}  // namespace

Rings::Rings(Config config)
    : config_{std::move(config)},
      entries_{config_.payload},
      shared_{config_.handle,
              [this](RingEntry& entry, const fuse_in_header& header) { park(entry, header); },
              [this](RingEntry& entry) { unpark(entry); }, config_.device, entries_} {}

Rings::~Rings() { stop(); }

Result<std::unique_ptr<Rings>> Rings::create(Config config) {
  if (!may_run_everywhere()) {
    log::info("io_uring wants a thread on each CPU, and the daemon may not run on all of them");
    return errno_code(EPERM);
  }
  std::unique_ptr<Rings> rings{new Rings{std::move(config)}};
  const NoSignals quiet;
  if (auto r = rings->make_groups(); !r) return r.error();
  try {
    rings->keeper_ = std::thread{[raw = rings.get()] { raw->keep(); }};
  } catch (const std::system_error& e) {
    return e.code();
  }
  return rings;
}

Result<void> Rings::make_groups() {
  const unsigned cpus = possible_cpus();
  if (cpus == 0 || cpus > UINT16_MAX) return errno_code(ENODEV);
  std::vector<std::promise<Result<void>>> made(cpus);
  std::size_t begun = 0;
  Result<void> outcome{};
  for (; begun < cpus && outcome; ++begun) {
    groups_.push_back(std::make_unique<RingGroup>(
        shared_, static_cast<std::uint16_t>(begun), config_.most_workers,
        [this](std::function<void()> order) { have_done(std::move(order)); }));
    outcome = groups_.back()->begin(
        [&promise = made[begun]](Result<void> result) { promise.set_value(std::move(result)); });
    if (!outcome) made[begun].set_value(outcome);
  }
  for (std::size_t i = 0; i < begun; ++i) {
    if (auto r = made[i].get_future().get(); !r && outcome) outcome = r;
  }
  return outcome;
}

Result<void> Rings::start() {
  std::vector<std::promise<Result<void>>> done(groups_.size());
  for (std::size_t i = 0; i < groups_.size(); ++i) {
    groups_[i]->enlist(
        [&promise = done[i]](Result<void> result) { promise.set_value(std::move(result)); });
  }
  Result<void> outcome{};
  for (auto& promise : done) {
    if (auto r = promise.get_future().get(); !r) outcome = r;
  }
  return outcome;
}

ssize_t Rings::answer(std::uint64_t number, const iovec* parts, int count) noexcept {
  RingEntry* const entry = entries_.find(number);
  std::uint64_t expected = number;
  if (entry == nullptr || count < 1 || parts[0].iov_len != sizeof(fuse_out_header) ||
      !entry->number.compare_exchange_strong(expected, 0, std::memory_order_acq_rel)) {
    errno = ENOENT;
    return -1;
  }
  fuse_out_header header;
  std::memcpy(&header, parts[0].iov_base, sizeof header);
  const auto told = static_cast<ssize_t>(header.len);
  std::size_t size = 0;
  for (int i = 1; i < count; ++i) {
    const std::size_t more = parts[i].iov_len;
    if (more > entry->capacity - size) {
      log::error("an answer of {} bytes does not fit a ring entry", header.len);
      header.error = -EIO;
      size = 0;
      break;
    }
    char* const to = entry->payload + size;
    if (more != 0 && to != parts[i].iov_base) std::memmove(to, parts[i].iov_base, more);
    size += more;
  }
  entry->used = std::max(entry->used, size);
  entry->put_answer(header.error, size);
  const unsigned before = entry->progress.fetch_or(RingEntry::kFilled, std::memory_order_acq_rel);
  if ((before & RingEntry::kLeft) != 0) {
    unpark(*entry);
    groups_[entry->queue]->give(*entry);
  }
  return told;
}

void Rings::park(RingEntry& entry, const fuse_in_header& header) {
  const std::uint64_t number = header.unique;
  bool early = false;
  bool first = false;
  try {
    const MutexLock hold{mu_};
    const auto known = std::find(early_.begin(), early_.end(), entry.unique);
    early = known != early_.end();
    if (early) early_.erase(known);
    parked_[entry.unique] = {number, header.pid};
    // READ: of enforce=mandatory.
    if (header.opcode == FUSE_SETLKW || header.opcode == FUSE_READ) {
      first = watched_[0].empty();
      watched_[0].push_back({entry.unique, monotonic_ns() + kLooks[0]});
    }
  } catch (const std::bad_alloc&) {
    log::error("no memory to note a request that waits: it cannot be interrupted");
  }
  if (first) changed_.notify_one();
  if (early) deliver(number);
}

void Rings::unpark(RingEntry& entry) {
  const MutexLock hold{mu_};
  parked_.erase(entry.unique);
}

std::optional<std::uint64_t> Rings::interrupted(std::uint64_t unique) noexcept {
  const MutexLock hold{mu_};
  if (const auto it = parked_.find(unique); it != parked_.end()) return it->second.number;
  if (early_.size() == kMostEarly) early_.pop_front();
  try {
    early_.push_back(unique);
  } catch (const std::bad_alloc&) {
    log::error("no memory to note an interrupt");
  }
  return std::nullopt;
}

void Rings::deliver(std::uint64_t number) noexcept {
  struct {
    fuse_in_header header;
    fuse_interrupt_in body;
  } message{};
  message.header.len = sizeof message;
  message.header.opcode = FUSE_INTERRUPT;
  message.header.unique = 1;  // one that /dev/fuse knows nothing of, should libfuse answer
  message.body.unique = number;
  config_.handle(reinterpret_cast<char*>(&message), sizeof message);
}

void Rings::have_done(std::function<void()> order) noexcept {
  {
    const MutexLock hold{mu_};
    orders_.push_back(std::move(order));
  }
  changed_.notify_one();
}

std::optional<std::function<void()>> Rings::next_order(std::vector<Parked>& look_at) {
  const MutexLock hold{mu_};
  for (;;) {
    if (!orders_.empty()) {
      std::function<void()> order = std::move(orders_.front());
      orders_.pop_front();
      return order;
    }
    if (stopping_) return std::nullopt;
    std::int64_t next = INT64_MAX;
    const std::int64_t now = monotonic_ns();
    for (std::size_t i = 0; i < watched_.size(); ++i) {
      auto& list = watched_[i];
      for (; !list.empty() && list.front().due_ns <= now; list.pop_front()) {
        const std::uint64_t unique = list.front().unique;
        const auto it = parked_.find(unique);
        if (it == parked_.end()) continue;
        look_at.push_back(it->second);
        if (i + 1 < watched_.size()) watched_[i + 1].push_back({unique, now + kLooks[i + 1]});
      }
      if (!list.empty()) next = std::min(next, list.front().due_ns);
    }
    if (!look_at.empty()) return nullptr;
    if (next == INT64_MAX) {
      changed_.wait(mu_);
    } else {
      changed_.wait_for(mu_, std::chrono::nanoseconds{next - now});
    }
  }
}

// A signal that comes while the kernel hands the request over is not passed on to us: unlike
// /dev/fuse's, that way does not look again whether there was one (fs/fuse/dev_uring.c
// fuse_uring_prepare_send(), dev.c fuse_dev_do_read()). The caller then sleeps as one that waits
// for the answer to its interrupt, which shows: not interruptibly.
void Rings::keep() {
  ::pthread_setname_np(::pthread_self(), "ring-keeper");
  std::vector<Parked> look_at;
  while (const auto order = next_order(look_at)) {
    if (*order) (*order)();
    for (const Parked& parked : look_at) {
      if (sleeps_deaf(parked.pid)) deliver(parked.number);
    }
    look_at.clear();
  }
}

void Rings::quiesce() noexcept {
  shared_.quiet.store(true);
  // Who is in a handler reads this after it; who comes later sees the flag.
  std::counting_semaphore<> read{0};
  std::size_t sent = 0;
  for (const auto& group : groups_) sent += group->ask([&read] { read.release(); });
  for (; sent > 0; --sent) read.acquire();
}

void Rings::stop() noexcept {
  {
    const MutexLock hold{mu_};
    stopping_ = true;
  }
  changed_.notify_all();
  if (keeper_.joinable()) keeper_.join();  // which does what it was still asked for
  for (const auto& group : groups_) group->stop();
}

}  // namespace latchfs::transport
