// Open files that take requests: `release`, `filelock`, `unfilelock`.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "base/caller.h"
#include "base/mutex.h"
#include "control/actor.h"
#include "control/context.h"
#include "control/intake.h"
#include "control/open_file.h"
#include "control/replies.h"
#include "latchfs/result.h"

namespace latchfs::control {

// What is done with the requests written to one open file. Not thread-safe.
class Requests {
 public:
  Requests() = default;
  Requests(const Requests&) = delete;
  Requests& operator=(const Requests&) = delete;
  virtual ~Requests() = default;

  [[nodiscard]] virtual RequestKind kind() const = 0;
  [[nodiscard]] virtual std::string_view name() const = 0;  // the file's
  [[nodiscard]] virtual Intake::Short short_form() const { return Intake::Short::kPaths; }
  // Runs one request, whatever it says; logs what was done and what was refused.
  [[nodiscard]] virtual Outcome run(const Intake::Request& request, const Actor& actor) = 0;
  // The reply to what never became a request.
  [[nodiscard]] virtual Outcome refuse(int err, std::string_view why) = 0;
  // What is kept of earlier replies is to go: memory is short.
  virtual void forget() noexcept {}
};

class ReleaseRequests final : public Requests {
 public:
  explicit ReleaseRequests(const Context& context) : context_{context} {}
  RequestKind kind() const override { return RequestKind::kRelease; }
  std::string_view name() const override { return "release"; }
  Intake::Short short_form() const override { return Intake::Short::kQuery; }
  Outcome run(const Intake::Request& request, const Actor& actor) override;
  Outcome refuse(int err, std::string_view why) override;

 private:
  const Context& context_;
};

// What is written is a request; what is read is the reply to it, from wherever the first read
// after it is, so that a descriptor standing behind what was written and a pread at 0 both get all
// of it. Before any request: what `unasked` gives at the first read.
class OpenRequest final : public OpenFile {
 public:
  using Unasked = std::function<Result<std::shared_ptr<OpenFile>>()>;

  OpenRequest(const Context& context, Replies& replies, Budget& budget,
              std::unique_ptr<Requests> requests, std::optional<Viewer> opener, bool kept,
              int flags, Unasked unasked);
  OpenRequest(const OpenRequest&) = delete;
  OpenRequest& operator=(const OpenRequest&) = delete;
  ~OpenRequest() override { budget_.give_back(charged_); }
  Result<std::string> read(std::uint64_t offset, std::size_t size, const Caller& caller) override;
  // What is written at 0 begins a request, whatever was left of one before: NFS servers keep a file
  // open when their clients have closed it, and one descriptor for all of them.
  Result<std::size_t> write(std::uint64_t offset, std::string_view data,
                            const Caller& caller) override;
  // Called for every close(2) of the descriptor, by children that inherited it as well: only the
  // process that wrote ends its request by it.
  Result<void> flush(const Caller& caller) override;
  // The last close: a request that no flush ended is run, its outcome found in `reply`.
  void close() noexcept override;

 private:
  [[nodiscard]] Caller last_writer() const REQUIRES(mu_);
  // Ends what is left of an earlier request, if this does not go on with it.
  void begin_or_go_on(std::uint64_t offset, const Caller& caller) REQUIRES(mu_);
  // The errno; 0 if done or incomplete.
  int run(const Intake::Taken& taken, const Caller& caller) REQUIRES(mu_);
  // Counts the reply against the budget; one for which there is no room is replaced.
  void charge(Outcome& outcome) REQUIRES(mu_);
  void answer(Outcome outcome, const Caller& caller) REQUIRES(mu_);

  const Context& context_;
  Replies& replies_;
  Budget& budget_;
  const std::optional<Viewer> opener_;  // nothing: a server for its users, who share the file
  const bool kept_;                     // by a server, for whoever comes next
  const bool readable_;
  const bool writable_;
  const Unasked unasked_;
  Mutex mu_;  // held while the request runs: requests of one descriptor run one by one
  const std::unique_ptr<Requests> requests_ PT_GUARDED_BY(mu_);
  Intake intake_ GUARDED_BY(mu_);
  std::size_t charged_ GUARDED_BY(mu_){};
  Caller writer_ GUARDED_BY(mu_);
  std::uint64_t next_offset_ GUARDED_BY(mu_){};               // behind what was written
  bool finished_ GUARDED_BY(mu_){};                           // a flush has ended what was written
  std::shared_ptr<OpenFile> before_ GUARDED_BY(mu_);          // what unasked_ gave
  std::shared_ptr<const std::string> reply_ GUARDED_BY(mu_);  // null before any request
  std::optional<std::uint64_t> origin_ GUARDED_BY(mu_);       // the reply's offset in the file
};

}  // namespace latchfs::control
