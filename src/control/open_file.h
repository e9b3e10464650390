// What an open file of the tree does. One for each open(2); calls come from any thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "base/caller.h"
#include "base/mutex.h"
#include "control/context.h"
#include "control/intake.h"
#include "control/reader.h"
#include "control/release_run.h"
#include "control/replies.h"
#include "latchfs/result.h"

namespace latchfs::control {

class OpenFile {
 public:
  OpenFile() = default;
  OpenFile(const OpenFile&) = delete;
  OpenFile& operator=(const OpenFile&) = delete;
  virtual ~OpenFile() = default;

  virtual Result<std::string> read(std::uint64_t offset, std::size_t size) = 0;
  virtual Result<std::size_t> write(std::string_view, const Caller&) { return errno_code(EBADF); }
  virtual Result<void> flush(const Caller&) { return {}; }
  virtual void close() noexcept {}
};

// A text that was complete when the file was opened.
class OpenText final : public OpenFile {
 public:
  explicit OpenText(std::shared_ptr<const std::string> text) : text_{std::move(text)} {}
  Result<std::string> read(std::uint64_t offset, std::size_t size) override;

 private:
  const std::shared_ptr<const std::string> text_;
};

// Bytes that all open files together may hold ahead of their readers.
class Budget {
 public:
  explicit Budget(std::size_t limit) : limit_{limit} {}
  bool take(std::size_t bytes) noexcept;
  void give_back(std::size_t bytes) noexcept;

 private:
  const std::size_t limit_;
  std::atomic<std::size_t> used_{0};
};

class OpenListing final : public OpenFile {
 public:
  // `charged` bytes were taken from the budget.
  OpenListing(std::unique_ptr<ListingReader> reader, Budget& budget, std::size_t charged)
      : reader_{std::move(reader)}, budget_{budget}, charged_{charged} {}
  OpenListing(const OpenListing&) = delete;
  OpenListing& operator=(const OpenListing&) = delete;
  ~OpenListing() override { budget_.give_back(charged_); }
  Result<std::string> read(std::uint64_t offset, std::size_t size) override;

 private:
  Mutex mu_;  // held while the table and the files are asked
  const std::unique_ptr<ListingReader> reader_ PT_GUARDED_BY(mu_);
  Budget& budget_;
  const std::size_t charged_;
};

// `release`: what is written is a request; what is read is the reply to it, from wherever the
// first read after it is, so that a descriptor standing behind what was written and a pread at 0
// both get all of it. Before any request: the outcome of the opener's last one.
class OpenRelease final : public OpenFile {
 public:
  OpenRelease(const Context& context, Replies& replies, const Caller& opener, int flags);
  Result<std::string> read(std::uint64_t offset, std::size_t size) override;
  Result<std::size_t> write(std::string_view data, const Caller& caller) override;
  // Called for every close(2) of the descriptor, by children that inherited it as well: only the
  // process that wrote ends its request by it.
  Result<void> flush(const Caller& caller) override;
  // The last close: a request that no flush ended is run, its outcome found in `reply`.
  void close() noexcept override;

 private:
  // The errno; 0 if done or incomplete.
  int run(const Intake::Taken& taken, const Caller& caller) REQUIRES(mu_);
  void answer(Outcome outcome, const Caller& caller) REQUIRES(mu_);

  const Context& context_;
  Replies& replies_;
  const Viewer opener_;
  const bool readable_;
  const bool writable_;
  Mutex mu_;  // held while the request runs: requests of one descriptor run one by one
  Intake intake_ GUARDED_BY(mu_);
  Caller writer_ GUARDED_BY(mu_);
  bool finished_ GUARDED_BY(mu_){};  // a flush has ended what was written
  std::shared_ptr<const std::string> reply_ GUARDED_BY(mu_);
  bool answered_ GUARDED_BY(mu_){};
  std::optional<std::uint64_t> origin_ GUARDED_BY(mu_);  // the reply's offset in the file
};

// What reading `release` and `reply` gives a user who has asked nothing yet.
[[nodiscard]] std::shared_ptr<const std::string> no_reply();

}  // namespace latchfs::control
