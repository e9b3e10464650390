#include "daemon/places.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstdlib>
#include <memory>
#include <system_error>

#include "base/log.h"

namespace latchfs::daemon {
namespace {

PlaceError refuse(const char* what, const std::string& path, int err) {
  std::string why = std::generic_category().message(err);
  // What a dead daemon leaves behind (umount(8) clears it).
  if (err == ENOTCONN) why = "a mount without a daemon is there, end it with umount";
  return {fmt::format("{} '{}': {}", what, log::printable(path), why)};
}

// The absolute path, or "" with errno set.
std::string resolve(const std::string& path) {
  const std::unique_ptr<char, decltype(&std::free)> real{::realpath(path.c_str(), nullptr),
                                                         &std::free};
  return real ? std::string{real.get()} : std::string{};
}

}  // namespace

std::variant<Places, PlaceError> open_places(const std::string& source,
                                             const std::string& mountpoint) {
  Places out;
  out.source_path = resolve(source);
  if (out.source_path.empty()) return refuse("SOURCE", source, errno);
  out.source = UniqueFd{::open(out.source_path.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC)};
  if (!out.source) return refuse("SOURCE", source, errno);

  out.mountpoint = resolve(mountpoint);
  if (out.mountpoint.empty()) return refuse("MOUNTPOINT", mountpoint, errno);
  struct stat st {};
  if (::stat(out.mountpoint.c_str(), &st) != 0) return refuse("MOUNTPOINT", mountpoint, errno);
  if (!S_ISDIR(st.st_mode)) return refuse("MOUNTPOINT", mountpoint, ENOTDIR);
  return out;
}

}  // namespace latchfs::daemon
