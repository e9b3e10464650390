// The text after '?' in `list?…`, `waiters?…` and `filelock?…`, and the names of files in requests.
//
// Grammar: key=value joined by '&', both URL-encoded; each key at most once; no empty pair. An
// empty text asks for everything. Whatever is not exactly that is Malformed, never guessed at.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "control/text.h"
#include "latchfs/lock_service.h"
#include "latchfs/types.h"

namespace latchfs::control {

// A file as a user names it: an absolute path ("/" is the mount's root, or the mount point in
// front), or the file_id of a listing: the inode number in decimal, "DEV:INODE" (decimal st_dev)
// for a file that is not on the device of the mount's root.
struct FileRef {
  std::string path;                  // "" if given by number
  std::optional<std::uint64_t> dev;  // none: the root's
  std::uint64_t ino{};
  bool operator==(const FileRef&) const = default;
};
[[nodiscard]] std::variant<FileRef, Malformed> parse_ref(std::string_view text);
[[nodiscard]] std::string to_string(const FileRef& ref);

// The name of a grant's mode in the seed: API_BYTE_RANGE_…
[[nodiscard]] std::string_view api_mode(LockKind kind, LockMode mode);
// "posix", "ofd", "flock"; "" where the edge could not tell and for operations in flight.
[[nodiscard]] std::string_view kind_name(LockKind kind);

enum class ListKind : std::uint8_t { kGrants, kWaiters, kFilelocks };

struct Query {
  std::optional<FileRef> ref;
  ListCursor after;                     // grants and waiters
  std::string after_path;               // filelocks; "": from the start
  std::optional<std::uint64_t> limit;   // at least 1
  std::optional<std::string> snapshot;  // "" is the head: files of no snapshot
  std::optional<OwnerId> owner_id;
  std::optional<std::string> owner_name;
  std::optional<std::string> owner_address;
  std::optional<std::uint32_t> pid;
  std::optional<std::uint32_t> uid;
  std::optional<std::string> mode;  // an api_mode() name
  std::optional<std::string> user;  // filelocks: the name of a uid
};
// Filelocks take ref, after, limit, uid and user; the others all but user.
[[nodiscard]] std::variant<Query, Malformed> parse_query(std::string_view text,
                                                         ListKind kind = ListKind::kGrants);
// One spelling for all texts that ask the same; parse_query gives the same Query for it.
[[nodiscard]] std::string canonical(const Query& query);

// The decoded pairs of a query text, in order; no key twice. `known` holds the allowed keys.
using Pairs = std::vector<std::pair<std::string, std::string>>;
[[nodiscard]] std::variant<Pairs, Malformed> split_pairs(
    std::string_view text, const std::vector<std::string_view>& known);

}  // namespace latchfs::control
