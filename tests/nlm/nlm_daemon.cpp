#include "nlm_daemon.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <stdexcept>

#include "base/unique_fd.h"
#include "nlm/nfs_handle.h"

namespace latchfs::test {

NlmDaemon::NlmDaemon(const std::string& table, const std::string& mountpoint,
                     const std::vector<std::string>& options) {
  const char* const binary = std::getenv("LATCHFS_NLM_BIN");
  if (binary == nullptr || ::access(binary, X_OK) != 0) {
    throw std::runtime_error{"no latchfs-nlm (LATCHFS_NLM_BIN): build it first"};
  }
  std::vector<std::string> words{binary,
                                 "-f",
                                 "--table=" + table,
                                 "--export=1=" + mountpoint,
                                 "--insecure-ports",
                                 "--log=" + place_.path() + "/log",
                                 "--log-level=debug",
                                 "--state-dir=" + place_.path() + "/state"};
  words.insert(words.end(), options.begin(), options.end());
  if (std::none_of(options.begin(), options.end(),
                   [](const std::string& one) { return one.starts_with("--listen="); })) {
    words.emplace_back("--listen=127.0.0.1");
  }
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) throw std::runtime_error{"pipe"};
  const UniqueFd from{ends[0]};
  UniqueFd to{ends[1]};
  const pid_t parent = ::getpid();
  pid_ = ::fork();
  if (pid_ == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (::getppid() != parent) ::_exit(126);
    ::dup2(to.get(), STDOUT_FILENO);
    ::execv(binary, argv.data());
    ::_exit(127);
  }
  if (pid_ < 0) throw std::runtime_error{"fork"};
  to.reset();
  // "port N"
  std::string said;
  std::array<char, 64> buffer{};
  pollfd one{from.get(), POLLIN, 0};
  while (said.find('\n') == std::string::npos && ::poll(&one, 1, 60'000) == 1) {
    const ssize_t n = ::read(from.get(), buffer.data(), buffer.size());
    if (n <= 0) break;
    said.append(buffer.data(), static_cast<std::size_t>(n));
  }
  unsigned port = 0;
  if (std::sscanf(said.c_str(), "port %u", &port) != 1) {
    end(SIGKILL);
    throw std::runtime_error{"latchfs-nlm does not serve: " + log()};
  }
  port_ = static_cast<std::uint16_t>(port);
}

NlmDaemon::~NlmDaemon() { end(SIGKILL); }

std::string NlmDaemon::log() const {
  std::ostringstream out;
  out << std::ifstream{place_.path() + "/log"}.rdbuf();
  return out.str();
}

std::size_t NlmDaemon::opens_below(const std::string& directory) const {
  std::size_t count = 0;
  std::error_code error;
  const std::filesystem::path fds = "/proc/" + std::to_string(pid_) + "/fd";
  for (const auto& entry : std::filesystem::directory_iterator{fds, error}) {
    const std::string target = std::filesystem::read_symlink(entry.path(), error).string();
    count += target.rfind(directory, 0) == 0 ? 1 : 0;
  }
  return count;
}

int NlmDaemon::end(int signal) {
  if (pid_ <= 0) return -1;
  ::kill(pid_, signal);
  int status = -1;
  TEMP_FAILURE_RETRY(::waitpid(pid_, &status, 0));
  pid_ = -1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

void NlmDaemon::kill() { end(SIGKILL); }
int NlmDaemon::stop() { return end(SIGTERM); }

std::string nfs_handle(const std::string& path, std::uint32_t fsid) {
  alignas(struct file_handle) std::array<char, sizeof(struct file_handle) + 128> place{};
  auto* const handle = reinterpret_cast<struct file_handle*>(place.data());
  handle->handle_bytes = 128;
  int mount = 0;
  if (::name_to_handle_at(AT_FDCWD, path.c_str(), handle, &mount, 0) != 0 ||
      handle->handle_type != 0x81 || handle->handle_bytes != 12) {
    throw std::runtime_error{"no handle of " + path + ": " + std::strerror(errno)};
  }
  std::array<std::uint32_t, 3> words{};
  std::memcpy(words.data(), place.data() + sizeof(struct file_handle), sizeof words);
  nlm::NfsHandle out;
  out.fsid = *nlm::Fsid::parse(std::to_string(fsid));
  out.node = std::uint64_t{words[0]} << 32 | words[1];
  out.generation = words[2];
  return nlm::handle_bytes(out);
}

}  // namespace latchfs::test
