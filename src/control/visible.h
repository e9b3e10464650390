// What one caller may see of the grants, and where their files are.
#pragma once

#include <optional>
#include <string>

#include "base/caller.h"
#include "control/context.h"
#include "latchfs/types.h"

namespace latchfs::control {

struct Viewer {
  Caller caller;
  bool admin{};
};
[[nodiscard]] Viewer viewer_of(const Context& context, const Caller& caller);

// His to see and to break, whatever the file: admins, and the uid that holds it.
[[nodiscard]] inline bool is_his(const Viewer& viewer, const Grant& grant) {
  return viewer.admin || grant.holder.uid == viewer.caller.uid;
}

// The facts about the file of the grant asked for last; a listing comes file by file, so that one
// set is enough. For one rendering only: names and permissions change. Not thread-safe.
class FileFacts {
 public:
  FileFacts(const Context& context, const Viewer& viewer) : context_{context}, viewer_{viewer} {}

  // Valid until the next call.
  struct Facts {
    std::string path;  // "" if unknown
    std::string snapshot;
    bool outside{};
  };
  const Facts& of(const Grant& grant);

  // May the viewer see this grant? Own ones, and those on files he could open for reading.
  bool visible(const Grant& grant);

 private:
  const Context& context_;
  const Viewer& viewer_;
  std::optional<FileId> file_;
  Facts facts_;
  std::optional<bool> readable_;
  int tries_{};
};

}  // namespace latchfs::control
