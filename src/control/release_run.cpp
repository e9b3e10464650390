#include "control/release_run.h"

#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "base/log.h"
#include "control/grant_text.h"
#include "control/status.h"
#include "control/text.h"

namespace latchfs::control {
namespace {

std::string reply_head(std::string_view ref) {
  std::string out = "{\"ref\": ";
  append_json_string(out, ref);
  out += ", \"released\": [";
  return out;
}

Outcome refuse(int err, std::string_view ref, std::string_view why) {
  Outcome outcome{err, reply_head(ref)};
  outcome.reply += "], \"count\": 0, ";
  append_error(outcome.reply, err, why);
  outcome.reply += "}\n";
  return outcome;
}

// The owner's grants in the range.
Result<std::vector<Grant>> held_by(const Context& context, FileId file,
                                   const ReleaseRequest& request) {
  std::vector<Grant> held;
  ListQuery query{file, {}, 256};
  while (true) {
    const auto page = context.locks().list(query);
    if (!page) return page.error();
    for (const Grant& grant : page->grants) {
      if (grant.owner == request.owner && grant.range.overlaps(request.range)) {
        held.push_back(grant);
      }
    }
    if (!page->next) return held;
    query.after = *page->next;
  }
}

bool may_break(const Viewer& viewer, const std::vector<Grant>& held) {
  return std::all_of(held.begin(), held.end(),
                     [&viewer](const Grant& grant) { return is_his(viewer, grant); });
}

// Is the caller (a thread) of the process that holds the lock? Not if that cannot be told.
bool is_holder(const Caller& caller, const Holder& holder) {
  if (holder.client != 0) return false;  // its pid is another machine's
  if (caller.uid != holder.uid || caller.pid <= 0 || holder.pid == 0) return false;
  if (static_cast<std::uint32_t>(caller.pid) == holder.pid) return true;
  return ::access(fmt::format("/proc/{}/task/{}", holder.pid, caller.pid).c_str(), F_OK) == 0;
}

std::string describe_target(const ReleaseRequest& request, std::string_view path) {
  const std::string to =
      request.range.size_or_zero() == 0 ? "end of file" : std::to_string(request.range.end());
  return fmt::format("'{}' [{}, {}) of owner {}", log::printable(path), request.range.begin(), to,
                     to_string(request.owner));
}

// The file, resolved by everybody who must be allowed to.
Result<FileId> resolve_for(const Context& context, const FileRef& ref, const Actor& actor) {
  auto file = context.resolve(ref, actor.writer.caller);
  if (file && actor.opener.caller.uid != actor.writer.caller.uid) {
    const auto again = context.resolve(ref, actor.opener.caller);
    if (!again) return again.error();
  }
  return file;
}

}  // namespace

Outcome refuse_release(int err, std::string_view why) { return refuse(err, "", why); }

Outcome run_release(const Context& context, const ReleaseRequest& request, const Actor& actor) {
  const std::string& ref = request.ref_text;
  const auto file = resolve_for(context, request.ref, actor);
  if (!file) {
    const int err = file.error().value();
    return refuse(err, ref, fmt::format("ref: {}", words_for(err)));
  }
  const auto held = held_by(context, *file, request);
  if (!held) {
    return refuse(held.error().value(), ref, words_for(held.error().value()));
  }
  if (held->empty()) {
    return refuse(ENOENT, ref, "this owner holds nothing in this range of the file");
  }
  FileFacts files{context, actor.writer};
  const FileFacts::Facts facts = files.of(held->front());
  if (facts.outside) return refuse(ENOENT, ref, "the file is not below this mount");
  if (request.snapshot && *request.snapshot != facts.snapshot) {
    return refuse(ENOENT, ref, "the file is not in this snapshot");
  }
  const std::string target = describe_target(request, facts.path.empty() ? ref : facts.path);
  if (!may_break(actor.writer, *held) || !may_break(actor.opener, *held)) {
    log::info("release refused: {} may not release {}", describe_caller(actor), target);
    return refuse(EACCES, ref, "the lock is another user's; only he and admins may release it");
  }
  if (request.owner.space == OwnerSpace::kOp) {
    return refuse(EBUSY, ref, "an operation in flight is no lock; it ends by itself");
  }

  // flock(2) knows whole files only: a rest would hold up everybody all the same.
  if (request.owner.space == OwnerSpace::kFlock && request.range != ByteRange{}) {
    return refuse(EINVAL, ref, "a flock lock has no parts: release it with offset 0 and size 0");
  }

  // The holder may have changed its locks since they were listed. It is still the same process:
  // owner ids are not given out again while the table lives, and the kernel's lock owner inside
  // one stays with its files table. So what is broken now is what the same holder, who was
  // judged above, took since; at worst a lock a moment younger than the one that was looked at.
  // A service's owner has no descriptor whose writes could be refused, nor whose close lifts a
  // fence.
  const bool fence = !std::all_of(held->begin(), held->end(), [&actor](const Grant& grant) {
    return grant.holder.client != 0 || is_holder(actor.writer.caller, grant.holder);
  });
  const auto broken = context.locks().break_range(*file, request.owner, request.range, fence);
  if (!broken) {
    return refuse(broken.error().value(), ref, words_for(broken.error().value()));
  }
  if (broken->count == 0) {
    return refuse(ENOENT, ref, "the lock was given up just now by its holder");
  }
  const Holder& holder = held->front().holder;
  log::info("released: {} broke {} piece(s) of {}, held by uid {} pid {} ({}){}",
            describe_caller(actor), broken->count, target, holder.uid, holder.pid,
            log::printable(comm_of(holder)), fence ? ", fenced" : "");

  Outcome outcome{0, reply_head(ref)};
  bool first = true;
  for (const Grant& piece : broken->grants) {
    outcome.reply += first ? "\n" : ",\n";
    first = false;
    append_released(outcome.reply, context, piece, facts);
  }
  outcome.reply += first ? "], \"count\": " : "\n], \"count\": ";
  append_number(outcome.reply, broken->count);
  outcome.reply += "}\n";
  return outcome;
}

}  // namespace latchfs::control
