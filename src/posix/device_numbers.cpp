#include "posix/device_numbers.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <climits>
#include <utility>

#include "base/log.h"

namespace latchfs::posix {
namespace {

constexpr std::size_t kMostBytes = 1 << 20;  // 510 lines of 255 bytes in hexadecimal are less

// FNV-1a: the same in every version.
std::uint64_t hash64(std::string_view text) {
  std::uint64_t h = 0xcbf29ce484222325ULL;
  for (const char ch : text) h = (h ^ static_cast<unsigned char>(ch)) * 0x100000001b3ULL;
  return h;
}

template <class Number>
bool take(std::string_view& text, Number& value) {
  const auto [rest, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const auto length = static_cast<std::size_t>(rest - text.data());
  if (error != std::errc{} || length == text.size() || text[length] != ' ') return false;
  text.remove_prefix(length + 1);
  return true;
}

std::optional<std::string> from_hex(std::string_view hex) {
  if (hex.empty() || hex.size() % 2 != 0 || hex.size() > 2 * NAME_MAX) return std::nullopt;
  if (hex.find_first_not_of("0123456789abcdef") != std::string_view::npos) return std::nullopt;
  std::string text;
  for (std::size_t i = 0; i < hex.size(); i += 2) {
    unsigned byte = 0;
    std::from_chars(hex.data() + i, hex.data() + i + 2, byte, 16);
    text += static_cast<char>(byte);
  }
  const bool is_name = text != "." && text != ".." &&
                       text.find_first_of(std::string_view{"/\0", 2}) == std::string::npos;
  return is_name ? std::optional{text} : std::nullopt;
}

std::string to_line(unsigned number, const DeviceNumbers::Way& way) {
  std::string line = fmt::format("{} {} ", number, way.parent);
  for (const char ch : way.name) line += fmt::format("{:02x}", static_cast<unsigned char>(ch));
  return line + '\n';
}

bool write_all(int fd, std::string_view text) {
  while (!text.empty()) {
    const auto n = ::write(fd, text.data(), text.size());
    if (n <= 0) return false;
    text.remove_prefix(static_cast<std::size_t>(n));
  }
  return true;
}

}  // namespace

DeviceNumbers::DeviceNumbers(std::string directory, std::string_view source, unsigned most)
    : directory_{std::move(directory)},
      name_{fmt::format("devices-{:016x}", hash64(source))},
      most_{most} {}

UniqueFd DeviceNumbers::open(bool make) {
  if (directory_.empty()) return {};
  if (make) ::mkdir(directory_.c_str(), S_IRWXU);
  const UniqueFd dir{::open(directory_.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)};
  struct stat st {};
  if (!dir || ::fstat(dir.get(), &st) != 0) return {};
  constexpr mode_t kOthers = S_IWGRP | S_IWOTH;
  if (st.st_uid != ::geteuid() || (st.st_mode & kOthers) != 0) return {};
  UniqueFd fd{::openat(dir.get(), name_.c_str(),
                       O_RDWR | O_APPEND | O_NOFOLLOW | O_CLOEXEC | (make ? O_CREAT : 0),
                       S_IRUSR | S_IWUSR)};
  if (!fd || ::flock(fd.get(), LOCK_EX) != 0) return {};
  return fd;
}

std::vector<DeviceNumbers::Line> DeviceNumbers::read(int fd) const {
  std::string text(kMostBytes, '\0');
  const auto n = ::pread(fd, text.data(), text.size(), 0);
  text.resize(n > 0 ? static_cast<std::size_t>(n) : 0);
  std::vector<Line> lines;
  std::string_view rest = text;
  while (!rest.empty()) {
    const auto end = std::min(rest.find('\n'), rest.size());
    std::string_view line = rest.substr(0, end);
    rest.remove_prefix(std::min(end + 1, rest.size()));
    Line found;
    if (!take(line, found.number) || !take(line, found.way.parent)) continue;
    auto name = from_hex(line);
    if (!name || found.number == 0 || found.number >= most_ || found.way.parent == 0) continue;
    found.way.name = *std::move(name);
    std::erase_if(lines, [&found](const Line& old) { return old.number == found.number; });
    lines.push_back(std::move(found));
  }
  return lines;
}

void DeviceNumbers::remember(int fd, std::vector<Line> lines, const Line& fresh) const {
  const bool replaces = std::any_of(lines.begin(), lines.end(), [&fresh](const Line& line) {
    return line.number == fresh.number;
  });
  std::string text;
  if (replaces) {
    std::erase_if(lines, [&fresh](const Line& line) { return line.number == fresh.number; });
    for (const Line& line : lines) text += to_line(line.number, line.way);
    // A death in between forgets: handles below nested file systems become stale.
    if (::ftruncate(fd, 0) != 0) return;
  } else {
    text = "\n";  // ends what a death left of a line
  }
  text += to_line(fresh.number, fresh.way);
  if (!write_all(fd, text) || ::fdatasync(fd) != 0) {
    log::warn(
        "the number of the file system at '{}' cannot be kept ({}): after a restart NFS "
        "clients' handles below it are stale",
        log::printable(fresh.way.name), last_errno().message());
  }
}

Result<unsigned> DeviceNumbers::number_of(const Way& way,
                                          const std::function<bool(unsigned)>& free) {
  const UniqueFd fd = open(way.parent != 0);
  const std::vector<Line> lines = fd ? read(fd.get()) : std::vector<Line>{};
  // The last one that was there: those before it were other file systems' then.
  const auto last = std::find_if(lines.rbegin(), lines.rend(), [&](const Line& line) {
    return way.parent != 0 && line.way == way;
  });
  if (last != lines.rend() && free(last->number)) return last->number;
  const auto taken = [&](unsigned number) {
    return !free(number) || std::any_of(lines.begin(), lines.end(), [number](const Line& line) {
      return line.number == number;
    });
  };
  unsigned number = 1;
  while (number < most_ && taken(number)) ++number;
  if (number == most_) {
    const auto oldest = std::find_if(lines.begin(), lines.end(),
                                     [&free](const Line& line) { return free(line.number); });
    if (oldest == lines.end()) return errno_code(ENFILE);
    number = oldest->number;
  }
  if (fd && way.parent != 0) remember(fd.get(), lines, {number, way});
  return number;
}

std::optional<DeviceNumbers::Way> DeviceNumbers::way_of(unsigned number) {
  const UniqueFd fd = open(false);
  if (!fd) return std::nullopt;
  for (const Line& line : read(fd.get())) {
    if (line.number == number) return line.way;
  }
  return std::nullopt;
}

}  // namespace latchfs::posix
