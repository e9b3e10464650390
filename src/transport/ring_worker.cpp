#include "transport/ring_worker.h"

#include <linux/fuse.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "base/log.h"
#include "base/seldom.h"
#include "transport/ring_group.h"

namespace latchfs::transport {
namespace {

// Messages up to here are copied out of the entry, so that handlers may look at what was asked
// after they answered into the same memory. Larger ones carry data of WRITE and SETXATTR, which
// nobody looks at again.
constexpr std::size_t kSmall = 8192;
constexpr std::size_t kKept = 65536;
constexpr std::size_t kPage = 4096;

thread_local RingEntry* t_handled = nullptr;

// The caller's CPU, so that a request needs no wake-up of another one. False where the thread may
// not run there, or the CPU is off: then it runs where it can.
bool stay_on(unsigned cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (cpu >= CPU_SETSIZE) return false;
  CPU_SET(cpu, &set);
  return ::sched_setaffinity(0, sizeof set, &set) == 0;
}

bool is_of_regular_file(std::uint32_t opcode) {
  return opcode == FUSE_READ || opcode == FUSE_WRITE || opcode == FUSE_FLUSH ||
         opcode == FUSE_SETLK || opcode == FUSE_SETLKW;
}

bool is_over(int err) {
  return err == ENOTCONN || err == ECONNABORTED || err == ENODEV || err == ECANCELED;
}

}  // namespace

RingWorker::~RingWorker() { join(); }

std::span<char> RingWorker::answer_space() noexcept {
  if (t_handled == nullptr) return {};
  return {t_handled->payload, t_handled->capacity};
}

Result<void> RingWorker::start(std::function<void(Result<void>)> made) {
  mail_.reset(::eventfd(0, EFD_CLOEXEC));
  if (!mail_) return last_errno();
  small_.resize(kSmall / sizeof(std::uint64_t));
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
  (void)stay_on(group_.queue());
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
    waits_.store(true, std::memory_order_relaxed);
    const auto waited = ring.wait();
    waits_.store(false, std::memory_order_relaxed);
    Ring::Completion completion;
    bool some = ring.next(completion);
    if (ready) group_.busy(some && (completion.entry != nullptr || ring.has_next()));
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
    switch (letter.what) {
      case Letter::What::kEntry:
        register_new(ring);
        group_.arrived();
        // What was queued before it was there waits for whoever is busy now.
        if (const std::uint64_t file = group_.file(); file != 0) kick(file);
        break;
      case Letter::What::kEnlist:
        enlisted_ = std::move(letter.done);
        register_entry(ring, *letter.entry);
        // Refused is told at once, with the submission.
        if (!ring.has_next()) enlisted({});
        break;
      case Letter::What::kCommit:
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
  if (in_kernel_ > 0 && entry.used > kKept) {
    const std::size_t answer = entry.headers.entry.payload_size;
    const std::size_t from = (answer + kPage - 1) / kPage * kPage;
    if (from < entry.capacity) {
      ::madvise(entry.payload + from, entry.capacity - from, MADV_DONTNEED);
    }
    entry.used = 0;
  }
  ring.add_commit(entry);
  ++in_kernel_;
  committed_ = true;
}

void RingWorker::enlisted(const Result<void>& result) {
  if (auto done = std::exchange(enlisted_, {})) done(result);
}

void RingWorker::register_new(Ring& ring) {
  const auto entry = shared_.entries.add(group_.queue());
  if (entry) return register_entry(ring, **entry);
  // The requests of this CPU wait until a parked one is answered.
  log::error("no further ring entry: {}", entry.error().message());
}

void RingWorker::register_entry(Ring& ring, RingEntry& entry) {
  ring.add_register(entry);
  ++in_kernel_;
  (void)ring.submit();
  group_.registered();
}

// Requests that found no entry free are queued, and only a commit takes one from the queue: not a
// new entry (fs/fuse/dev_uring.c fuse_uring_do_register()). So if new entries came and then what
// was being handled was parked instead of committed, the queue may stand still. The kernel is made
// to send a request that can be committed: it answers FUSE_NOTIFY_RETRIEVE by one, on the queue of
// the CPU that we are on. It wants a regular file that it knows: the parked request's, since nobody
// waits for anything else. What that commit takes from the queue may be parked in turn, and so on:
// so whoever parks does this until a commit has found the queue empty.
void RingWorker::kick(std::uint64_t node) {
  if (::sched_getcpu() != group_.queue() && !stay_on(group_.queue())) {
    static Seldom once_a_minute{60'000'000'000};
    if (once_a_minute.due()) {
      log::error("the daemon may no more run on CPU {}, requests from there may wait long",
                 group_.queue());
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
  // ENOENT: the kernel forgot the file, which then is nobody's who waits.
  if (::write(shared_.device, &message, sizeof message) < 0 && !is_over(errno) && errno != ENOENT) {
    log::error("a ring's queue cannot be woken: {}", last_errno().message());
  }
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
  if (!is_over(err)) {
    log::error("the kernel gave a ring entry back: {}", errno_code(err).message());
  }
}

std::span<char> RingWorker::assemble(RingEntry& entry, fuse_in_header header) noexcept {
  const std::size_t data = entry.headers.entry.payload_size;
  if (header.len < sizeof header + data || data > entry.capacity) return {};
  entry.used = std::max(entry.used, data);
  const std::size_t argument = header.len - sizeof header - data;
  if (argument > entry.headers.op_in.size()) return {};
  const bool in_place = header.len > kSmall && argument % alignof(fuse_in_header) == 0;
  if (!in_place && header.len > kSmall) return {};
  char* const message =
      in_place ? entry.payload - argument - sizeof header : reinterpret_cast<char*>(small_.data());
  std::memcpy(message, &header, sizeof header);
  std::memcpy(message + sizeof header, entry.headers.op_in.data(), argument);
  if (!in_place) std::memcpy(message + sizeof header + argument, entry.payload, data);
  return {message, header.len};
}

void RingWorker::handle(Ring& ring, RingEntry& entry) {
  fuse_in_header header;
  std::memcpy(&header, entry.headers.in_out.data(), sizeof header);
  const std::uint64_t unique = header.unique;
  header.unique = RingEntries::begin(entry, unique, entry.headers.entry.commit_id);
  if (header.opcode == FUSE_NOTIFY_REPLY) return answer(ring, entry, 0);  // see kick()
  const std::span<char> message = assemble(entry, header);
  if (message.empty()) {
    log::error("a request of {} bytes with {} of data (opcode {}) makes no sense", header.len,
               entry.headers.entry.payload_size, header.opcode);
    return answer(ring, entry, -EIO);
  }
  if (is_of_regular_file(header.opcode)) group_.note_file(header.nodeid);
  t_handled = &entry;
  shared_.handle(message.data(), message.size());
  t_handled = nullptr;
  // Has no answer, and yet wants a commit: the kernel sends it in person where it took a name of
  // READDIRPLUS's that it cannot keep (fs/fuse/readdir.c fuse_force_forget()).
  if (header.opcode == FUSE_FORGET || header.opcode == FUSE_BATCH_FORGET) {
    return answer(ring, entry, 0);
  }
  if ((entry.progress.load(std::memory_order_acquire) & RingEntry::kFilled) != 0) {
    return commit(ring, entry);
  }
  shared_.park(entry, header);
  const unsigned before = entry.progress.fetch_or(RingEntry::kLeft, std::memory_order_acq_rel);
  if ((before & RingEntry::kFilled) != 0) {
    shared_.unpark(entry);
    return commit(ring, entry);
  }
  // From here on the entry is whoever's answers it.
  if (in_kernel_ == 0 && !group_.rest(*this)) register_new(ring);
  if (group_.may_be_queued()) kick(header.nodeid);
}

void RingWorker::answer(Ring& ring, RingEntry& entry, int error) {
  entry.number.store(0, std::memory_order_relaxed);
  const fuse_out_header header{sizeof header, error, entry.unique};
  std::memcpy(entry.headers.in_out.data(), &header, sizeof header);
  entry.headers.entry.payload_size = 0;
  commit(ring, entry);
}

}  // namespace latchfs::transport
