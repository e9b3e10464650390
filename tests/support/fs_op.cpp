#include "support/fs_op.h"

#include <sys/stat.h>

#include <array>
#include <charconv>
#include <cstring>

namespace latchfs::fsdiff {
namespace {

constexpr std::array kNames = {
    "open",     "close",       "dup",       "setfl",       "getfl",    "chdir",    "fchdir",
    "umask",    "filesize",    "read",      "pread",       "readv",    "write",    "pwrite",
    "writev",   "seek",        "truncate",  "ftruncate",   "allocate", "advise",   "copyrange",
    "sendfile", "splice",      "fsync",     "map",         "mappeek",  "mappoke",  "unmap",
    "mkdir",    "rmdir",       "mknod",     "symlink",     "readlink", "link",     "linkfd",
    "unlink",   "rename",      "readdir",   "list",        "stat",     "fstat",    "statfs",
    "access",   "chmod",       "fchmod",    "chown",       "fchown",   "utimens",  "futimens",
    "setxattr", "getxattr",    "listxattr", "removexattr", "setacl",   "getflags", "setflags",
    "ioctl",    "makeprogram", "exec",      "spawn",       "reap"};
static_assert(kNames.size() == static_cast<std::size_t>(Call::kReap) + 1);

bool plain(unsigned char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
         std::strchr("_./@:-", c) != nullptr;
}

// Minimal ELF64 image: header, one loadable segment, code. x86-64 and aarch64.
std::string elf(std::string_view code) {
#if defined(__x86_64__)
  constexpr std::uint16_t machine = 62;
#else
  constexpr std::uint16_t machine = 183;
#endif
  constexpr std::uint64_t base = 0x400000;
  constexpr std::uint64_t head = 64 + 56;
  std::string out;
  auto put = [&out](auto value) {
    out.append(reinterpret_cast<const char*>(&value), sizeof value);
  };
  out.append(
      "\x7f"
      "ELF\x02\x01\x01",
      7);
  out.append(9, '\0');
  put(std::uint16_t{2});  // ET_EXEC
  put(machine);
  put(std::uint32_t{1});
  put(base + head);        // entry
  put(std::uint64_t{64});  // program headers
  put(std::uint64_t{0});
  put(std::uint32_t{0});
  put(std::uint16_t{64});
  put(std::uint16_t{56});
  put(std::uint16_t{1});
  put(std::uint16_t{64});
  put(std::uint16_t{0});
  put(std::uint16_t{0});
  put(std::uint32_t{1});  // PT_LOAD
  put(std::uint32_t{5});  // R+X
  put(std::uint64_t{0});
  put(base);
  put(base);
  put(std::uint64_t{head + code.size()});
  put(std::uint64_t{head + code.size()});
  put(std::uint64_t{0x1000});
  out.append(code);
  return out;
}

std::string exit_with_euid() {
#if defined(__x86_64__)
  // mov eax,107 (geteuid); syscall; mov edi,eax; and edi,0x7f; mov eax,60 (exit); syscall
  return elf(
      std::string_view("\xb8\x6b\0\0\0\x0f\x05\x89\xc7\x83\xe7\x7f\xb8\x3c\0\0\0\x0f\x05", 19));
#else
  // mov x8,175; svc 0; and x0,x0,0x7f; mov x8,93; svc 0
  return elf(std::string_view(
      "\xe8\x15\x80\xd2\x01\0\0\xd4\0\x18\x40\x92\xa8\x0b\x80\xd2\x01\0\0\xd4", 20));
#endif
}

std::string sleep_for_ever() {
#if defined(__x86_64__)
  // 1: mov eax,34 (pause); syscall; jmp 1b
  return elf(std::string_view("\xb8\x22\0\0\0\x0f\x05\xeb\xf7", 9));
#else
  // 1: mov x0,0; mov x1,0; mov x2,0; mov x3,0; mov x8,73 (ppoll); svc 0; b 1b
  return elf(
      std::string_view("\0\0\x80\xd2\x01\0\x80\xd2\x02\0\x80\xd2\x03\0\x80\xd2"
                       "\x28\x09\x80\xd2\x01\0\0\xd4\xfa\xff\xff\x17",
                       28));
#endif
}

}  // namespace

std::string_view name_of(Call call) { return kNames.at(static_cast<std::size_t>(call)); }

std::string escape(std::string_view raw) {
  std::string out;
  for (unsigned char c : raw) {
    if (plain(c)) {
      out += static_cast<char>(c);
    } else {
      constexpr const char* digits = "0123456789abcdef";
      out += '%';
      out += digits[c >> 4];
      out += digits[c & 15];
    }
  }
  return out;
}

std::string unescape(std::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '%' || i + 2 >= text.size()) {
      out += text[i];
      continue;
    }
    unsigned value = 0;
    std::from_chars(text.data() + i + 1, text.data() + i + 3, value, 16);
    out += static_cast<char>(value);
    i += 2;
  }
  return out;
}

std::string print(const Op& op) {
  std::string out{name_of(op.call)};
  auto number = [&out](const char* key, std::int64_t value, std::int64_t usual) {
    if (value != usual) out += ' ' + std::string{key} + '=' + std::to_string(value);
  };
  auto text = [&out](const char* key, const std::string& value) {
    if (!value.empty()) out += ' ' + std::string{key} + '=' + escape(value);
  };
  number("actor", op.actor, -1);
  number("mount", op.mount, 0);
  number("fd", op.fd, -1);
  number("fd2", op.fd2, -1);
  number("dir", op.dir, kMountRoot);
  text("path", op.path);
  number("dir2", op.dir2, kMountRoot);
  text("path2", op.path2);
  text("text", op.text);
  number("a", op.a, 0);
  number("b", op.b, 0);
  number("c", op.c, 0);
  number("d", op.d, 0);
  return out;
}

std::optional<Op> parse(std::string_view line) {
  auto word = [&line]() {
    std::size_t end = line.find(' ');
    std::string_view got = line.substr(0, end);
    line = end == std::string_view::npos ? std::string_view{} : line.substr(end + 1);
    return got;
  };
  Op op;
  std::string_view call = word();
  std::size_t index = 0;
  while (index < kNames.size() && call != kNames.at(index)) ++index;
  if (index == kNames.size()) return std::nullopt;
  op.call = static_cast<Call>(index);
  while (!line.empty()) {
    std::string_view pair = word();
    std::size_t eq = pair.find('=');
    if (eq == std::string_view::npos) return std::nullopt;
    std::string_view key = pair.substr(0, eq);
    std::string_view value = pair.substr(eq + 1);
    std::int64_t number = 0;
    std::from_chars(value.data(), value.data() + value.size(), number);
    if (key == "path")
      op.path = unescape(value);
    else if (key == "path2")
      op.path2 = unescape(value);
    else if (key == "text")
      op.text = unescape(value);
    else if (key == "actor")
      op.actor = static_cast<int>(number);
    else if (key == "mount")
      op.mount = static_cast<int>(number);
    else if (key == "fd")
      op.fd = static_cast<int>(number);
    else if (key == "fd2")
      op.fd2 = static_cast<int>(number);
    else if (key == "dir")
      op.dir = static_cast<int>(number);
    else if (key == "dir2")
      op.dir2 = static_cast<int>(number);
    else if (key == "a")
      op.a = number;
    else if (key == "b")
      op.b = number;
    else if (key == "c")
      op.c = number;
    else if (key == "d")
      op.d = number;
    else
      return std::nullopt;
  }
  return op;
}

std::string pattern(std::int64_t seed, std::size_t size) {
  // Printable on purpose: a stray byte in a program of ours can never be a system call.
  std::string out(size, '\0');
  std::uint64_t x = static_cast<std::uint64_t>(seed) * 0x9e3779b97f4a7c15u + 1;
  for (std::size_t i = 0; i < size; ++i) {
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    out[i] = static_cast<char>('!' + (x >> 32) % 90);
  }
  return out;
}

std::pair<std::int64_t, std::int64_t> time_choice(std::int64_t index) {
  switch (index) {
    case 0:
      return {0, UTIME_NOW};
    case 1:
      return {0, UTIME_OMIT};
    case 2:
      return {0, 1'000'000'000};  // EINVAL
    case 3:
      return {0, 0};
    case 4:
      return {1, 999'999'999};
    case 5:
      return {-1, 500'000'000};
    case 6:
      return {946'684'800, 123'456'789};
    case 7:
      return {2'147'483'648, 1};  // beyond 32 bits
    case 8:
      return {15'032'385'535, 7};  // the last second ext4 can store
    default:
      return {99'999'999'999, 1'000};  // clamped by ext4
  }
}

std::string acl_value(std::int64_t seed) {
  struct Entry {
    std::uint16_t tag, perm;
    std::uint32_t id;
  };
  const auto s = static_cast<std::uint64_t>(seed);
  auto bits = [s](unsigned shift) { return static_cast<std::uint16_t>((s >> shift) & 7); };
  std::vector<Entry> entries;
  entries.push_back({0x01, bits(0), ~0u});
  if (s & (1u << 9)) entries.push_back({0x02, bits(10), 61001});
  if (s & (1u << 13)) entries.push_back({0x02, bits(14), 61003});
  entries.push_back({0x04, bits(3), ~0u});
  if (s & (1u << 17)) entries.push_back({0x08, bits(18), 61010});
  const bool named = entries.size() > 2;
  if (named) entries.push_back({0x10, bits(21), ~0u});
  entries.push_back({0x20, bits(6), ~0u});
  const auto flaw = (s >> 24) & 31;
  if (flaw == 1) entries.pop_back();
  if (flaw == 2) entries.front().tag = 0x40;
  if (flaw == 3) entries.front().perm = 9;
  std::uint32_t version = flaw == 4 ? 1 : 2;
  if (flaw == 5) entries.clear();  // removes the ACL
  std::string out(reinterpret_cast<const char*>(&version), sizeof version);
  for (const Entry& e : entries) out.append(reinterpret_cast<const char*>(&e), sizeof e);
  if (flaw == 6) out.pop_back();
  return out;
}

const std::string& program(std::int64_t which) {
  static const std::string euid = exit_with_euid();
  static const std::string sleeper = sleep_for_ever();
  return which == 0 ? euid : sleeper;
}

}  // namespace latchfs::fsdiff
