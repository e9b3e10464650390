// What may be written to `filelock` and `unfilelock`:
//
//   {"paths": [{"path": "/a", "tags": {"ticket": "42"}}, …]}
//   {"paths": [{"path": "/a", "revert": true}, …]}
//
// `path` alone is required; `tags` is for filelock, `revert` for unfilelock. Nothing else, nothing
// twice in one object. Or, for people, one path a line: each begins with '/' and goes to the
// newline, whatever it holds; blank lines do not count. A path may come twice: it is done twice.
#pragma once

#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "control/filelocks.h"
#include "control/intake.h"
#include "control/text.h"

namespace latchfs::control {

enum class FilelockAct : std::uint8_t { kApply, kRemove };

struct FilelockItem {
  std::string path;  // absolute, as written
  std::optional<Tags> tags;
  bool revert{};
};

constexpr std::size_t kMaxTags = 64;  // of a path
constexpr std::size_t kMaxTagKey = 255;
constexpr std::size_t kMaxTagValue = 4096;

// At least one item. Malformed: in words, with the place ("paths[3].tags.x is a number, not a
// string").
[[nodiscard]] std::variant<std::vector<FilelockItem>, Malformed> parse_filelock(
    FilelockAct act, const Intake::Request& request);

}  // namespace latchfs::control
