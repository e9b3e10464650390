#include "posix/mountinfo.h"

#include <sys/sysmacros.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <fstream>
#include <optional>

namespace latchfs::posix {
namespace {

// mountinfo writes space, tab, newline and backslash as \ooo.
std::string unescaped(std::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto digit = [&text](std::size_t at) { return at < text.size() ? text[at] - '0' : 8; };
    if (text[i] == '\\' && digit(i + 1) < 4 && digit(i + 2) < 8 && digit(i + 3) < 8) {
      out += static_cast<char>(digit(i + 1) * 64 + digit(i + 2) * 8 + digit(i + 3));
      i += 3;
    } else {
      out += text[i];
    }
  }
  return out;
}

std::optional<unsigned> number_in(std::string_view text) {
  unsigned number = 0;
  const char* const end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, number);
  if (error != std::errc{} || rest != end) return std::nullopt;
  return number;
}

}  // namespace

std::string without_end_slash(std::string path) {
  if (path == "/") path.clear();
  return path;
}

// "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw" (proc(5))
MountPoint parse_mount(std::string_view line) {
  MountPoint mount;
  std::size_t begin = 0;
  std::size_t field = 0;
  std::size_t type_field = SIZE_MAX;
  while (begin <= line.size()) {
    const auto end = std::min(line.find(' ', begin), line.size());
    const std::string_view word = line.substr(begin, end - begin);
    begin = end + 1;
    if (field == 0) mount.id = std::strtoull(std::string{word}.c_str(), nullptr, 10);
    if (field == 2) mount.device = word;
    if (field == 3) mount.root = without_end_slash(unescaped(word));
    if (field == 4) mount.point = without_end_slash(unescaped(word));
    if (field == type_field) mount.fuse = word.substr(0, 4) == "fuse";
    if (field > 5 && word == "-" && type_field == SIZE_MAX) type_field = field + 1;
    ++field;
  }
  return mount;
}

dev_t super_block_at(std::string_view mountpoint) {
  if (mountpoint.empty()) return 0;
  const std::string wanted = without_end_slash(std::string{mountpoint});
  dev_t found = 0;
  std::ifstream mounts{"/proc/self/mountinfo"};
  for (std::string line; std::getline(mounts, line);) {
    const MountPoint mount = parse_mount(line);
    if (mount.device.empty() || mount.point != wanted) continue;
    const std::string_view device = mount.device;
    const auto colon = device.find(':');
    if (colon == std::string_view::npos) continue;
    const auto major_number = number_in(device.substr(0, colon));
    const auto minor_number = number_in(device.substr(colon + 1));
    if (major_number && minor_number) found = makedev(*major_number, *minor_number);
  }
  return found;
}

}  // namespace latchfs::posix
