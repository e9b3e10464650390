#include "control/filelock_run.h"

#include <fmt/core.h>

#include <cerrno>
#include <new>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/log.h"
#include "control/filelock_listing.h"
#include "control/status.h"
#include "control/text.h"

namespace latchfs::control {
namespace {

std::string words_of(const FilelockFailure& failure) {
  return failure.words.empty() ? words_for(failure.err) : failure.words;
}

void append_item(std::string& out, const FilelockItem& item,
                 const std::optional<FilelockFailure>& failure) {
  if (!out.empty()) out += ",\n";
  out += "{\"path\": ";
  append_json_string(out, item.path);
  if (failure) {
    out += ", ";
    append_error(out, failure->err, words_of(*failure));
  } else if (item.tags) {
    out += ", \"tags\": ";
    append_tags(out, *item.tags);
  }
  out += '}';
}

// The user's own slips, of which nobody else needs to know.
bool is_slip(int err) { return err == ENOENT || status_of(err).code == std::string_view{"400"}; }

}  // namespace

std::optional<FilelockFailure> FilelockRequests::ask(std::string_view path,
                                                     const FilelockItem& item,
                                                     const Viewer& writer) {
  Filelocks& filelocks = context_.filelocks();
  if (act_ == FilelockAct::kApply) {
    return filelocks.apply(path, item.tags, writer.caller, writer.admin);
  }
  return filelocks.remove(path, item.revert, writer.caller, writer.admin);
}

std::optional<FilelockFailure> FilelockRequests::run_one(const FilelockItem& item,
                                                         const Actor& actor) {
  // One path's failure stops no other, not even one of this kind.
  try {
    auto failure = ask(item.path, item, actor.writer);
    if (failure) {
      // ENOENT may also say that the file has no filelock: then it is this file that was meant.
      const auto rest = context_.without_mountpoint(item.path, failure->err);
      if (!rest.empty() && !context_.files().resolve(item.path, actor.writer.caller)) {
        failure = ask(rest, item, actor.writer);
      }
    }
    if (failure && failure->err <= 0) failure->err = EIO;
    return failure;
  } catch (const std::bad_alloc&) {
    return FilelockFailure{ENOMEM, {}};
  } catch (const std::exception& failed) {
    log::error("{}: '{}': {}", name(), log::printable(item.path), log::printable(failed.what()));
    return FilelockFailure{EIO, {}};
  }
}

void FilelockRequests::note(const FilelockItem& item, const Actor& actor,
                            const std::optional<FilelockFailure>& failure) const {
  const std::string who = describe_caller(actor);
  const std::string path = log::printable(item.path);
  if (!failure) {
    if (act_ == FilelockAct::kApply) {
      log::info("filelocked: {} locked '{}'", who, path);
    } else {
      log::info("unfilelocked: {} unlocked '{}'{}", who, path, item.revert ? ", reverted" : "");
    }
    return;
  }
  log::emit(is_slip(failure->err) ? log::Level::kDebug : log::Level::kInfo,
            "{} refused: {}: '{}': errno {}: {}", name(), who, path, failure->err,
            log::printable(words_of(*failure)));
}

// Half of them, so that this is not done for each further one.
void FilelockRequests::forget_oldest() {
  std::size_t cut = done_.find('\n', done_.size() / 2);
  if (cut == std::string::npos) return;
  ++cut;
  for (std::size_t i = 0; i < cut; ++i) omitted_ += done_[i] == '\n' ? 1 : 0;
  done_.erase(0, cut);
}

Outcome FilelockRequests::run(const Intake::Request& request, const Actor& actor) {
  const auto parsed = parse_filelock(act_, request);
  if (const auto* bad = std::get_if<Malformed>(&parsed)) return refuse(EINVAL, bad->why);
  if (actor.opener.caller.uid != actor.writer.caller.uid && !actor.opener.admin) {
    log::info("{} refused: {}: the descriptor is another user's", name(), describe_caller(actor));
    return refuse(EACCES, "the descriptor was opened by another user");
  }
  if (request.json || !goes_on_ || by_ != actor.writer.caller.uid) forget();
  goes_on_ = !request.json;
  by_ = actor.writer.caller.uid;

  Outcome outcome;
  // The kernel lets nobody else write to the control file meanwhile.
  const std::int64_t deadline = monotonic_ns() + kMostNs;
  for (const FilelockItem& item : std::get<std::vector<FilelockItem>>(parsed)) {
    const auto failure = monotonic_ns() < deadline
                             ? run_one(item, actor)
                             : FilelockFailure{EBUSY,
                                               "the request took too long before it came to "
                                               "this path: ask again for the rest"};
    note(item, actor, failure);
    if (failure && outcome.err == 0) outcome.err = failure->err;
    append_item(done_, item, failure);
    if (!request.json && done_.size() > kMaxReply) forget_oldest();
  }
  outcome.reply = omitted_ == 0 ? "{" : fmt::format("{{\"omitted\": {}, ", omitted_);
  outcome.reply += "\"paths\": [\n";
  outcome.reply += done_;
  outcome.reply += "\n]}\n";
  if (request.json) forget();
  return outcome;
}

void FilelockRequests::forget() noexcept {
  done_ = {};
  omitted_ = 0;
}

Outcome FilelockRequests::refuse(int err, std::string_view why) {
  Outcome outcome{err, "{\"paths\": [], "};
  append_error(outcome.reply, err, why);
  outcome.reply += "}\n";
  return outcome;
}

}  // namespace latchfs::control
