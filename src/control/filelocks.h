// What the control tree must know about filelocks. Implemented above (fuse/), faked in tests.
//
// Thread-safe. Paths are absolute, "/" being the mount's root; they are walked as the caller, no
// symlink followed anywhere.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/caller.h"
#include "latchfs/result.h"
#include "latchfs/types.h"

namespace latchfs::control {

// In the order in which they were given, no key twice.
using Tags = std::vector<std::pair<std::string, std::string>>;

// Why a path's request was not done. err: ENOENT 404, EACCES and EPERM 403, EBUSY 409, EINVAL,
// ELOOP, ENOTDIR, EISDIR, ENAMETOOLONG 400, ENOSPC and EDQUOT 507, EOPNOTSUPP 501, others 500.
// words: for the user; "": those of the errno.
struct FilelockFailure {
  int err{};
  std::string words;
};

// A filelock in force.
struct FilelockEntry {
  std::string path;  // below the mount's root
  FileId file;
  std::string user;  // "" if the uid has no name
  std::uint32_t uid{};
  std::int64_t locked_at_ns{};  // CLOCK_REALTIME
  Tags tags;
  std::string state;  // "locked"; "damaged": what .asp-lck says cannot be read; "orphaned": the
                      // file is gone or another one
};

class Filelocks {
 public:
  virtual ~Filelocks() = default;

  // Nothing if done. tags: those of the request; none were given: an existing lock of the caller
  // keeps its own. `admin`: the caller is one (Context asks for it once a request).
  virtual std::optional<FilelockFailure> apply(std::string_view path,
                                               const std::optional<Tags>& tags,
                                               const Caller& caller, bool admin) = 0;
  virtual std::optional<FilelockFailure> remove(std::string_view path, bool revert,
                                                const Caller& caller, bool admin) = 0;

  struct Page {
    std::vector<FilelockEntry> entries;  // in the order of paths
    std::string next;                    // after which path it goes on; "": that was all
  };
  // Those below the mount whose path comes after `after` ("": from the start), at most `limit` and
  // possibly fewer, also none: a page ends after some ten thousand names looked at.
  [[nodiscard]] virtual Result<Page> list(std::string_view after, std::uint32_t limit) = 0;
  // That of one file, if it has one.
  [[nodiscard]] virtual Result<std::optional<FilelockEntry>> find(std::string_view path,
                                                                  const Caller& caller) = 0;
  // Another number after each filelock that was applied or removed by any mount of the table.
  [[nodiscard]] virtual std::uint64_t changes() const noexcept = 0;
};

}  // namespace latchfs::control
