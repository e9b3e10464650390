#include "store/shm/registry.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/core.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <memory>
#include <string_view>
#include <vector>

namespace latchfs::shm {
namespace {

// Far behind the content, which is one line.
constexpr off_t kSlotBytesAt = 4096;
// Where shm_open() makes the tables.
constexpr const char* kShm = "/dev/shm";
// How often a race with another mount is begun anew.
constexpr int kMostTries = 100;

bool valid_name(const std::string& name) {
  if (name.empty() || name.size() > 64 || name.front() == '.') return false;
  for (const char c : name) {
    const bool fine = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                      c == '.' || c == '_' || c == '-';
    if (!fine) return false;
  }
  return true;
}

struct flock slot_byte(std::uint32_t slot, short type) noexcept {
  struct flock fl {};
  fl.l_type = type;
  fl.l_whence = SEEK_SET;
  fl.l_start = kSlotBytesAt + static_cast<off_t>(slot);
  fl.l_len = 1;
  return fl;
}

struct Directory {
  std::string path;
  UniqueFd fd;
};

Result<Directory> open_checked(const std::string& path) {
  UniqueFd dir{::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)};
  if (!dir) return last_errno();
  struct stat st {};
  if (::fstat(dir.get(), &st) != 0) return last_errno();
  if (st.st_uid != ::geteuid() || (st.st_mode & 0022) != 0) return errno_code(EPERM);
  return Directory{path, std::move(dir)};
}

Result<Directory> open_roots_directory() {
  constexpr const char* kPath = "/run/latchfs";
  if (::mkdir(kPath, 0700) != 0 && errno != EEXIST) return last_errno();
  return open_checked(kPath);
}

std::string users_prefix() { return fmt::format("latchfs-{}.", ::geteuid()); }

// The user's own directories in /dev/shm. One that is there throughout is found.
Result<std::vector<std::string>> users_directories() {
  struct Close {
    void operator()(DIR* dir) const noexcept { ::closedir(dir); }
  };
  const std::unique_ptr<DIR, Close> shm{::opendir(kShm)};
  if (!shm) return last_errno();
  const std::string prefix = users_prefix();
  std::vector<std::string> own;
  for (;;) {
    errno = 0;
    const dirent* entry = ::readdir(shm.get());
    if (entry == nullptr) break;
    struct stat st {};
    if (std::string_view{entry->d_name}.substr(0, prefix.size()) == prefix &&
        ::fstatat(::dirfd(shm.get()), entry->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
        S_ISDIR(st.st_mode) && st.st_uid == ::geteuid()) {
      own.push_back(std::string{kShm} + "/" + entry->d_name);
    }
  }
  if (errno != 0) return last_errno();
  std::sort(own.begin(), own.end());
  return own;
}

// No two mounts may use different directories. So a file is put only into one that was seen to be
// the only one: when two mounts have made one each, whoever looks after the later one was made, its
// maker too, sees both. He removes what is empty until one is left, and looks again. At most one
// has a file in it, and putting a file into one just removed fails with ENOENT.
Result<Directory> open_users_directory() {
  for (int tries = 0; tries < kMostTries; ++tries) {
    const auto own = users_directories();
    if (!own) return own.error();
    if (own->empty()) {
      std::string fresh = std::string{kShm} + "/" + users_prefix() + "XXXXXX";
      if (::mkdtemp(fresh.data()) == nullptr) return last_errno();
    } else if (own->size() == 1) {
      auto dir = open_checked(own->front());
      if (dir || dir.error() != errno_code(ENOENT)) return dir;
    } else {
      std::size_t left = own->size();
      for (auto one = own->rbegin(); one != own->rend() && left > 1; ++one) {
        if (::rmdir(one->c_str()) == 0) --left;
      }
    }
  }
  return errno_code(EBUSY);
}

}  // namespace

Result<Registry> Registry::open(const std::string& table) {
  if (!valid_name(table)) return errno_code(EINVAL);
  Registry registry{table + ".table"};
  if (const auto r = registry.open_file(); !r) return r.error();
  return registry;
}

Result<void> Registry::open_file() {
  for (int tries = 0; tries < kMostTries; ++tries) {
    auto dir = ::geteuid() == 0 ? open_roots_directory() : open_users_directory();
    if (!dir) return dir.error();
    path_ = std::move(dir->path);
    dir_ = std::move(dir->fd);
    fd_.reset(::openat(dir_.get(), file_.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600));
    if (fd_) return {};
    if (errno != ENOENT) return last_errno();  // else the directory was removed meanwhile
  }
  return errno_code(EBUSY);
}

Result<void> Registry::lock() {
  for (;;) {
    while (::flock(fd_.get(), LOCK_EX) != 0) {
      if (errno != EINTR) return last_errno();
    }
    if (claimed_ || named()) return {};
    if (const auto r = open_file(); !r) return r;
  }
}

bool Registry::named() const noexcept {
  struct stat st {};
  return ::fstat(fd_.get(), &st) == 0 && st.st_nlink != 0;
}

void Registry::remove() noexcept {
  if (!named()) return;
  ::unlinkat(dir_.get(), file_.c_str(), 0);
  // A user's goes with his last table; root's stays. (It is kept where there is something in it.)
  if (::geteuid() != 0) ::rmdir(path_.c_str());
}

Result<void> Registry::try_lock() {
  if (::flock(fd_.get(), LOCK_EX | LOCK_NB) != 0) return last_errno();
  return {};
}

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
  struct flock fl = slot_byte(slot, F_WRLCK);
  if (::fcntl(fd_.get(), F_OFD_SETLK, &fl) != 0) return last_errno();
  claimed_ = true;
  return {};
}

void Registry::let_go(std::uint32_t slot) noexcept {
  struct flock fl = slot_byte(slot, F_UNLCK);
  ::fcntl(fd_.get(), F_OFD_SETLK, &fl);
}

bool Registry::alive(std::uint32_t slot) const {
  struct flock fl = slot_byte(slot, F_WRLCK);
  // When in doubt alive: taking a living daemon's locks away would be worse.
  return ::fcntl(fd_.get(), F_OFD_GETLK, &fl) != 0 || fl.l_type != F_UNLCK;
}

}  // namespace latchfs::shm
