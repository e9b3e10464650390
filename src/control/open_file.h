// What an open file of the tree does. One for each open(2); calls come from any thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "base/caller.h"
#include "base/mutex.h"
#include "control/reader.h"
#include "latchfs/result.h"

namespace latchfs::control {

class OpenFile {
 public:
  OpenFile() = default;
  OpenFile(const OpenFile&) = delete;
  OpenFile& operator=(const OpenFile&) = delete;
  virtual ~OpenFile() = default;

  virtual Result<std::string> read(std::uint64_t offset, std::size_t size, const Caller&) = 0;
  virtual Result<std::size_t> write(std::uint64_t /*offset*/, std::string_view, const Caller&) {
    return errno_code(EBADF);
  }
  virtual Result<void> flush(const Caller&) { return {}; }
  virtual void close() noexcept {}
};

// A short text as it is when it is read from its start: NFS servers keep a file open when their
// clients have closed it, and read the next one's from the same.
class OpenText final : public OpenFile {
 public:
  using Text = std::shared_ptr<const std::string>;
  using Make = std::function<Result<Text>()>;

  // `made` is what `make` gave just now.
  OpenText(Text made, Make make) : make_{std::move(make)}, text_{std::move(made)} {}
  Result<std::string> read(std::uint64_t offset, std::size_t size, const Caller&) override;

 private:
  const Make make_;
  Mutex mu_;  // held over no call out
  Text text_ GUARDED_BY(mu_);
};

// Texts larger than this count against the budget.
constexpr std::size_t kSmallText = std::size_t{64} << 10;

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

// A listing as it was when it was opened; read from the start again when that is longer ago than
// kFresh, as it is then. NFS servers keep a file open, for all its readers, for as long as somebody
// reads it: they would be told the same for ever.
class OpenListing final : public OpenFile {
 public:
  static constexpr std::int64_t kFresh = 1'000'000'000;  // ns

  struct Begun {
    std::unique_ptr<ListingReader> reader;
    std::size_t charged{};  // bytes that were taken from the budget
  };
  using Begin = std::function<Result<Begun>()>;

  // `begin` is called by read(), later.
  OpenListing(Begun begun, Budget& budget, Begin begin);
  OpenListing(const OpenListing&) = delete;
  OpenListing& operator=(const OpenListing&) = delete;
  ~OpenListing() override { budget_.give_back(begun_.charged); }
  Result<std::string> read(std::uint64_t offset, std::size_t size, const Caller&) override;

 private:
  Mutex mu_;  // held while the table and the files are asked
  Begun begun_ GUARDED_BY(mu_);
  std::int64_t begun_at_ GUARDED_BY(mu_);  // monotonic
  Budget& budget_;
  const Begin begin_;
};

// At most ListingReader::kMaxRead bytes of a text.
[[nodiscard]] std::string text_part(const std::string& text, std::uint64_t offset,
                                    std::size_t size);

// What reading `release`, `unfilelock` and `reply` gives a user who has asked nothing yet.
[[nodiscard]] std::shared_ptr<const std::string> no_reply();

}  // namespace latchfs::control
