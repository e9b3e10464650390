#include "daemon/split_options.h"

namespace latchfs::daemon {
namespace {

bool is_octal(char ch) { return ch >= '0' && ch <= '7'; }

}  // namespace

std::optional<std::vector<std::string>> split_options(std::string_view list) {
  std::vector<std::string> items(1);
  for (std::size_t i = 0; i < list.size(); ++i) {
    if (list[i] == ',') {
      items.emplace_back();
    } else if (list[i] != '\\') {
      items.back() += list[i];
    } else if (i + 3 < list.size() && list[i + 1] >= '0' && list[i + 1] <= '3' &&
               is_octal(list[i + 2]) && is_octal(list[i + 3])) {
      const int byte = (list[i + 1] - '0') * 64 + (list[i + 2] - '0') * 8 + (list[i + 3] - '0');
      items.back() += static_cast<char>(byte);
      i += 3;
    } else if (i + 1 < list.size()) {
      items.back() += list[++i];
    } else {
      return std::nullopt;
    }
  }
  return items;
}

std::string escape_option(std::string_view item) {
  std::string out;
  out.reserve(item.size());
  for (const char ch : item) {
    if (ch == ',' || ch == '\\') out += '\\';
    out += ch;
  }
  return out;
}

}  // namespace latchfs::daemon
