#include "support/lock_table_view.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>
#include <stdexcept>
#include <string_view>

#include "base/unique_fd.h"

namespace latchfs::locktest {
namespace {

using nlohmann::json;

[[noreturn]] void fail(const std::string& what, int err) {
  throw std::runtime_error(what + ": " + std::strerror(err));
}

std::string url_encoded(const std::string& text) {
  static constexpr std::string_view kHex = "0123456789ABCDEF";
  std::string out;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (std::isalnum(byte) != 0) {
      out += c;
    } else {
      out += '%';
      out += kHex[byte >> 4U];
      out += kHex[byte & 15U];
    }
  }
  return out;
}

ListedLock from_json(const json& grant) {
  ListedLock lock;
  const std::string kind = grant.at("kind").get<std::string>();
  lock.kind = kind == "flock" ? Kind::kFlock : Kind::kPosix;
  lock.who = kind == "ofd" ? ListedLock::Who::kDescription
             : kind.empty() ? ListedLock::Who::kUnknown
                            : ListedLock::Who::kProcess;
  lock.pid = grant.at("pid").get<pid_t>();
  lock.mode = grant.at("mode").at(0) == "API_BYTE_RANGE_SHARED" ? Mode::kShared : Mode::kExclusive;
  lock.start = std::stoll(grant.at("offset").get<std::string>());
  lock.len = std::stoll(grant.at("size").get<std::string>());
  return lock;
}

std::vector<ListedLock> paged(const std::string& file, const std::string& query, const char* key) {
  std::vector<ListedLock> locks;
  std::string after;
  do {
    std::string name = file + query;
    if (!after.empty()) {
      name += query.empty() ? "?" : "&";
      name += "after=" + url_encoded(after);
    }
    const json page = json::parse(read_file(name));
    for (const json& grant : page.at(key)) locks.push_back(from_json(grant));
    after = page.at("paging").at("next").get<std::string>();
  } while (!after.empty());
  return locks;
}

// "MAJOR:MINOR:INODE", both in hex, as /proc/locks has it.
std::string kernel_file_id(const std::string& path) {
  struct stat st {};
  if (::stat(path.c_str(), &st) != 0) fail(path, errno);
  std::array<char, 64> text{};
  std::snprintf(text.data(), text.size(), "%02x:%02x:%lu", major(st.st_dev), minor(st.st_dev),
                static_cast<unsigned long>(st.st_ino));
  return text.data();
}

}  // namespace

std::string read_file(const std::string& path) {
  const UniqueFd fd{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  if (!fd) fail(path, errno);
  std::string text;
  std::array<char, 65536> part{};
  while (true) {
    const ssize_t n = ::read(fd.get(), part.data(), part.size());
    if (n < 0) fail(path, errno);
    if (n == 0) return text;
    text.append(part.data(), static_cast<std::size_t>(n));
  }
}

// "1: POSIX  ADVISORY  WRITE 1234 fd:01:5678 0 EOF"; waiters have "->" after the number.
std::vector<ListedLock> kernel_locks(const std::string& path) {
  const std::string wanted = kernel_file_id(path);
  std::vector<ListedLock> locks;
  std::istringstream in{read_file("/proc/locks")};
  for (std::string line; std::getline(in, line);) {
    std::istringstream words{line};
    std::string number, type, advisory, mode, file, start, end;
    pid_t pid{};
    words >> number >> type >> advisory >> mode >> pid >> file >> start >> end;
    if (!words || file != wanted) continue;
    ListedLock lock;
    lock.kind = type == "FLOCK" ? Kind::kFlock : Kind::kPosix;
    lock.who = type == "OFDLCK" ? ListedLock::Who::kDescription : ListedLock::Who::kProcess;
    lock.pid = pid;
    lock.mode = mode == "WRITE" ? Mode::kExclusive : Mode::kShared;
    lock.start = std::stoll(start);
    lock.len = end == "EOF" ? 0 : std::stoll(end) - lock.start + 1;
    locks.push_back(lock);
  }
  return locks;
}

std::vector<ListedLock> mount_locks(const std::string& mount, const std::string& path) {
  return paged(mount + "/.locks/list", path.empty() ? "" : "?ref=" + url_encoded(path), "grants");
}

std::vector<ListedLock> mount_waiters(const std::string& mount) {
  return paged(mount + "/.locks/waiters", "", "waiters");
}

}  // namespace latchfs::locktest
