// Applying and removing filelocks on request: who may, what the reply says.
//
//   {"paths": [
//   {"path": "/a", "tags": {"ticket": "42"}},
//   {"path": "/b", "error": {"code": "404", "reason": "Not Found", "user_message": "…"}}
//   ]}
//
// One object a path, in order. A request that was refused as a whole: {"paths": [], "error": {…}}.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "control/context.h"
#include "control/filelock_request.h"
#include "control/open_request.h"

namespace latchfs::control {

// Those of one open file. Paths that come a line at a time (`while read f; do echo "$f"; done >
// filelock`) share one reply: it has all of them since the descriptor was opened or something else
// was written to it. When it gets larger than kMaxReply the oldest are left out, and "omitted" says
// how many.
class FilelockRequests final : public Requests {
 public:
  static constexpr std::size_t kMaxReply = std::size_t{1} << 20;
  // After so long no further path of a request is begun.
  static constexpr std::int64_t kMostNs = 60'000'000'000;

  FilelockRequests(const Context& context, FilelockAct act) : context_{context}, act_{act} {}

  RequestKind kind() const override {
    return act_ == FilelockAct::kApply ? RequestKind::kFilelock : RequestKind::kUnfilelock;
  }
  std::string_view name() const override {
    return act_ == FilelockAct::kApply ? "filelock" : "unfilelock";
  }
  Outcome run(const Intake::Request& request, const Actor& actor) override;
  Outcome refuse(int err, std::string_view why) override;
  void forget() noexcept override;

 private:
  std::optional<FilelockFailure> run_one(const FilelockItem& item, const Actor& actor);
  std::optional<FilelockFailure> ask(std::string_view path, const FilelockItem& item,
                                     const Viewer& writer);
  void note(const FilelockItem& item, const Actor& actor,
            const std::optional<FilelockFailure>& failure) const;
  void forget_oldest();

  const Context& context_;
  const FilelockAct act_;
  std::string done_;         // the reply's objects, joined
  std::size_t omitted_{};    // that were forgotten before them
  bool goes_on_{};           // lines add to them
  std::optional<uid_t> by_;  // whose they are
};

}  // namespace latchfs::control
