// The text of `filelock` and `filelock?…`: see listing.h.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "control/filelocks.h"
#include "control/listing.h"

namespace latchfs::control {

// An entry is shown to admins, to the user who locked, and to whoever could open the file for
// reading. Asked for by path only that file is looked at; by file id all are gone through.
class FilelockListing final : public Listing {
 public:
  FilelockListing(const Context& context, Scope scope) : Listing{context, std::move(scope)} {}
  Result<bool> more(std::string& out) override;

  // From then on (monotonic) no further entry is looked at: the text stops short, late() is true.
  void stop_at(std::int64_t monotonic_ns) { stop_at_ns_ = monotonic_ns; }
  [[nodiscard]] bool late() const { return late_; }

 private:
  Result<Filelocks::Page> fetch() const;
  Result<Filelocks::Page> fetch_one() const;
  bool shown(const FilelockEntry& entry) const;

  std::optional<std::int64_t> stop_at_ns_;
  bool late_{};
};

// As listings print it: one line.
void append_filelock(std::string& out, const Context& context, const FilelockEntry& entry);
// A JSON object of strings.
void append_tags(std::string& out, const Tags& tags);

}  // namespace latchfs::control
