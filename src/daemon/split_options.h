// mount(8)'s "-o a,b=c,..." lists.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace latchfs::daemon {

// The items of a comma-separated list, unescaped as libfuse does (fuse_opt.h): '\,' is a comma,
// '\\' a backslash, '\NNN' (three octal digits, at most 377) a byte, '\c' any other character c.
// mount(8) and mount.fuse3 write lists that way. Empty items are kept. Nothing if the list ends
// within an escape.
[[nodiscard]] std::optional<std::vector<std::string>> split_options(std::string_view list);

// One item as it must be written into such a list.
[[nodiscard]] std::string escape_option(std::string_view item);

}  // namespace latchfs::daemon
