#include "transport/ring_group.h"

#include <linux/fuse.h>
#include <sched.h>
#include <unistd.h>

#include <cerrno>
#include <future>
#include <utility>

#include "base/log.h"
#include "base/seldom.h"

namespace latchfs::transport {

bool RingGroup::stay_on_cpu() const noexcept {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (queue_ >= CPU_SETSIZE) return false;
  CPU_SET(queue_, &set);
  return ::sched_setaffinity(0, sizeof set, &set) == 0;
}

Result<void> RingGroup::begin(std::function<void(Result<void>)> made) {
  const auto entry = shared_.entries.add(queue_);
  if (!entry) return entry.error();
  first_ = *entry;
  auto worker = std::make_unique<RingWorker>(shared_, *this);
  if (auto r = worker->start(std::move(made)); !r) return r;
  const MutexLock hold{mu_};
  workers_.push_back(std::move(worker));
  return {};
}

void RingGroup::enlist(std::function<void(Result<void>)> done) {
  const MutexLock hold{mu_};
  workers_.front()->enlist(*first_, std::move(done));
}

void RingGroup::add(RingEntry* answered) noexcept {
  std::unique_ptr<RingWorker> worker;
  Result<void> started{errno_code(ENOMEM)};
  try {
    worker = std::make_unique<RingWorker>(shared_, *this);
    std::promise<Result<void>> made;
    started = worker->start([&made](Result<void> result) { made.set_value(std::move(result)); });
    if (started) started = made.get_future().get();
  } catch (const std::exception&) {
    // As without memory.
  }
  const MutexLock hold{mu_};
  --coming_;
  if (!started) {
    static Seldom once_a_minute{60'000'000'000};
    if (once_a_minute.due()) {
      log::error("no further thread for a ring: {}", started.error().message());
    }
    if (answered != nullptr) {
      least_busy().take_over(*answered);
    } else if (RingWorker* const rested = take_resting()) {
      rested->take_entry();
    } else {
      arrived();
    }
    return;
  }
  if (answered != nullptr) {
    worker->take_over(*answered);
  } else {
    worker->take_entry();
  }
  workers_.push_back(std::move(worker));
}

void RingGroup::keep(RingEntry& entry) noexcept {
  entry.give_memory_back();
  const MutexLock hold{mu_};
  kept_.push_back(&entry);
}

RingEntry* RingGroup::take_kept() noexcept {
  const MutexLock hold{mu_};
  if (kept_.empty()) return nullptr;
  RingEntry* const entry = kept_.back();
  kept_.pop_back();
  return entry;
}

RingWorker* RingGroup::take_resting() noexcept {
  if (resting_.empty()) return nullptr;
  RingWorker* const worker = resting_.back();
  resting_.pop_back();
  return worker;
}

// They take turns: what one has more than one of waits while it is busy with another.
RingWorker& RingGroup::least_busy() noexcept {
  for (std::size_t i = 0; i < workers_.size(); ++i) {
    RingWorker& worker = *workers_[turn_++ % workers_.size()];
    if (worker.waits()) return worker;
  }
  return *workers_[turn_++ % workers_.size()];
}

void RingGroup::give(RingEntry& answered) noexcept {
  const MutexLock hold{mu_};
  if (RingWorker* const rested = take_resting()) {
    rested->take_over(answered);
  } else if (workers_.size() + coming_ < most_) {
    ++coming_;
    elsewhere_([this, &answered] { add(&answered); });
  } else {
    least_busy().take_over(answered);
  }
}

void RingGroup::grow() noexcept {
  const MutexLock hold{mu_};
  if (pending_.load() > 0) return;
  if (RingWorker* const rested = take_resting()) {
    pending_.fetch_add(1);
    rested->take_entry();
  } else if (workers_.size() + coming_ < most_) {
    pending_.fetch_add(1);
    ++coming_;
    elsewhere_([this] { add(nullptr); });
  }
}

void RingGroup::drained(std::uint64_t registrations) noexcept {
  std::uint64_t before = drained_.load();
  while (before < registrations && !drained_.compare_exchange_weak(before, registrations)) {
  }
}

bool RingGroup::rest(RingWorker& worker, bool coming_will_do) noexcept {
  const MutexLock hold{mu_};
  // Under the lock that grow() takes: who gets busy after this finds the worker resting.
  if (ready_.load() <= 0 && !(coming_will_do && pending_.load() > 0)) return false;
  resting_.push_back(&worker);
  return true;
}

void RingGroup::rests_no_more(RingWorker& worker) noexcept {
  const MutexLock hold{mu_};
  std::erase(resting_, &worker);
}

// Requests that found no entry free are queued, and only a commit takes one from the queue: not a
// new entry (fs/fuse/dev_uring.c fuse_uring_do_register()). So if new entries came and then what
// was being handled was parked instead of committed, the queue may stand still. The kernel is made
// to send a request that can be committed: it answers FUSE_NOTIFY_RETRIEVE by one, on the queue of
// the CPU that we are on. It wants a regular file that it knows: the parked request's, since nobody
// waits for anything else. What that commit takes from the queue may be parked in turn, and so on:
// so whoever parks does this until a commit has found the queue empty.
//
// The same serves to get an entry back that the kernel has too many of: the request comes by one,
// and that is kept (RingWorker::kicked()).
void RingGroup::kick(std::uint64_t node) noexcept {
  if (node == 0) return;
  if (::sched_getcpu() != queue_ && !stay_on_cpu()) {
    static Seldom once_a_minute{60'000'000'000};
    if (once_a_minute.due()) {
      log::error("the daemon may no more run on CPU {}, requests from there may wait long", queue_);
    }
  }
  struct {
    fuse_out_header header;
    fuse_notify_retrieve_out body;
  } message{};
  message.header.len = sizeof message;
  message.header.error = FUSE_NOTIFY_RETRIEVE;
  message.body.notify_unique = shared_.next_kick.fetch_add(2, std::memory_order_relaxed);
  message.body.nodeid = node;
  if (::write(shared_.device, &message, sizeof message) >= 0 || session_is_over(errno)) return;
  if (errno == ENOENT) {
    // The kernel forgot the file, which then is nobody's who waits.
    file_.compare_exchange_strong(node, 0, std::memory_order_relaxed);
    return;
  }
  log::error("a ring's queue cannot be woken: {}", last_errno().message());
}

std::size_t RingGroup::ask(const std::function<void()>& done) noexcept {
  const MutexLock hold{mu_};
  for (const auto& worker : workers_) worker->ask(done);
  return workers_.size();
}

void RingGroup::stop() noexcept {
  std::vector<std::unique_ptr<RingWorker>> workers;
  {
    const MutexLock hold{mu_};
    workers.swap(workers_);
    resting_.clear();
  }
  for (const auto& worker : workers) worker->stop();
  for (const auto& worker : workers) worker->join();
}

}  // namespace latchfs::transport
