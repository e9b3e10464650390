#include "control/open_file.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "base/clock.h"
#include "base/log.h"

namespace latchfs::control {
namespace {

constexpr std::size_t kMaxRead = ListingReader::kMaxRead;

std::string part(const std::string& text, std::uint64_t offset, std::size_t size) {
  if (offset >= text.size()) return {};
  return text.substr(static_cast<std::size_t>(offset), std::min(size, kMaxRead));
}

// Are these two threads of one process? Yes if one of them is unknown.
bool same_process(pid_t a, pid_t b) {
  if (a == b || a <= 0 || b <= 0) return true;
  return ::access(fmt::format("/proc/{}/task/{}", a, b).c_str(), F_OK) == 0;
}

}  // namespace

std::shared_ptr<const std::string> no_reply() {
  static const auto text = std::make_shared<const std::string>("{}\n");
  return text;
}

Result<std::string> OpenText::read(std::uint64_t offset, std::size_t size) {
  return part(*text_, offset, size);
}

bool Budget::take(std::size_t bytes) noexcept {
  std::size_t used = used_.load(std::memory_order_relaxed);
  do {
    if (bytes > limit_ - used) return false;
  } while (!used_.compare_exchange_weak(used, used + bytes, std::memory_order_relaxed));
  return true;
}

void Budget::give_back(std::size_t bytes) noexcept {
  used_.fetch_sub(bytes, std::memory_order_relaxed);
}

Result<std::string> OpenListing::read(std::uint64_t offset, std::size_t size) {
  const MutexLock lock{mu_};
  return reader_->read(offset, size);
}

OpenRelease::OpenRelease(const Context& context, Replies& replies, const Caller& opener, int flags)
    : context_{context},
      replies_{replies},
      opener_{viewer_of(context, opener)},
      readable_{(flags & O_ACCMODE) != O_WRONLY},
      writable_{(flags & O_ACCMODE) != O_RDONLY} {
  reply_ = replies.of(opener.uid).text;
  if (!reply_) reply_ = no_reply();
}

Result<std::string> OpenRelease::read(std::uint64_t offset, std::size_t size) {
  if (!readable_) return errno_code(EBADF);
  const MutexLock lock{mu_};
  if (!answered_) return part(*reply_, offset, size);
  if (!origin_ || offset < *origin_) origin_ = offset;
  return part(*reply_, offset - *origin_, size);
}

Result<std::size_t> OpenRelease::write(std::string_view data, const Caller& caller) {
  if (!writable_) return errno_code(EBADF);
  const MutexLock lock{mu_};
  writer_ = caller;
  finished_ = false;
  if (const int err = run(intake_.add(data), caller)) return errno_code(err);
  return data.size();
}

Result<void> OpenRelease::flush(const Caller& caller) {
  const MutexLock lock{mu_};
  if (!intake_.waiting() || !same_process(writer_.pid, caller.pid)) return {};
  finished_ = true;
  if (const int err = run(intake_.finish(), writer_)) return errno_code(err);
  return {};
}

void OpenRelease::close() noexcept {
  const MutexLock lock{mu_};
  if (!intake_.waiting() || finished_) return;
  try {
    run(intake_.finish(), writer_);
  } catch (const std::exception&) {
    log::error("a request to `release` was lost at its close: out of memory");
  }
}

int OpenRelease::run(const Intake::Taken& taken, const Caller& caller) {
  if (std::holds_alternative<Incomplete>(taken)) return 0;
  Outcome outcome;
  if (const auto* bad = std::get_if<Malformed>(&taken)) {
    outcome = refuse_request(EINVAL, bad->why);
  } else if (std::holds_alternative<Intake::TooLarge>(taken)) {
    outcome = refuse_request(EMSGSIZE, "the request is longer than 1 MiB");
  } else {
    const auto parsed = parse_release(std::get<Intake::Request>(taken));
    if (const auto* wrong = std::get_if<Malformed>(&parsed)) {
      outcome = refuse_request(EINVAL, wrong->why);
    } else {
      const Actor actor{opener_, viewer_of(context_, caller)};
      outcome = run_release(context_, std::get<ReleaseRequest>(parsed), actor);
    }
  }
  const int err = outcome.err;
  answer(std::move(outcome), caller);
  return err;
}

void OpenRelease::answer(Outcome outcome, const Caller& caller) {
  if (outcome.err != 0) {
    log::debug("release: uid {} pid {}: errno {}: {}", caller.uid, caller.pid, outcome.err,
               log::printable(std::string_view{outcome.reply}.substr(0, 512)));
  }
  reply_ = std::make_shared<const std::string>(std::move(outcome.reply));
  answered_ = true;
  origin_.reset();
  replies_.put(caller.uid, {reply_, realtime_ns()});
}

}  // namespace latchfs::control
