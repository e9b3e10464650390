// SOURCE and MOUNTPOINT, checked and pinned before anything is mounted.
#pragma once

#include <string>
#include <variant>

#include "base/unique_fd.h"

namespace latchfs::daemon {

struct Places {
  UniqueFd source;          // O_PATH | O_DIRECTORY: stays what it is when MOUNTPOINT covers it
  std::string source_path;  // absolute, symlinks resolved
  std::string mountpoint;   // likewise
};
struct PlaceError {
  std::string message;  // one line
};

// Relative names are taken from the current directory. MOUNTPOINT may be SOURCE, inside it or
// around it.
[[nodiscard]] std::variant<Places, PlaceError> open_places(const std::string& source,
                                                           const std::string& mountpoint);

}  // namespace latchfs::daemon
