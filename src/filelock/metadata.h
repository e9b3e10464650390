// What .NAME.asp-lck says: for people, and for listings. Nothing is decided by it but whether a
// revert was under way.
#pragma once

#include <sys/stat.h>

#include <cstdint>
#include <string>
#include <string_view>

#include "filelock/mark.h"
#include "filelock/outcome.h"

namespace latchfs::filelock {

enum class LockState : std::uint8_t { kLocked, kReverting };

// The file as it was when it was locked.
struct FileFacts {
  std::uint64_t dev{};
  std::uint64_t ino{};
  std::int64_t size{};
  mode_t mode{};
  uid_t uid{};
  gid_t gid{};
  struct timespec atime {};
  struct timespec mtime {};
};
[[nodiscard]] FileFacts facts_of(const struct stat& st);

struct Metadata {
  LockId id;
  LockState state{};
  std::string name;  // bytes that are no UTF-8 are replaced when it is written, here and below
  std::string path;  // as the user gave it
  std::string user;
  uid_t uid{};
  std::string locked_at;   // "…Z"
  std::string tags{"{}"};  // a JSON object, as text
  FileFacts file;
};

inline constexpr std::size_t kMostMetadata = std::size_t{1} << 20;

// EINVAL, with words, if tags is no JSON object; EMSGSIZE if the whole would be over 1 MiB.
[[nodiscard]] Outcome<std::string> metadata_text(const Metadata& metadata);
// EBADMSG, with words, for anything that is not of the version and shape above. Members that are
// not known are no harm.
[[nodiscard]] Outcome<Metadata> parse_metadata(std::string_view text);

// The metadata of the file called `name` in the directory, if it is a regular file of this daemon's
// user, at most 1 MiB, and marked as a side file of `id`, which is what the text says too. ENOENT
// if there is none, EBUSY if something else has the name, EBADMSG if it is damaged.
[[nodiscard]] Outcome<Metadata> read_metadata(int dir, std::string_view name, const LockId& id);

}  // namespace latchfs::filelock
