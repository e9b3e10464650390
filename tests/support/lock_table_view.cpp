#include "support/lock_table_view.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
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
  lock.who = kind == "ofd"  ? ListedLock::Who::kDescription
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

// A lock held, or a request with what it is queued below.
struct Node {
  ListedLock lock;
  int parent{-1};
  unsigned arrival{};
};

bool conflict(const ListedLock& a, const ListedLock& b) {
  if (a.kind != b.kind) return false;
  if (a.mode == Mode::kShared && b.mode == Mode::kShared) return false;
  const auto last = [](const ListedLock& l) {
    return l.len == 0 ? std::numeric_limits<std::int64_t>::max() : l.start + l.len - 1;
  };
  return a.start <= last(b) && b.start <= last(a);
}

// The lines of /proc/locks about one file, each without the number before the colon. The kernel
// hands the table out in parts, between which other processes change it: lines may come twice or
// not at all. What two readings agree on is taken.
std::vector<std::string> kernel_lines(const std::string& file_id) {
  const auto read_once = [&file_id] {
    std::vector<std::string> lines;
    std::istringstream in{read_file("/proc/locks")};
    for (std::string line; std::getline(in, line);) {
      if (line.find(" " + file_id + " ") == std::string::npos) continue;
      lines.push_back(line.substr(line.find(':') + 1));
    }
    return lines;
  };
  std::vector<std::string> lines = read_once();
  while (true) {
    std::vector<std::string> again = read_once();
    if (again == lines) return lines;
    lines = std::move(again);
  }
}

// " POSIX  ADVISORY  WRITE 1234 fd:01:5678 0 EOF"; a request that waits begins with "->", indented
// by its depth, and follows what it is queued below.
std::vector<Node> kernel_tree(const std::string& path) {
  std::vector<Node> nodes;
  std::vector<int> branch;  // by depth
  for (std::string line : kernel_lines(kernel_file_id(path))) {
    const std::size_t arrow = line.find("->");
    const std::size_t depth = arrow == std::string::npos ? 0 : arrow;
    if (arrow != std::string::npos) line.erase(arrow, 2);
    std::istringstream words{line};
    std::string type, advisory, mode, file, start, end;
    Node node;
    words >> type >> advisory >> mode >> node.lock.pid >> file >> start >> end;
    node.lock.kind = type == "FLOCK" ? Kind::kFlock : Kind::kPosix;
    node.lock.who = type == "OFDLCK" ? ListedLock::Who::kDescription : ListedLock::Who::kProcess;
    node.lock.mode = mode == "WRITE" ? Mode::kExclusive : Mode::kShared;
    node.lock.start = std::stoll(start);
    node.lock.len = end == "EOF" ? 0 : std::stoll(end) - node.lock.start + 1;
    if (depth > branch.size()) throw std::runtime_error("/proc/locks: a waiter on nothing");
    branch.resize(depth);
    if (depth > 0) node.parent = branch.back();
    branch.push_back(static_cast<int>(nodes.size()));
    nodes.push_back(node);
  }
  return nodes;
}

// The waiters from `at` up to the lock held, that last.
std::vector<int> way_up(const std::vector<Node>& tree, int at) {
  std::vector<int> way;
  for (; at >= 0; at = tree[static_cast<std::size_t>(at)].parent) way.push_back(at);
  return way;
}

bool has_second_blocker(const std::vector<Node>& tree, const std::vector<int>& way) {
  for (const int waiter : way) {
    if (waiter == way.back()) break;
    int blockers = 0;
    for (const Node& node : tree) {
      const ListedLock& asked = tree[static_cast<std::size_t>(waiter)].lock;
      if (node.parent < 0 && conflict(node.lock, asked)) ++blockers;
    }
    if (blockers > 1) return true;
  }
  return false;
}

bool entangled(const std::vector<Node>& tree, int a, int b) {
  if (!conflict(tree[static_cast<std::size_t>(a)].lock, tree[static_cast<std::size_t>(b)].lock)) {
    return false;
  }
  const std::vector<int> way_a = way_up(tree, a);
  const std::vector<int> way_b = way_up(tree, b);
  const auto on = [](const std::vector<int>& way, int x) {
    return std::find(way.begin(), way.end(), x) != way.end();
  };
  const unsigned since_a = tree[static_cast<std::size_t>(a)].arrival;
  const unsigned since_b = tree[static_cast<std::size_t>(b)].arrival;
  // Below the other, who came first: it was woken meanwhile, in vain, and has queued anew.
  if (on(way_a, b)) return since_a == 0 || since_b == 0 || since_a < since_b;
  if (on(way_b, a)) return since_a == 0 || since_b == 0 || since_b < since_a;
  if (way_a.back() != way_b.back()) return true;
  if (has_second_blocker(tree, way_a) || has_second_blocker(tree, way_b)) return true;
  if (since_a == 0 || since_b == 0) return true;
  // Straight below the lock: nothing can go away above it.
  return (since_a < since_b ? way_a : way_b).size() > 2;
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

std::vector<ListedLock> kernel_locks(const std::string& path) {
  std::vector<ListedLock> locks;
  for (const Node& node : kernel_tree(path)) {
    if (node.parent < 0) locks.push_back(node.lock);
  }
  return locks;
}

bool kernel_waiters_entangled(const std::string& path,
                              const std::function<unsigned(const ListedLock&)>& arrival) {
  std::vector<Node> tree = kernel_tree(path);
  for (Node& node : tree) node.arrival = arrival(node.lock);
  const int count = static_cast<int>(tree.size());
  for (int a = 0; a < count; ++a) {
    if (tree[static_cast<std::size_t>(a)].parent < 0) continue;
    for (int b = a + 1; b < count; ++b) {
      if (tree[static_cast<std::size_t>(b)].parent >= 0 && entangled(tree, a, b)) return true;
    }
  }
  return false;
}

std::vector<ListedLock> mount_locks(const std::string& mount, const std::string& path) {
  return paged(mount + "/.locks/list", path.empty() ? "" : "?ref=" + url_encoded(path), "grants");
}

std::vector<ListedLock> mount_waiters(const std::string& mount) {
  return paged(mount + "/.locks/waiters", "", "waiters");
}

}  // namespace latchfs::locktest
