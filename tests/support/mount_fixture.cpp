#include "support/mount_fixture.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <poll.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <stdexcept>

#include "base/unique_fd.h"
#include "support/lock_proc.h"

namespace latchfs::test {
namespace {

namespace files = std::filesystem;
using locktest::poll_until;

[[noreturn]] void fail(const std::string& what) {
  throw std::runtime_error(what + ": " + std::strerror(errno));
}

std::string text_of(const std::string& path) {
  std::ostringstream out;
  out << std::ifstream{path}.rdbuf();
  return out.str();
}

std::string binary() {
  if (::access("/dev/fuse", R_OK | W_OK) != 0) {
    throw std::runtime_error("no usable /dev/fuse: mount tests cannot run on this machine");
  }
  const char* const path = std::getenv("LATCHFS_BIN");
  if (path == nullptr || ::access(path, X_OK) != 0) {
    throw std::runtime_error("no latchfs binary (LATCHFS_BIN): build it first");
  }
  return path;
}

std::string new_table_name() {
  static std::atomic<unsigned> count{0};
  return "test-" + std::to_string(::getpid()) + "-" + std::to_string(count++);
}

[[noreturn]] void exec_daemon(const std::vector<std::string>& words, const std::string& log) {
  std::vector<char*> argv;
  for (const std::string& word : words) argv.push_back(const_cast<char*>(word.c_str()));
  argv.push_back(nullptr);
  const int out = ::open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  ::dup2(out, STDOUT_FILENO);
  ::dup2(out, STDERR_FILENO);
  // Should the test itself be killed, nobody else ends the daemon.
  ::prctl(PR_SET_PDEATHSIG, SIGTERM);
  ::execv(argv[0], argv.data());
  ::_exit(127);
}

// A daemon that left for the background: it says who it is.
pid_t daemon_of(const std::string& mountpoint) {
  const auto status = nlohmann::json::parse(text_of(mountpoint + "/.locks/status"));
  for (const auto& mount : status.at("mounts")) {
    if (mount.value("self", false)) return mount.at("pid").get<pid_t>();
  }
  throw std::runtime_error("status does not name its own mount: " + status.dump());
}

}  // namespace

void remove_table(const std::string& name) {
  std::error_code ignored;
  const std::string users = "latchfs-" + std::to_string(::geteuid()) + ".";
  files::remove("/run/latchfs/" + name + ".table", ignored);
  files::remove_all("/var/lib/latchfs/" + name, ignored);
  for (const auto& entry : files::directory_iterator{"/dev/shm", ignored}) {
    const std::string file = entry.path().filename().string();
    if (file.rfind("latchfs-" + name + "-", 0) == 0) files::remove(entry.path(), ignored);
    if (file.rfind(users, 0) == 0) {
      files::remove(entry.path() / (name + ".table"), ignored);
      files::remove(entry.path(), ignored);  // a directory with tables in it stays
    }
  }
}

TempDir::TempDir() {
  const char* const base = std::getenv("TMPDIR");
  path_ = std::string{base != nullptr ? base : "/tmp"} + "/locks-XXXXXX";
  if (::mkdtemp(path_.data()) == nullptr) fail("mkdtemp " + path_);
  ::chmod(path_.c_str(), 0755);
}

TempDir::~TempDir() {
  std::error_code ignored;
  files::remove_all(path_, ignored);
}

OwnFileSystem::OwnFileSystem(const char* type, const std::string& options)
    : ok_{::mount("none", place_.path().c_str(), type, 0, options.c_str()) == 0} {}

OwnFileSystem::~OwnFileSystem() {
  if (ok_) ::umount2(place_.path().c_str(), MNT_DETACH);
}

MountFixture::MountFixture(Options options)
    : options_{std::move(options)}, mountpoint_{place_.path() + "/mnt"} {
  files::create_directory(mountpoint_);
  if (options_.source.empty()) {
    options_.source = place_.path() + "/src";
    files::create_directory(options_.source);
  }
  owns_table_ = options_.table.empty() || options_.owns_table;
  if (options_.table.empty()) options_.table = new_table_name();
  start();
}

MountFixture::Options MountFixture::another() const {
  Options other;
  other.source = options_.source;
  other.table = options_.table;
  other.options = options_.options;
  other.foreground = options_.foreground;
  return other;
}

void MountFixture::start() {
  std::vector<std::string> words{binary(), options_.source, mountpoint_, "-o",
                                 "table=" + options_.table};
  // Tests look at, and change, both sides of a mount.
  words.insert(words.end(), {"-o", "cache=strict"});
  // The suite once more, in another way. Before the test's own: of two the last one counts.
  if (const char* more = std::getenv("LATCHFS_OPTIONS"); more != nullptr) {
    words.emplace_back("-o");
    words.emplace_back(more);
  }
  for (const std::string& option : options_.options) {
    words.emplace_back("-o");
    words.push_back(option);
  }
  if (options_.foreground) words.emplace_back("-f");
  const std::string log_file = place_.path() + "/log";
  const pid_t child = ::fork();
  if (child < 0) fail("fork");
  if (child == 0) exec_daemon(words, log_file);
  daemon_ = child;
  is_child_ = true;
  if (options_.foreground) return wait_until_it_answers();
  int status{};
  if (!poll_until([&] { return daemon_ended(&status); })) {
    throw std::runtime_error("latchfs does not go into the background");
  }
  if (status != 0) throw std::runtime_error("latchfs failed to mount: " + log());
  is_child_ = false;
  daemon_ = daemon_of(mountpoint_);
}

bool MountFixture::mounted() const {
  struct statfs st {};
  return ::statfs(mountpoint_.c_str(), &st) == 0 && st.f_type == FUSE_SUPER_MAGIC;
}

void MountFixture::wait_until_it_answers() {
  bool dead = false;
  const bool answers = poll_until([&] {
    dead = daemon_ended();
    return dead || mounted();
  });
  if (dead) throw std::runtime_error("latchfs ended before it answered: " + log());
  if (!answers) {
    ::kill(daemon_, SIGKILL);
    ::waitpid(daemon_, nullptr, 0);
    throw std::runtime_error("latchfs does not answer: " + log());
  }
}

bool MountFixture::daemon_ended(int* status) {
  if (daemon_ < 0) return true;
  int ignored{};
  const bool ended =
      is_child_ ? ::waitpid(daemon_, status != nullptr ? status : &ignored, WNOHANG) == daemon_
                : ::kill(daemon_, 0) != 0 && errno == ESRCH;
  if (ended) daemon_ = -1;
  return ended;
}

void MountFixture::kill_daemon() {
  if (daemon_ < 0) return;
  ::kill(daemon_, SIGKILL);
  if (!poll_until([this] { return daemon_ended(); })) {
    throw std::runtime_error("latchfs does not die of SIGKILL");
  }
}

void MountFixture::detach() {
  if (::umount2(mountpoint_.c_str(), MNT_DETACH) == 0 || ::geteuid() == 0) return;
  const std::string command = "fusermount3 -uzq '" + mountpoint_ + "'";
  if (std::system(command.c_str()) != 0) return;  // NOLINT: nothing was mounted
}

bool MountFixture::unmount() {
  const std::string command = "fusermount3 -u '" + mountpoint_ + "'";
  // Busy for a moment: whoever looks through /proc for what is open holds it while he looks, and so
  // does a close whose last word is on its way.
  if (!poll_until([&] { return std::system(command.c_str()) == 0; })) {  // NOLINT: our own words
    return false;
  }
  int status{};
  return poll_until([&] { return daemon_ended(&status); }) && status == 0;
}

std::string MountFixture::log() const { return text_of(place_.path() + "/log"); }

std::string MountFixture::status(const char* field) const {
  return nlohmann::json::parse(text_of(mountpoint_ + "/.locks/status")).at(field);
}

MountFixture::~MountFixture() {
  detach();
  if (daemon_ > 0) {
    ::kill(daemon_, SIGTERM);
    if (!poll_until([this] { return daemon_ended(); })) ::kill(daemon_, SIGKILL);
    if (is_child_ && daemon_ > 0) ::waitpid(daemon_, nullptr, 0);
  }
  if (owns_table_) remove_table(options_.table);
}

}  // namespace latchfs::test
