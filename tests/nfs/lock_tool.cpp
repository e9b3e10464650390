// What the NFS checks do with a file, one process an act; the result is one line on standard
// output.
//
//   lock_tool hold FILE ex|sh START LENGTH [wait]   lock it, say "granted", keep it until SIGTERM;
//                                                   "denied ERRNO" and status 1 if refused
//   lock_tool try FILE ex|sh START LENGTH           as hold, but ends (and so unlocks) at once
//   lock_tool test FILE ex|sh START LENGTH          F_GETLK: "free", or "held ex|sh START LENGTH"
//   lock_tool keep FILE                             open it; then, a line of standard input each:
//                                                   "read", "stat", "write TEXT", "lock", "unlock"
//   lock_tool fill DIR COUNT                        make that many empty files
//   lock_tool count DIR                             "ENTRIES DISTINCT": listed, and different
//   lock_tool inode FILE                            inode number
//   lock_tool handle FILE                           name_to_handle_at(2): "TYPE HEX"
//   lock_tool loop FILE COUNT                       lock and unlock: "PAIRS_PER_SECOND"
//   lock_tool copy FROM FILE                        open FILE for writing, read a line of standard
//                                                   input, copy_file_range(2): "BYTES"
//
// Locks are POSIX ones of the whole process. LENGTH 0 is to the end of the file.
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <string>
#include <string_view>
#include <vector>

namespace {

[[noreturn]] void usage() {
  std::fputs("lock_tool: wrong arguments\n", stderr);
  std::exit(2);
}

// Everything is read by somebody who waits for the line.
template <class... Args>
void say(const char* format, Args... args) {
  if constexpr (sizeof...(args) == 0) {
    std::fputs(format, stdout);
  } else {
    std::printf(format, args...);
  }
  std::fputc('\n', stdout);
  std::fflush(stdout);
}

const char* errno_name() { return ::strerrorname_np(errno); }

int fail(const char* what) {
  say("%s %s", what, errno_name());
  return 1;
}

struct flock lock_of(short type, const char* start, const char* length) {
  struct flock lock {};
  lock.l_type = type;
  lock.l_whence = SEEK_SET;
  lock.l_start = std::strtoll(start, nullptr, 10);
  lock.l_len = std::strtoll(length, nullptr, 10);
  return lock;
}

short type_of(std::string_view mode) {
  if (mode == "ex") return F_WRLCK;
  if (mode == "sh") return F_RDLCK;
  usage();
}

// For shared locks of files that may only be read, too.
int open_for(const char* path, short type) {
  return ::open(path, (type == F_RDLCK ? O_RDONLY : O_RDWR) | O_CLOEXEC);
}

int hold(const char* path, const char* mode, const char* start, const char* length, bool wait,
         bool keep) {
  const short type = type_of(mode);
  const int fd = open_for(path, type);
  if (fd < 0) return fail("open");
  struct flock lock = lock_of(type, start, length);
  if (::fcntl(fd, wait ? F_SETLKW : F_SETLK, &lock) != 0) return fail("denied");
  say("granted");
  // Death is what ends it, so that closing is left to the kernel.
  while (keep) ::pause();
  return 0;
}

int test(const char* path, const char* mode, const char* start, const char* length) {
  const short type = type_of(mode);
  const int fd = open_for(path, type);
  if (fd < 0) return fail("open");
  struct flock lock = lock_of(type, start, length);
  if (::fcntl(fd, F_GETLK, &lock) != 0) return fail("failed");
  if (lock.l_type == F_UNLCK) {
    say("free");
  } else {
    say("held %s %lld %lld", lock.l_type == F_WRLCK ? "ex" : "sh",
        static_cast<long long>(lock.l_start), static_cast<long long>(lock.l_len));
  }
  return 0;
}

// One act of `keep` on the open file.
void act(int fd, const std::string& line) {
  struct flock whole = lock_of(F_WRLCK, "0", "0");
  if (line == "read") {
    // What the client has cached would say nothing about the server.
    ::posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    std::array<char, 256> text{};
    const ssize_t n = ::pread(fd, text.data(), text.size() - 1, 0);
    if (n < 0) {
      fail("read");
    } else {
      text[std::strcspn(text.data(), "\n")] = '\0';
      say("read %s", text.data());
    }
  } else if (line == "stat") {
    struct stat st {};
    if (::fstat(fd, &st) != 0) {
      fail("stat");
    } else {
      say("stat %llu %lld", static_cast<unsigned long long>(st.st_ino),
          static_cast<long long>(st.st_size));
    }
  } else if (line.rfind("write ", 0) == 0) {
    const std::string text = line.substr(6) + '\n';
    const bool written =
        ::pwrite(fd, text.data(), text.size(), 0) == static_cast<ssize_t>(text.size()) &&
        ::fsync(fd) == 0;
    if (!written) {
      fail("write");
    } else {
      say("written");
    }
  } else if (line == "lock" || line == "unlock") {
    whole.l_type = line == "lock" ? F_WRLCK : F_UNLCK;
    if (::fcntl(fd, F_SETLK, &whole) != 0) {
      fail("denied");
    } else {
      say("granted");
    }
  } else {
    usage();
  }
}

int keep(const char* path) {
  const int fd = ::open(path, O_RDWR | O_CLOEXEC);
  if (fd < 0) return fail("open");
  say("open");
  for (std::string line; std::getline(std::cin, line);) act(fd, line);
  return 0;
}

int fill(const char* dir, long count) {
  const int top = ::open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
  if (top < 0) return fail("open");
  for (long i = 0; i < count; ++i) {
    const std::string name = "entry-" + std::to_string(i);
    const int fd = ::openat(top, name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (fd < 0) return fail("create");
    ::close(fd);
  }
  say("%ld", count);
  return 0;
}

int count(const char* path) {
  DIR* const dir = ::opendir(path);
  if (dir == nullptr) return fail("opendir");
  std::vector<std::string> names;
  errno = 0;
  while (const struct dirent* entry = ::readdir(dir)) {
    const std::string_view name{entry->d_name};
    if (name != "." && name != "..") names.emplace_back(name);
    errno = 0;
  }
  if (errno != 0) return fail("readdir");
  ::closedir(dir);
  const std::size_t listed = names.size();
  std::sort(names.begin(), names.end());
  names.erase(std::unique(names.begin(), names.end()), names.end());
  say("%zu %zu", listed, names.size());
  return 0;
}

int copy(const char* from, const char* to) {
  const int in = ::open(from, O_RDONLY | O_CLOEXEC);
  const int out = ::open(to, O_WRONLY | O_CLOEXEC);
  if (in < 0 || out < 0) return fail("open");
  std::string line;
  std::getline(std::cin, line);
  struct stat st {};
  if (::fstat(in, &st) != 0) return fail("stat");
  long long copied = 0;
  while (copied < st.st_size) {
    const ssize_t n = ::copy_file_range(in, nullptr, out, nullptr,
                                        static_cast<std::size_t>(st.st_size - copied), 0);
    if (n < 0) return fail("copy");
    if (n == 0) break;
    copied += n;
  }
  say("%lld", copied);
  return 0;
}

int inode(const char* path) {
  struct stat st {};
  if (::lstat(path, &st) != 0) return fail("stat");
  say("%llu", static_cast<unsigned long long>(st.st_ino));
  return 0;
}

int handle(const char* path) {
  alignas(struct file_handle) std::array<char, sizeof(struct file_handle) + MAX_HANDLE_SZ> room{};
  auto* const made = reinterpret_cast<struct file_handle*>(room.data());
  made->handle_bytes = MAX_HANDLE_SZ;
  int mount_id = 0;
  if (::name_to_handle_at(AT_FDCWD, path, made, &mount_id, 0) != 0) return fail("handle");
  std::string hex;
  const unsigned char* const bytes = made->f_handle;
  for (unsigned i = 0; i < made->handle_bytes; ++i) {
    std::array<char, 3> two{};
    std::snprintf(two.data(), two.size(), "%02x", bytes[i]);
    hex += two.data();
  }
  say("%d %s", made->handle_type, hex.c_str());
  return 0;
}

int loop(const char* path, long pairs) {
  const int fd = ::open(path, O_RDWR | O_CLOEXEC);
  if (fd < 0) return fail("open");
  const auto began = std::chrono::steady_clock::now();
  for (long i = 0; i < pairs; ++i) {
    struct flock lock = lock_of(F_WRLCK, "0", "1");
    if (::fcntl(fd, F_SETLK, &lock) != 0) return fail("denied");
    lock.l_type = F_UNLCK;
    if (::fcntl(fd, F_SETLK, &lock) != 0) return fail("denied");
  }
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - began;
  say("%.1f", static_cast<double>(pairs) / took.count());
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string_view> args(argv + 1, argv + argc);
  const std::size_t n = args.size();
  if (n < 2) usage();
  const std::string_view verb = args[0];
  if (verb == "hold" && (n == 5 || (n == 6 && args[5] == "wait"))) {
    return hold(argv[2], argv[3], argv[4], argv[5], n == 6, true);
  }
  if (verb == "try" && n == 5) return hold(argv[2], argv[3], argv[4], argv[5], false, false);
  if (verb == "test" && n == 5) return test(argv[2], argv[3], argv[4], argv[5]);
  if (verb == "keep" && n == 2) return keep(argv[2]);
  if (verb == "fill" && n == 3) return fill(argv[2], std::atol(argv[3]));
  if (verb == "count" && n == 2) return count(argv[2]);
  if (verb == "inode" && n == 2) return inode(argv[2]);
  if (verb == "handle" && n == 2) return handle(argv[2]);
  if (verb == "copy" && n == 3) return copy(argv[2], argv[3]);
  if (verb == "loop" && n == 3) return loop(argv[2], std::atol(argv[3]));
  usage();
}
