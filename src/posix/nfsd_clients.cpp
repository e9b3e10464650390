#include "posix/nfsd_clients.h"

#include <sys/sysmacros.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <optional>

#include "base/clock.h"
#include "posix/caller_status.h"

namespace latchfs::posix {
namespace {

constexpr std::int64_t kFreshNs = 1'000'000'000;

// The text behind `key` up to the quote that ends it: `key: "text"`.
std::optional<std::string_view> quoted(std::string_view line, std::string_view key) {
  const auto at = line.find(key);
  if (at == std::string_view::npos) return std::nullopt;
  line.remove_prefix(at + key.size());
  const auto end = line.find('"');
  if (end == std::string_view::npos) return std::nullopt;
  return line.substr(0, end);
}

template <class Number>
bool take(std::string_view& text, int base, char end, Number& value) {
  const auto [rest, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  if (error != std::errc{}) return false;
  text.remove_prefix(static_cast<std::size_t>(rest - text.data()));
  if (end == '\0') return text.empty();
  if (text.empty() || text.front() != end) return false;
  text.remove_prefix(1);
  return true;
}

// "fd:10:13649": device in hexadecimal, inode number in decimal, signed as a long.
std::optional<std::pair<dev_t, std::uint64_t>> parse_inode(std::string_view text) {
  unsigned major_number = 0;
  unsigned minor_number = 0;
  std::int64_t ino = 0;
  if (!take(text, 16, ':', major_number) || !take(text, 16, ':', minor_number) ||
      !take(text, 10, '\0', ino)) {
    return std::nullopt;
  }
  return std::pair{makedev(major_number, minor_number), static_cast<std::uint64_t>(ino)};
}

RemoteClient read_info(const std::filesystem::path& file) {
  RemoteClient client;
  std::ifstream info{file};
  for (std::string line; std::getline(info, line);) {
    if (line.rfind("address: ", 0) == 0) {
      if (const auto text = quoted(line, "address: \"")) {
        client.address = NfsdClients::address_of(*text);
      }
    } else if (line.rfind("name: ", 0) == 0) {
      if (const auto text = quoted(line, "name: \"")) {
        client.name = NfsdClients::machine_of(*text);
      }
    }
  }
  return client;
}

}  // namespace

bool NfsdClients::is_server_thread(std::uint32_t pid, std::string_view comm) {
  return comm == kServerThread && kernel_thread_name(static_cast<pid_t>(pid)).has_value();
}

bool NfsdClients::is_server_thread(pid_t pid) { return kernel_thread_name(pid) == kServerThread; }

std::string NfsdClients::address_of(std::string_view text) {
  const auto colon = text.rfind(':');
  if (colon == std::string_view::npos) return "";
  const auto port = text.substr(colon + 1);
  if (port.empty() || port.find_first_not_of("0123456789") != std::string_view::npos) return "";
  auto host = text.substr(0, colon);
  if (!host.empty() && host.front() == '[') {
    if (host.size() < 3 || host.back() != ']') return "";
    host = host.substr(1, host.size() - 2);
  } else if (host.find(':') != std::string_view::npos) {
    return "";
  }
  return std::string{host};
}

std::string NfsdClients::machine_of(std::string_view text) {
  constexpr std::string_view kLinux = "Linux NFSv4.";
  const auto space = text.find(' ', kLinux.size());
  if (text.substr(0, kLinux.size()) != kLinux || space == std::string_view::npos) {
    return std::string{text};
  }
  const bool minor_zero = text.substr(kLinux.size(), space - kLinux.size()) == "0";
  const auto rest = text.substr(space + 1);
  // 4.0: "node/server", or "node/id/server"; later: "node", or "id/node".
  const auto slash = minor_zero ? rest.find('/') : rest.rfind('/');
  if (slash == std::string_view::npos) return std::string{rest};
  return std::string{minor_zero ? rest.substr(0, slash) : rest.substr(slash + 1)};
}

std::shared_ptr<const NfsdClients::Snapshot> NfsdClients::read() const {
  auto snapshot = std::make_shared<Snapshot>();
  snapshot->read_at_ns = realtime_ns();
  std::error_code none;
  for (const auto& entry : std::filesystem::directory_iterator{directory_, none}) {
    std::optional<RemoteClient> client;
    std::ifstream states{entry.path() / "states"};
    for (std::string line; std::getline(states, line);) {
      // At its place: a file may be called so.
      constexpr std::string_view kLock = "{ type: lock,";
      const auto brace = line.find('{');
      if (brace == std::string::npos || line.compare(brace, kLock.size(), kLock) != 0) continue;
      const auto where = quoted(line, "superblock: \"");
      const auto inode = where ? parse_inode(*where) : std::nullopt;
      if (!inode) continue;
      if (!client) client = read_info(entry.path() / "info");
      auto& all = snapshot->lockers[*inode];
      if (std::find(all.begin(), all.end(), *client) == all.end()) all.push_back(*client);
    }
  }
  for (auto& [inode, all] : snapshot->lockers) {
    std::sort(all.begin(), all.end(), [](const RemoteClient& a, const RemoteClient& b) {
      return std::pair{a.address, a.name} < std::pair{b.address, b.name};
    });
  }
  return snapshot;
}

std::vector<RemoteClient> NfsdClients::with_locks_on(dev_t super_block, std::uint64_t ino,
                                                     std::int64_t since_ns) {
  std::shared_ptr<const Snapshot> seen;
  {
    const MutexLock hold{mu_};
    seen = last_;
  }
  // (A snapshot of the future: the clock was set back.)
  const std::int64_t now = realtime_ns();
  if (since_ns > now) since_ns = 0;
  if (!seen || seen->read_at_ns <= since_ns || seen->read_at_ns > now ||
      now - seen->read_at_ns > kFreshNs) {
    seen = read();
    const MutexLock hold{mu_};
    last_ = seen;
  }
  const auto found = seen->lockers.find({super_block, ino});
  return found == seen->lockers.end() ? std::vector<RemoteClient>{} : found->second;
}

}  // namespace latchfs::posix
