#include "transport/ring_worker.h"

#include <sys/eventfd.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <utility>

#include "base/log.h"
#include "transport/ring_group.h"

namespace latchfs::transport {
RingWorker::~RingWorker() { join(); }

Result<void> RingWorker::start(std::function<void(Result<void>)> made) {
  mail_.reset(::eventfd(0, EFD_CLOEXEC));
  if (!mail_) return last_errno();
  try {
    thread_ = std::thread{[this, made = std::move(made)] { run(made); }};
  } catch (const std::system_error& e) {
    return e.code();
  }
  return {};
}

void RingWorker::post(Letter letter) noexcept {
  {
    const MutexLock hold{mu_};
    letters_.push_back(std::move(letter));
  }
  const std::uint64_t one = 1;
  // Fails only when the count is full, and then the worker is woken already.
  (void)!::write(mail_.get(), &one, sizeof one);
}

void RingWorker::enlist(RingEntry& entry, std::function<void(Result<void>)> done) noexcept {
  post({Letter::What::kEnlist, &entry, std::move(done)});
}
void RingWorker::take_entry() noexcept { post({Letter::What::kEntry, nullptr, {}}); }
void RingWorker::take_over(RingEntry& answered) noexcept {
  post({Letter::What::kCommit, &answered, {}});
}
void RingWorker::ask(std::function<void()> done) noexcept {
  post({Letter::What::kAsk, nullptr, [done = std::move(done)](const Result<void>&) { done(); }});
}
void RingWorker::stop() noexcept { post({Letter::What::kStop, nullptr, {}}); }

void RingWorker::run(const std::function<void(Result<void>)>& made) {
  ::pthread_setname_np(::pthread_self(), ("ring-" + std::to_string(group_.queue())).c_str());
  (void)group_.stay_on_cpu();
  auto ring = Ring::create(shared_.device, mail_.get());
  made(ring ? Result<void>{} : Result<void>{ring.error()});
  if (!ring) return;
  serve(**ring);
}

void RingWorker::serve(Ring& ring) {
  while (!stopping_) {
    const bool ready = in_kernel_ > 0;
    if (ready) group_.ready();
    if (std::exchange(committed_, false) && group_.may_be_queued()) {
      // What a commit takes from the queue is there when it is submitted.
      const std::uint64_t known = group_.registrations();
      (void)ring.submit();
      if (!ring.has_next()) group_.drained(known);
    }
    const int surplus = in_kernel_ > 1 ? static_cast<int>(in_kernel_) - 1 : 0;
    const bool answered = std::exchange(answered_, false);
    if (answered && (surplus > 0 || group_.has_surplus()) && !group_.may_be_queued()) {
      // What is committed last is used first (fs/fuse/dev_uring.c fuse_uring_ent_avail()).
      (void)ring.submit();
      group_.kick(group_.file());
    }
    group_.count_surplus(surplus);
    waits_.store(true, std::memory_order_relaxed);
    const auto waited = ring.wait();
    waits_.store(false, std::memory_order_relaxed);
    group_.count_surplus(-surplus);
    Ring::Completion completion;
    bool some = ring.next(completion);
    // (A kick keeps nobody busy.)
    const bool is_request = some && completion.entry != nullptr && completion.result == 0 &&
                            !RingHandler::is_kick(*completion.entry);
    if (ready) group_.busy(is_request || (some && ring.has_next()));
    if (!waited) {
      // Whoever waits for an answer from here would wait forever: better that all is ended.
      log::error("a ring is broken: {}; the daemon ends", waited.error().message());
      std::abort();
    }
    for (; some; some = ring.next(completion)) {
      if (completion.entry == nullptr) {
        read_mail(ring);
      } else {
        completed(ring, completion);
      }
      // The answer to one request must not wait until the next one is handled.
      if (ring.has_next()) {
        (void)ring.submit();
        committed_ = false;
      }
    }
  }
  (void)ring.submit();
}

void RingWorker::read_mail(Ring& ring) {
  {
    const MutexLock hold{mu_};
    reading_.swap(letters_);
  }
  for (Letter& letter : reading_) {
    // (Who rests may get an entry without having been asked to stop resting.)
    const bool gets_one =
        letter.what == Letter::What::kEntry || letter.what == Letter::What::kCommit;
    if (gets_one && std::exchange(rests_, false)) group_.rests_no_more(*this);
    switch (letter.what) {
      case Letter::What::kEntry: {
        const bool is_new = one_more(ring);
        group_.arrived();
        // What was queued before it was there waits for whoever is busy now.
        if (is_new) group_.kick(group_.file());
        break;
      }
      case Letter::What::kEnlist:
        enlisted_ = std::move(letter.done);
        register_entry(ring, *letter.entry);
        // Refused is told at once, with the submission.
        if (!ring.has_next()) enlisted({});
        break;
      case Letter::What::kCommit:
        answered_ = true;
        commit(ring, *letter.entry);
        break;
      case Letter::What::kAsk:
        letter.done({});
        break;
      case Letter::What::kStop:
        stopping_ = true;
        break;
    }
  }
  reading_.clear();
}

void RingWorker::commit(Ring& ring, RingEntry& entry) {
  // What waits beside others is seldom used: it need not keep the memory of its largest request.
  if (in_kernel_ > 0) entry.give_memory_back();
  ring.add_commit(entry);
  ++in_kernel_;
  committed_ = true;
}

void RingWorker::enlisted(const Result<void>& result) {
  if (auto done = std::exchange(enlisted_, {})) done(result);
}

bool RingWorker::one_more(Ring& ring) {
  if (RingEntry* const kept = group_.take_kept()) {
    commit(ring, *kept);
    return false;
  }
  const auto entry = shared_.entries.add(group_.queue());
  if (entry) {
    register_entry(ring, **entry);
    return true;
  }
  // The requests of this CPU wait until a parked one is answered.
  log::error("no further ring entry: {}", entry.error().message());
  return false;
}

void RingWorker::register_entry(Ring& ring, RingEntry& entry) {
  ring.add_register(entry);
  ++in_kernel_;
  (void)ring.submit();
  group_.registered();
}

void RingWorker::completed(Ring& ring, const Ring::Completion& completion) {
  RingEntry& entry = *completion.entry;
  --in_kernel_;
  enlisted(completion.result == 0 ? Result<void>{} : errno_code(-completion.result));
  if (completion.result == 0) {
    // Left unanswered when all is about to end: the kernel then ends it.
    if (!shared_.quiet.load()) handle(ring, entry);
    return;
  }
  const int err = -completion.result;
  if (!session_is_over(err)) {
    log::error("the kernel gave a ring entry back: {}", errno_code(err).message());
  }
}

void RingWorker::handle(Ring& ring, RingEntry& entry) {
  // What else it has in the kernel must get no request while it is busy, perhaps for long.
  if (in_kernel_ > 0 && !RingHandler::is_kick(entry)) {
    for (unsigned i = 0; i < in_kernel_; ++i) group_.kick(group_.file());
  }
  const RingHandler::Outcome outcome = handler_.handle(entry);
  switch (outcome.what) {
    case RingHandler::Outcome::What::kAnswered:
      answered_ = true;
      return commit(ring, entry);
    case RingHandler::Outcome::What::kKicked:
      return kicked(ring, entry, outcome.node);
    case RingHandler::Outcome::What::kParked:
      if (in_kernel_ == 0 && !rest(true)) (void)one_more(ring);
      if (group_.may_be_queued()) group_.kick(outcome.node);
      return;
  }
}

bool RingWorker::rest(bool coming_will_do) {
  rests_ = group_.rest(*this, coming_will_do);
  return rests_;
}

// An entry whose request is never answered is one that the kernel does not use. That is how those
// are kept that are too many; committed, one is as good as new.
void RingWorker::kicked(Ring& ring, RingEntry& entry, std::uint64_t node) {
  // Only what is committed takes requests from the queue.
  if (group_.may_be_queued()) return commit(ring, entry);
  if (in_kernel_ > 0) {
    group_.keep(entry);
    if (in_kernel_ > 1 || group_.has_surplus()) group_.kick(node);
  } else if (group_.has_surplus() && rest(false)) {
    // It was meant for a colleague, who has too many. Now this one has none, and rests.
    group_.keep(entry);
    group_.kick(node);
  } else {
    commit(ring, entry);
  }
}

}  // namespace latchfs::transport
