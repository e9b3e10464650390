#include "posix/caller_status.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <charconv>
#include <string>
#include <system_error>

#include "base/unique_fd.h"
#include "posix/sys.h"

namespace latchfs::posix {
namespace {

// The text after "Name:\t" up to the end of its line; nothing if there is no such line.
bool find_line(std::string_view text, std::string_view name, std::string_view& value) {
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t stop = std::min(text.find('\n', at), text.size());
    const std::string_view line = text.substr(at, stop - at);
    if (line.size() > name.size() && line[name.size()] == ':' &&
        line.substr(0, name.size()) == name) {
      value = line.substr(name.size() + 1);
      return true;
    }
    at = stop + 1;
  }
  return false;
}

// Takes the next number off the line. False at its end or at something else.
template <class T>
bool take_number(std::string_view& line, T& value, int base = 10) {
  const std::size_t start = line.find_first_not_of(" \t");
  if (start == std::string_view::npos) return false;
  line.remove_prefix(start);
  const auto [end, ec] = std::from_chars(line.data(), line.data() + line.size(), value, base);
  if (ec != std::errc{}) return false;
  line.remove_prefix(static_cast<std::size_t>(end - line.data()));
  return true;
}

// "Uid: real effective saved fs"
template <class T>
bool take_fourth(std::string_view line, T& value) {
  return take_number(line, value) && take_number(line, value) && take_number(line, value) &&
         take_number(line, value);
}

Result<std::string> read_whole(const char* path) {
  auto fd = opened(::open(path, O_RDONLY | O_CLOEXEC));
  if (!fd) return fd.error();
  std::string text(4096, '\0');
  std::size_t size = 0;
  for (;;) {
    const ssize_t n = ::read(fd->get(), text.data() + size, text.size() - size);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return last_errno();
    if (n == 0) break;
    size += static_cast<std::size_t>(n);
    if (size == text.size()) text.resize(2 * size);
  }
  text.resize(size);
  return text;
}

bool same_user_namespace(pid_t tid) {
  struct stat theirs {};
  struct stat ours {};
  const std::string path = "/proc/" + std::to_string(tid) + "/ns/user";
  return ::stat(path.c_str(), &theirs) == 0 && ::stat("/proc/self/ns/user", &ours) == 0 &&
         file_id(theirs) == file_id(ours);
}

}  // namespace

Result<CallerStatus> parse_status(std::string_view text) {
  CallerStatus status;
  std::string_view line;
  if (!find_line(text, "Uid", line) || !take_fourth(line, status.fsuid)) return errno_code(EINVAL);
  if (!find_line(text, "Gid", line) || !take_fourth(line, status.fsgid)) return errno_code(EINVAL);
  if (!find_line(text, "CapEff", line) || !take_number(line, status.effective_caps, 16)) {
    return errno_code(EINVAL);
  }
  if (!find_line(text, "Groups", line)) return errno_code(EINVAL);
  for (gid_t gid{}; take_number(line, gid);) status.groups.push_back(gid);
  if (line.find_first_not_of(" \t") != std::string_view::npos) return errno_code(EINVAL);
  return status;
}

Result<CallerStatus> status_of(const Caller& caller) {
  if (caller.pid <= 0) return errno_code(ESRCH);
  const std::string path = "/proc/" + std::to_string(caller.pid) + "/status";
  const auto text = read_whole(path.c_str());
  if (!text) return errno_code(ESRCH);
  auto status = parse_status(*text);
  if (!status) return status.error();
  if (status->fsuid != caller.uid || status->fsgid != caller.gid) return errno_code(ESRCH);
  if (status->effective_caps != 0 && !same_user_namespace(caller.pid)) status->effective_caps = 0;
  return status;
}

std::string program_of(pid_t pid) {
  if (pid <= 0) return {};
  const auto target = link_text(("/proc/" + std::to_string(pid) + "/exe").c_str());
  if (!target) return {};
  std::string_view name{*target};
  name.remove_prefix(name.rfind('/') + 1);
  // What an upgrade has replaced is told so (d_path()).
  constexpr std::string_view kReplaced = " (deleted)";
  if (name.ends_with(kReplaced)) name.remove_suffix(kReplaced.size());
  return std::string{name};
}

std::optional<std::string> kernel_thread_name(pid_t pid) {
  if (pid <= 0) return std::nullopt;
  const auto text = read_whole(("/proc/" + std::to_string(pid) + "/stat").c_str());
  if (!text) return std::nullopt;
  // "PID (NAME) S ppid pgrp session tty tpgid flags": the name may hold anything.
  const auto begin = text->find('(');
  const auto end = text->rfind(')');
  constexpr std::size_t kState = 4;  // ") S "
  if (begin == std::string::npos || end == std::string::npos || end < begin ||
      text->size() < end + kState) {
    return std::nullopt;
  }
  std::string_view rest = std::string_view{*text}.substr(end + kState);
  std::int64_t skipped = 0;
  for (int field = 0; field < 5; ++field) {
    if (!take_number(rest, skipped)) return std::nullopt;
  }
  constexpr std::uint64_t kKernelThread = 0x00200000;  // PF_KTHREAD, linux/sched.h
  std::uint64_t flags = 0;
  if (!take_number(rest, flags) || (flags & kKernelThread) == 0) return std::nullopt;
  return text->substr(begin + 1, end - begin - 1);
}

std::optional<uid_t> real_uid_of(pid_t pid) {
  if (pid <= 0) return std::nullopt;
  const auto text = read_whole(("/proc/" + std::to_string(pid) + "/status").c_str());
  std::string_view line;
  uid_t uid = 0;
  if (!text || !find_line(*text, "Uid", line) || !take_number(line, uid)) return std::nullopt;
  return uid;
}

}  // namespace latchfs::posix
