#include "control/release_client.h"

#include <fmt/core.h>

#include <algorithm>
#include <optional>
#include <string>
#include <system_error>
#include <utility>

#include "base/log.h"
#include "control/grant_text.h"
#include "control/status.h"
#include "control/text.h"

namespace latchfs::control {
namespace {

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

// Walks the table page by page, breaking as it goes: a client may hold a million locks.
class Sweep {
 public:
  Sweep(const Context& context, const std::string& address, const Actor& actor)
      : context_{context}, address_{address}, actor_{actor}, files_{context, actor.writer} {}

  std::error_code run() {
    ListQuery query{std::nullopt, {}, 256};
    while (true) {
      const auto page = context_.locks().list(query);
      if (!page) return page.error();
      for (const Grant& grant : page->grants) look_at(grant);
      if (!page->next) return failed_;
      query.after = *page->next;
    }
  }

  std::string pieces;
  std::size_t listed{};
  std::uint64_t count{};
  std::uint64_t ambiguous{};

 private:
  void look_at(const Grant& grant) {
    if (is_op(grant.kind) || !is_his(actor_.writer, grant) || !is_his(actor_.opener, grant)) return;
    // All of an owner's on a file goes at once; the page may show more of it.
    if (last_ == std::pair{grant.file, grant.owner}) return;
    const auto machines = context_.machines_of(grant);
    const bool may_be =
        std::any_of(machines.begin(), machines.end(),
                    [this](const RemoteClient& m) { return m.address == address_; });
    if (!may_be || files_.of(grant).outside) return;
    if (machines.size() > 1) {
      ++ambiguous;
    } else {
      last_ = {grant.file, grant.owner};
      take(grant);
    }
  }

  void take(const Grant& grant) {
    const bool fence = grant.holder.client == 0;  // release_run.cpp
    const auto broken = context_.locks().break_range(grant.file, grant.owner, ByteRange{}, fence);
    if (!broken) {
      if (!failed_) failed_ = broken.error();
      return;
    }
    if (broken->count == 0) return;  // given up, or taken with an earlier piece
    count += broken->count;
    const FileFacts::Facts& facts = files_.of(grant);
    if (listed < LockService::kMaxBrokenListed) {
      log::info("released: {} broke {} piece(s) of '{}' of owner {}, held for {} by uid {}",
                describe_caller(actor_), broken->count, log::printable(facts.path),
                to_string(grant.owner), log::printable(address_), grant.holder.uid);
    }
    for (const Grant& piece : broken->grants) {
      if (listed == LockService::kMaxBrokenListed) break;
      pieces += listed++ == 0 ? "\n" : ",\n";
      append_released(pieces, context_, piece, facts);
    }
  }

  const Context& context_;
  const std::string& address_;
  const Actor& actor_;
  FileFacts files_;
  std::optional<std::pair<FileId, OwnerId>> last_;
  std::error_code failed_;
};

}  // namespace

Outcome run_release_of_client(const Context& context, const ReleaseOfClient& request,
                              const Actor& actor) {
  const std::string& address = request.owner_address;
  if (address == context.options().node_address) {
    return refuse(EINVAL, request, 0, "owner_address is this machine's own: name one owner of it");
  }
  Sweep sweep{context, address, actor};
  const std::error_code failed = sweep.run();
  if (sweep.count == 0) {
    if (failed) return refuse(failed.value(), request, sweep.ambiguous, words_for(failed.value()));
    return refuse(ENOENT, request, sweep.ambiguous,
                  sweep.ambiguous == 0 ? "this client holds no lock that you may release"
                                       : "what this client holds may be another one's as well");
  }
  log::info("released: {} broke {} piece(s), all held for {}", describe_caller(actor), sweep.count,
            log::printable(address));
  Outcome outcome{failed.value(), head(address)};
  outcome.reply += sweep.pieces;
  outcome.reply +=
      fmt::format("\n], \"count\": {}, \"ambiguous\": {}", sweep.count, sweep.ambiguous);
  if (failed) {
    outcome.reply += ", ";
    append_error(outcome.reply, failed.value(), words_for(failed.value()));
  }
  outcome.reply += "}\n";
  return outcome;
}

}  // namespace latchfs::control
