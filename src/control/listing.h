// The text of `list`, `waiters` and `files/PATH`, made page by page.
//
//   {"grants": [
//   {…},
//   {…}
//   ], "paging": {"next": ""}}
//
// `waiters` opens with {"waiters": [. Filters apply before the limit. `next` is "" unless a limit
// ended the listing early.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "control/context.h"
#include "control/query.h"
#include "control/visible.h"
#include "latchfs/lock_service.h"

namespace latchfs::control {

enum class ListKind : std::uint8_t { kGrants, kWaiters };

// What is listed, for whom.
struct Scope {
  ListKind kind{};
  Query query;
  std::optional<FileId> file;  // query.ref resolved, or the file of a node below files/
  Viewer viewer;
};

// Makes the text of one scope once through. Holds no more than a page of it. Not thread-safe.
class Listing {
 public:
  Listing(const Context& context, Scope scope);
  Listing(const Listing&) = delete;
  Listing& operator=(const Listing&) = delete;
  ~Listing() = default;

  // Appends the next piece; false if there was none left. Long stretches of grants that are not
  // shown give empty pieces.
  Result<bool> more(std::string& out);

  // Where the next piece begins. After resume() the text goes on from there as it would have gone
  // on then (but for changes in the table since).
  struct Position {
    ListCursor after;
    std::optional<std::uint64_t> left;  // of the limit
    bool opened{};                      // the first line is out
    bool any{};                         // a grant is out: the next needs a comma
    bool ended{};
  };
  const Position& position() const { return at_; }
  Position start() const;
  void resume(const Position& position) { at_ = position; }

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
  void close(std::string& out, const std::optional<ListCursor>& next);

  const Context& context_;
  const Scope scope_;
  FileFacts facts_;
  Position at_;
};

}  // namespace latchfs::control
