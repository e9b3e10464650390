// The text of a listing, made page by page.
//
//   {"grants": [
//   {…},
//   {…}
//   ], "paging": {"next": ""}}
//
// `waiters` opens with {"waiters": [, `filelock` with {"filelocks": [. Filters apply before the
// limit. `next` is "" unless a limit ended the listing early.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "control/context.h"
#include "control/query.h"
#include "control/visible.h"
#include "latchfs/lock_service.h"

namespace latchfs::control {

// What is listed, for whom.
struct Scope {
  ListKind kind{};
  Query query;
  // query.ref resolved, or the file of a node below files/. Not of filelocks' paths: whoever keeps
  // those walks them.
  std::optional<FileId> file;
  Viewer viewer;
};

// Makes the text of one scope once through. Holds no more than a page of it. Not thread-safe.
class Listing {
 public:
  // Where the next piece begins. After resume() the text goes on from there as it would have gone
  // on then (but for changes since).
  struct Position {
    ListCursor after;
    std::string after_path;             // instead of it, of filelocks
    std::optional<std::uint64_t> left;  // of the limit
    bool opened{};                      // the first line is out
    bool any{};                         // an entry is out: the next needs a comma
    bool ended{};
  };

  Listing(const Listing&) = delete;
  Listing& operator=(const Listing&) = delete;
  virtual ~Listing() = default;

  // Appends the next piece; false if there was none left. Long stretches of entries that are not
  // shown give empty pieces.
  virtual Result<bool> more(std::string& out) = 0;

  const Position& position() const { return at_; }
  Position start() const;
  void resume(const Position& position) { at_ = position; }

 protected:
  Listing(const Context& context, Scope scope)
      : context_{context}, scope_{std::move(scope)}, at_{start()} {}
  // `next`: "" or what `after` takes to go on, needing no escapes.
  void close(std::string& out, std::string_view next);

  const Context& context_;  // NOLINT: what every listing works on
  const Scope scope_;       // NOLINT
  Position at_;             // NOLINT
};

[[nodiscard]] std::unique_ptr<Listing> make_listing(const Context& context, Scope scope);

class LockListing final : public Listing {
 public:
  LockListing(const Context& context, Scope scope)
      : Listing{context, std::move(scope)}, facts_{context_, scope_.viewer} {}
  Result<bool> more(std::string& out) override;

 private:
  struct Page {
    std::vector<Waiter> entries;  // grants: without blocker
    std::optional<ListCursor> next;
  };
  Result<Page> fetch(std::uint32_t limit);
  bool shown(const Waiter& entry);
  // The text of a page that goes no further than the limit, and where the next one begins.
  Result<std::optional<ListCursor>> append_page(std::string& out);
  void append(std::string& out, const Waiter& entry);

  FileFacts facts_;
};

}  // namespace latchfs::control
