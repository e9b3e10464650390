#include "nlm/outcalls.h"

#include <algorithm>
#include <chrono>

#include "base/clock.h"

namespace latchfs::nlm {
namespace {

// Peers that are remembered as quick.
constexpr std::size_t kMostRemembered = 8192;

}  // namespace

Outcalls::Outcalls(Options options)
    : options_{options}, most_slow_{std::max(1U, options.threads / 2)} {
  for (unsigned i = 0; i < options_.threads; ++i) threads_.emplace_back([this] { loop(); });
}

Outcalls::~Outcalls() { stop(); }

void Outcalls::stop() noexcept {
  {
    const MutexLock hold{mu_};
    stopping_ = true;
    changed_.notify_all();
  }
  for (std::thread& thread : threads_) {
    if (thread.joinable()) thread.join();
  }
}

bool Outcalls::at(std::int64_t at_ns, const std::string& peer, std::function<void()> fn) {
  const MutexLock hold{mu_};
  const auto known = peers_.find(peer);
  const bool quick = known != peers_.end() && known->second.quick;
  if (stopping_ || jobs_ >= (quick ? options_.most : options_.most / 2) ||
      (known != peers_.end() && known->second.jobs >= options_.most_of_one)) {
    return false;
  }
  // All memory is taken here: nothing fails later on.
  auto job = Jobs{};
  job.emplace(at_ns, Job{nullptr, std::move(fn)});
  Queue place(known == peers_.end() ? 1 : 0);
  const auto it = known == peers_.end() ? peers_.try_emplace(peer).first : known;
  Peer& its = it->second;
  if (!place.empty()) {
    its.name = &it->first;
    place.front() = &its;
    its.place.swap(place);
  } else if (its.idle()) {
    --idle_;
  }
  job.begin()->second.peer = &its;
  later_.insert(job.extract(job.begin()));
  ++its.jobs;
  ++jobs_;
  changed_.notify_one();
  return true;
}

void Outcalls::queue_locked(Peer& peer) noexcept {
  if (peer.running || peer.due.empty() || peer.place.empty()) return;
  Queue& queue = peer.quick ? quick_ : slow_;
  queue.splice(queue.end(), peer.place);
}

void Outcalls::queue_due_locked(std::int64_t now) noexcept {
  while (!later_.empty() && later_.begin()->first <= now) {
    auto job = later_.extract(later_.begin());
    Peer& peer = *job.mapped().peer;
    peer.due.insert(std::move(job));
    queue_locked(peer);
  }
}

Outcalls::Peer* Outcalls::next_locked() noexcept {
  Queue* queue = nullptr;
  if (!quick_.empty()) {
    queue = &quick_;
  } else if (!slow_.empty() && slow_running_ < most_slow_) {
    queue = &slow_;
  } else {
    return nullptr;
  }
  Peer* const peer = queue->front();
  peer->place.splice(peer->place.begin(), *queue, queue->begin());
  return peer;
}

void Outcalls::rest_locked(const Peer& peer) noexcept {
  if (!peer.quick) {
    peers_.erase(peers_.find(*peer.name));
  } else if (++idle_ > kMostRemembered) {
    std::erase_if(peers_, [](const auto& one) { return one.second.idle(); });
    idle_ = 0;
  }
}

void Outcalls::loop() noexcept {
  const MutexLock hold{mu_};
  while (!stopping_) {
    const std::int64_t now = monotonic_ns();
    queue_due_locked(now);
    Peer* const peer = next_locked();
    if (peer == nullptr) {
      if (later_.empty()) {
        changed_.wait(mu_);
      } else {
        changed_.wait_for(mu_, std::chrono::nanoseconds{later_.begin()->first - now});
      }
      continue;
    }
    auto job = peer->due.extract(peer->due.begin());
    --peer->jobs;
    --jobs_;
    const bool slow = !peer->quick;
    slow_running_ += slow ? 1 : 0;
    peer->running = true;
    // For another thread, what else is due.
    changed_.notify_one();
    mu_.unlock();
    job.mapped().fn();
    job.mapped().fn = nullptr;  // what it holds goes before the next of the peer begins
    const std::int64_t took = monotonic_ns() - now;
    mu_.lock();
    slow_running_ -= slow ? 1 : 0;
    peer->running = false;
    peer->quick = took <= options_.quick_ns;
    if (peer->idle()) {
      rest_locked(*peer);
    } else {
      queue_locked(*peer);
    }
    changed_.notify_one();
  }
}

}  // namespace latchfs::nlm
