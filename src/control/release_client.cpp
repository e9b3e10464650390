#include "control/release_client.h"

#include <fmt/core.h>

#include <algorithm>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/log.h"
#include "control/grant_text.h"
#include "control/status.h"
#include "control/text.h"

namespace latchfs::control {
namespace {

struct Held {
  std::vector<Grant> owners;  // one grant of each owner on each file
  std::uint64_t ambiguous{};
  bool all_own{true};
};

std::string head(std::string_view address) {
  return fmt::format("{{\"owner_address\": {}, \"released\": [", json_string(address));
}

Outcome refuse(int err, const ReleaseOfClient& request, std::uint64_t ambiguous,
               std::string_view why) {
  Outcome outcome{err, head(request.owner_address)};
  outcome.reply += fmt::format("], \"count\": 0, \"ambiguous\": {}, ", ambiguous);
  append_error(outcome.reply, err, why);
  outcome.reply += "}\n";
  return outcome;
}

bool is_own(const Viewer& viewer, const Grant& grant) {
  return viewer.admin || grant.holder.uid == viewer.caller.uid;
}

// What the client holds on files of this mount, in the order of the table.
Result<Held> held_by(const Context& context, const std::string& address, const Actor& actor) {
  Held held;
  FileFacts files{context, actor.writer};
  std::set<std::pair<FileId, OwnerId>> seen;
  ListQuery query{std::nullopt, {}, 256};
  while (true) {
    const auto page = context.locks().list(query);
    if (!page) return page.error();
    for (const Grant& grant : page->grants) {
      if (is_op(grant.kind)) continue;
      const auto machines = context.machines_of(grant);
      const bool may_be =
          std::any_of(machines.begin(), machines.end(),
                      [&address](const RemoteClient& m) { return m.address == address; });
      if (!may_be || files.of(grant).outside) continue;
      if (machines.size() > 1) {
        ++held.ambiguous;
        continue;
      }
      held.all_own = held.all_own && is_own(actor.writer, grant) && is_own(actor.opener, grant);
      if (seen.emplace(grant.file, grant.owner).second) held.owners.push_back(grant);
    }
    if (!page->next) return held;
    query.after = *page->next;
  }
}

}  // namespace

Outcome run_release_of_client(const Context& context, const ReleaseOfClient& request,
                              const Actor& actor) {
  const std::string& address = request.owner_address;
  if (address == context.options().node_address) {
    return refuse(EINVAL, request, 0, "owner_address is this machine's own: name one owner of it");
  }
  const auto held = held_by(context, address, actor);
  if (!held) return refuse(held.error().value(), request, 0, words_for(held.error().value()));
  const std::uint64_t ambiguous = held->ambiguous;
  if (held->owners.empty()) {
    return refuse(ENOENT, request, ambiguous,
                  ambiguous == 0 ? "this client holds no lock"
                                 : "what this client holds may be another one's as well");
  }
  if (!held->all_own) {
    log::info("release refused: {} may not release all that {} holds", describe_caller(actor),
              log::printable(address));
    return refuse(EACCES, request, ambiguous,
                  "there are other users' locks among them; only admins may release those");
  }

  Outcome outcome{0, head(address)};
  FileFacts files{context, actor.writer};
  std::uint64_t count = 0;
  std::size_t listed = 0;
  for (const Grant& grant : held->owners) {
    const auto broken = context.locks().break_range(grant.file, grant.owner, ByteRange{}, true);
    if (!broken) {
      if (outcome.err == 0) outcome.err = broken.error().value();
      continue;
    }
    if (broken->count == 0) continue;  // given up meanwhile
    count += broken->count;
    const FileFacts::Facts& facts = files.of(grant);
    if (listed < LockService::kMaxBrokenListed) {
      log::info("released: {} broke {} piece(s) of '{}' of owner {}, held for {} by uid {}",
                describe_caller(actor), broken->count, log::printable(facts.path),
                to_string(grant.owner), log::printable(address), grant.holder.uid);
    }
    for (const Grant& piece : broken->grants) {
      if (listed == LockService::kMaxBrokenListed) break;
      outcome.reply += listed++ == 0 ? "\n" : ",\n";
      append_released(outcome.reply, context, piece, facts);
    }
  }
  log::info("released: {} broke all {} piece(s) held for {}", describe_caller(actor), count,
            log::printable(address));
  outcome.reply += fmt::format("{}], \"count\": {}, \"ambiguous\": {}", listed == 0 ? "" : "\n",
                               count, ambiguous);
  if (outcome.err != 0) {
    outcome.reply += ", ";
    append_error(outcome.reply, outcome.err, words_for(outcome.err));
  }
  outcome.reply += "}\n";
  return outcome;
}

}  // namespace latchfs::control
