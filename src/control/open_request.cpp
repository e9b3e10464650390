#include "control/open_request.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <unistd.h>

#include <utility>

#include "base/clock.h"
#include "base/log.h"
#include "control/release_client.h"
#include "control/release_request.h"
#include "control/release_run.h"

namespace latchfs::control {
namespace {

// Are these two threads of one process? Yes if one of them is unknown.
bool same_process(pid_t a, pid_t b) {
  if (a == b || a <= 0 || b <= 0) return true;
  return ::access(fmt::format("/proc/{}/task/{}", a, b).c_str(), F_OK) == 0;
}

}  // namespace

Outcome ReleaseRequests::run(const Intake::Request& request, const Actor& actor) {
  const auto parsed = parse_release(request);
  if (const auto* wrong = std::get_if<Malformed>(&parsed)) return refuse(EINVAL, wrong->why);
  if (const auto* all = std::get_if<ReleaseOfClient>(&parsed)) {
    return run_release_of_client(context_, *all, actor);
  }
  return run_release(context_, std::get<ReleaseRequest>(parsed), actor);
}

Outcome ReleaseRequests::refuse(int err, std::string_view why) { return refuse_release(err, why); }

OpenRequest::OpenRequest(const Context& context, Replies& replies, Budget& budget,
                         std::unique_ptr<Requests> requests, std::optional<Viewer> opener,
                         bool kept, int flags, Unasked unasked)
    : context_{context},
      replies_{replies},
      budget_{budget},
      opener_{opener},
      kept_{kept},
      readable_{(flags & O_ACCMODE) != O_WRONLY},
      writable_{(flags & O_ACCMODE) != O_RDONLY},
      unasked_{std::move(unasked)},
      requests_{std::move(requests)},
      intake_{requests_->short_form()} {}

Result<std::string> OpenRequest::read(std::uint64_t offset, std::size_t size,
                                      const Caller& caller) {
  if (!readable_) return errno_code(EBADF);
  const MutexLock lock{mu_};
  if (!reply_ || !opener_) {
    if (!before_) {
      auto got = unasked_();
      if (!got) return got.error();
      before_ = std::move(*got);
    }
    return before_->read(offset, size, caller);
  }
  if (!origin_ || offset < *origin_) origin_ = offset;
  return text_part(*reply_, offset - *origin_, size);
}

void OpenRequest::begin_or_go_on(std::uint64_t offset, const Caller& caller) {
  if (!intake_.waiting()) return;
  const bool same_user = caller.uid == writer_.uid;
  if (offset == next_offset_ && (opener_ || same_user)) return;
  if (opener_ && offset != 0) return;
  if (offset == 0 && same_user) {
    if (!finished_) run(intake_.finish(), last_writer());
  } else {
    // Nobody else's text may become part of it.
    log::info("{}: what uid {} began and did not end is dropped", requests_->name(), writer_.uid);
  }
  intake_ = Intake{requests_->short_form()};
}

Result<std::size_t> OpenRequest::write(std::uint64_t offset, std::string_view data,
                                       const Caller& caller) {
  if (!writable_) return errno_code(EBADF);
  const MutexLock lock{mu_};
  begin_or_go_on(offset, caller);
  writer_ = caller;
  finished_ = false;
  if (const int err = run(intake_.add(data), caller)) {
    // write(2) has moved nothing: a program that goes on does so where it was. A server's client
    // has been told, and the next one to come is another.
    next_offset_ = offset;
    if (kept_) intake_ = Intake{requests_->short_form()};
    return errno_code(err);
  }
  next_offset_ = offset + data.size();
  return data.size();
}

Result<void> OpenRequest::flush(const Caller& caller) {
  const MutexLock lock{mu_};
  if (!intake_.waiting() || !same_process(writer_.pid, caller.pid)) return {};
  finished_ = true;
  if (const int err = run(intake_.finish(), last_writer())) return errno_code(err);
  return {};
}

Caller OpenRequest::last_writer() const {
  Caller out = writer_;
  // A server's thread works for somebody else by now, with that one's groups.
  if (!opener_) out.pid = 0;
  return out;
}

void OpenRequest::close() noexcept {
  const MutexLock lock{mu_};
  if (!intake_.waiting() || finished_) return;
  try {
    run(intake_.finish(), last_writer());
  } catch (const std::exception&) {
    log::error("a request to `{}` was lost at its close: out of memory", requests_->name());
  }
}

int OpenRequest::run(const Intake::Taken& taken, const Caller& caller) {
  if (std::holds_alternative<Incomplete>(taken)) return 0;
  Outcome outcome;
  if (const auto* bad = std::get_if<Malformed>(&taken)) {
    outcome = requests_->refuse(EINVAL, bad->why);
  } else if (std::holds_alternative<Intake::TooLarge>(taken)) {
    outcome = requests_->refuse(EMSGSIZE, "the request is longer than 1 MiB");
  } else {
    const Viewer writer = viewer_of(context_, caller);
    const Actor actor{opener_.value_or(writer), writer};
    outcome = requests_->run(std::get<Intake::Request>(taken), actor);
  }
  const int err = outcome.err;
  answer(std::move(outcome), caller);
  return err;
}

void OpenRequest::charge(Outcome& outcome) {
  budget_.give_back(charged_);
  charged_ = 0;
  if (outcome.reply.size() <= kSmallText) return;
  // Twice: what makes the next reply longer (FilelockRequests) is kept besides.
  if (budget_.take(2 * outcome.reply.size())) {
    charged_ = 2 * outcome.reply.size();
    return;
  }
  requests_->forget();
  outcome.reply = requests_
                      ->refuse(ENOMEM,
                               "what was asked for was done or refused as the log tells; there "
                               "is no memory for the whole reply now")
                      .reply;
}

void OpenRequest::answer(Outcome outcome, const Caller& caller) {
  if (outcome.err != 0) {
    log::debug("{}: uid {} pid {}: errno {}: {}", requests_->name(), caller.uid, caller.pid,
               outcome.err, log::printable(std::string_view{outcome.reply}.substr(0, 512)));
  }
  charge(outcome);
  reply_ = std::make_shared<const std::string>(std::move(outcome.reply));
  before_.reset();
  origin_.reset();
  replies_.put(caller.uid, requests_->kind(), {reply_, realtime_ns()});
}

}  // namespace latchfs::control
