#include "store/shm/registry.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cstdlib>

namespace latchfs::shm {
namespace {

// Far behind the content, which is one line.
constexpr off_t kSlotBytesAt = 4096;

bool valid_name(const std::string& name) {
  if (name.empty() || name.size() > 64 || name.front() == '.') return false;
  for (const char c : name) {
    const bool fine = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                      c == '.' || c == '_' || c == '-';
    if (!fine) return false;
  }
  return true;
}

Result<UniqueFd> open_directory() {
  std::string path = "/run/latchfs";
  if (::geteuid() != 0) {
    const char* runtime = std::getenv("XDG_RUNTIME_DIR");
    path = runtime != nullptr && runtime[0] == '/' ? std::string{runtime} + "/latchfs"
                                                   : fmt::format("/tmp/latchfs-{}", ::geteuid());
  }
  if (::mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) return last_errno();
  UniqueFd dir{::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)};
  if (!dir) return last_errno();
  struct stat st {};
  if (::fstat(dir.get(), &st) != 0) return last_errno();
  if (st.st_uid != ::geteuid() || (st.st_mode & 0022) != 0) return errno_code(EPERM);
  return dir;
}

}  // namespace

Result<Registry> Registry::open(const std::string& table) {
  if (!valid_name(table)) return errno_code(EINVAL);
  auto dir = open_directory();
  if (!dir) return dir.error();
  Registry registry{std::move(*dir), table + ".table"};
  if (const auto r = registry.open_file(); !r) return r.error();
  return registry;
}

Result<void> Registry::open_file() {
  fd_.reset(::openat(dir_.get(), file_.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600));
  if (!fd_) return last_errno();
  return {};
}

Result<void> Registry::lock() {
  for (;;) {
    while (::flock(fd_.get(), LOCK_EX) != 0) {
      if (errno != EINTR) return last_errno();
    }
    struct stat st {};
    if (::fstat(fd_.get(), &st) != 0) return last_errno();
    if (st.st_nlink != 0) return {};
    if (const auto r = open_file(); !r) return r;
  }
}

void Registry::remove() noexcept { ::unlinkat(dir_.get(), file_.c_str(), 0); }

void Registry::unlock() noexcept { ::flock(fd_.get(), LOCK_UN); }

std::string Registry::region_name() const {
  std::array<char, 256> text{};
  const ssize_t n = ::pread(fd_.get(), text.data(), text.size(), 0);
  if (n <= 0 || text[static_cast<std::size_t>(n) - 1] != '\n') return "";
  std::string name{text.data(), static_cast<std::size_t>(n) - 1};
  return name.rfind("latchfs-", 0) == 0 && name.find('/') == std::string::npos ? name : "";
}

Result<void> Registry::set_region_name(const std::string& name) {
  if (::ftruncate(fd_.get(), 0) != 0) return last_errno();
  if (name.empty()) return {};
  const std::string line = name + "\n";
  const ssize_t n = ::pwrite(fd_.get(), line.data(), line.size(), 0);
  if (n < 0) return last_errno();
  if (static_cast<std::size_t>(n) != line.size()) return errno_code(ENOSPC);
  return {};
}

Result<std::string> Registry::fresh_region_name(const std::string& table) {
  std::array<unsigned char, 16> bytes{};
  if (::getrandom(bytes.data(), bytes.size(), 0) != static_cast<ssize_t>(bytes.size())) {
    return last_errno();
  }
  std::string name = "latchfs-" + table + "-";
  for (const unsigned char b : bytes) name += fmt::format("{:02x}", b);
  return name;
}

Result<void> Registry::claim(std::uint32_t slot) {
  struct flock fl {};
  fl.l_type = F_WRLCK;
  fl.l_whence = SEEK_SET;
  fl.l_start = kSlotBytesAt + static_cast<off_t>(slot);
  fl.l_len = 1;
  if (::fcntl(fd_.get(), F_OFD_SETLK, &fl) != 0) return last_errno();
  return {};
}

bool Registry::alive(std::uint32_t slot) const {
  struct flock fl {};
  fl.l_type = F_WRLCK;
  fl.l_whence = SEEK_SET;
  fl.l_start = kSlotBytesAt + static_cast<off_t>(slot);
  fl.l_len = 1;
  // When in doubt alive: taking a living daemon's locks away would be worse.
  return ::fcntl(fd_.get(), F_OFD_GETLK, &fl) != 0 || fl.l_type != F_UNLCK;
}

}  // namespace latchfs::shm
