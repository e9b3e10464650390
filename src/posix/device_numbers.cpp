#include "posix/device_numbers.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <climits>
#include <optional>
#include <utility>

#include "base/log.h"
#include "base/write_all.h"
#include "posix/file_handle.h"
#include "posix/sys.h"

namespace latchfs::posix {
namespace {

// 510 lines of 255 bytes in hexadecimal are less than half of it.
constexpr std::size_t kMostBytes = 1 << 20;

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

}  // namespace

DeviceNumbers::DeviceNumbers(std::string directory, std::string_view source, unsigned most)
    : directory_{std::move(directory)},
      name_{fmt::format("devices-{:016x}", hash64(source.data(), source.size()))},
      most_{most} {}

Result<DeviceNumbers::File> DeviceNumbers::open(bool make) {
  const auto none = [] {
    return is_for_now(last_errno()) ? Result<File>{last_errno()} : Result<File>{File{}};
  };
  if (directory_.empty()) return File{};
  if (make) ::mkdir(directory_.c_str(), S_IRWXU);
  File file;
  file.dir.reset(::open(directory_.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  struct stat st {};
  if (!file.dir || ::fstat(file.dir.get(), &st) != 0) return none();
  constexpr mode_t kOthers = S_IWGRP | S_IWOTH;
  if (st.st_uid != ::geteuid() || (st.st_mode & kOthers) != 0) return File{};
  const int flags = O_RDWR | O_APPEND | O_NOFOLLOW | O_CLOEXEC | (make ? O_CREAT : 0);
  do {  // until it is the one of that name: others may have written it anew
    file.fd.reset(::openat(file.dir.get(), name_.c_str(), flags, S_IRUSR | S_IWUSR));
    if (!file.fd || ::flock(file.fd.get(), LOCK_EX) != 0 || ::fstat(file.fd.get(), &st) != 0) {
      return none();
    }
  } while (st.st_nlink == 0);
  return file;
}

std::vector<DeviceNumbers::Line> DeviceNumbers::read(int fd) const {
  struct stat st {};
  if (::fstat(fd, &st) != 0) return {};
  std::string text(std::min<std::size_t>(kMostBytes, static_cast<std::size_t>(st.st_size)), '\0');
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
    lines.push_back(std::move(found));
  }
  // Of each number the last.
  std::vector<bool> seen(most_);
  std::vector<Line> last;
  for (auto line = lines.rbegin(); line != lines.rend(); ++line) {
    if (seen[line->number]) continue;
    seen[line->number] = true;
    last.push_back(std::move(*line));
  }
  std::reverse(last.begin(), last.end());
  return last;
}

void DeviceNumbers::remember(const File& file, std::vector<Line> lines, const Line& fresh) const {
  struct stat st {};
  bool done = ::fstat(file.fd.get(), &st) == 0;
  if (done && static_cast<std::size_t>(st.st_size) < kMostBytes / 2) {
    // (The first byte ends what a death left of a line.)
    done = write_all(file.fd.get(), '\n' + to_line(fresh.number, fresh.way)) &&
           ::fdatasync(file.fd.get()) == 0;
  } else if (done) {
    std::erase_if(lines, [&fresh](const Line& line) { return line.number == fresh.number; });
    lines.push_back(fresh);
    std::string text;
    for (const Line& line : lines) text += to_line(line.number, line.way);
    const std::string beside = fmt::format("{}.new", name_);
    const UniqueFd anew{::openat(file.dir.get(), beside.c_str(),
                                 O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC,
                                 S_IRUSR | S_IWUSR)};
    done = anew && write_all(anew.get(), text) && ::fdatasync(anew.get()) == 0 &&
           ::renameat(file.dir.get(), beside.c_str(), file.dir.get(), name_.c_str()) == 0;
  }
  if (!done) {
    log::warn(
        "the number of the file system at '{}' cannot be kept ({}): after a restart NFS "
        "clients' handles below it are stale",
        log::printable(fresh.way.name), last_errno().message());
  }
}

Result<unsigned> DeviceNumbers::number_of(const Way& way,
                                          const std::function<bool(unsigned)>& free) {
  const auto file = open(way.parent != 0);
  // (As if there were none, it would get another file system's number, or lose its own.)
  if (!file) return file.error();
  const std::vector<Line> lines = file->fd ? read(file->fd.get()) : std::vector<Line>{};
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
    if (oldest == lines.end()) return errno_code(EOVERFLOW);
    number = oldest->number;
  }
  if (file->fd && way.parent != 0) remember(*file, lines, {number, way});
  return number;
}

Result<DeviceNumbers::Way> DeviceNumbers::way_of(unsigned number) {
  const auto file = open(false);
  if (!file) return file.error();
  for (Line& line : file->fd ? read(file->fd.get()) : std::vector<Line>{}) {
    if (line.number == number) return std::move(line.way);
  }
  return errno_code(ESTALE);
}

}  // namespace latchfs::posix
