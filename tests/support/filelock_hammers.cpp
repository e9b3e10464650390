#include "support/filelock_hammers.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <functional>
#include <new>
#include <random>
#include <stdexcept>
#include <utility>

#include "base/unique_fd.h"

namespace latchfs::test {
namespace {

constexpr std::size_t kPage = 4096;
constexpr std::size_t kRecords = 64;           // that are written to at random
constexpr off_t kMapped = 64 * kRecord * 2;    // a page that nobody else writes to
constexpr std::chrono::seconds kPatience{30};  // with a hammer that does not come to rest

// One process' life.
class Hammering {
 public:
  Hammering(HammerBoard& board, std::size_t which, Hammer hammer, std::vector<std::string> mounts,
            std::string file)
      : board_{board},
        me_{board.of.at(which)},
        hammer_{hammer},
        mounts_{std::move(mounts)},
        file_{std::move(file)},
        random_{static_cast<unsigned>(which) + 1} {}

  [[noreturn]] void run() {
    ::umask(0);
    for (;;) {
      me_.idle = false;
      if (paused()) {
        me_.idle = true;
        while (paused()) ::usleep(200);
        continue;
      }
      once();
      ::usleep(static_cast<useconds_t>(below(rest())));
    }
  }

 private:
  bool paused() { return hammer_ == Hammer::kMap ? board_.pause_maps : board_.pause; }
  std::size_t below(std::size_t n) { return random_() % n; }
  std::string path(const std::string& name) { return mounts_[below(mounts_.size())] + "/" + name; }
  std::string path() { return path(file_); }
  std::string record() { return std::string(kRecord, static_cast<char>('!' + below(90))); }
  off_t place() { return static_cast<off_t>(below(kRecords) * kRecord); }

  // Does something that modifies the file, or another: is_it() says so where that is not clear.
  // harmless: what it may get besides refusals.
  void attempt(const char* what, const std::function<long()>& modify,
               const std::function<bool()>& is_it, int harmless = 0) {
    const std::uint64_t before = board_.epoch;
    const bool meant = is_it();
    errno = 0;
    const int err = modify() < 0 ? errno : 0;
    if (err == 0) ++me_.done;
    if (before % 2 == 0 || !meant || board_.epoch != before) return;
    if (err == EACCES || err == EPERM) {
      ++me_.refused;
    } else if (err == 0 || err != harmless) {
      ++board_.wrong;
      if (!board_.told.exchange(true)) {
        std::snprintf(board_.what.data(), board_.what.size(), "%s (%s) while filelocked: %s", what,
                      name_of(hammer_), err == 0 ? "it succeeded" : std::strerror(err));
      }
    }
  }
  // By a name that leads to what is locked as long as it is.
  void attempt(const char* what, const std::function<long()>& modify, int harmless = 0) {
    attempt(
        what, modify, [] { return true; }, harmless);
  }
  // By a descriptor of it, or of what had its name before.
  void attempt_by(int fd, const char* what, const std::function<long()>& modify) {
    attempt(what, modify, [&] {
      struct stat st {};
      return ::fstat(fd, &st) == 0 && st.st_ino == board_.ino;
    });
  }
  // Names come and go in bursts: between them one file is there for a while, so that descriptors
  // from before a filelock are of what is locked.
  std::size_t rest() {
    const bool names =
        hammer_ == Hammer::kReplace || hammer_ == Hammer::kMoveAway || hammer_ == Hammer::kRecreate;
    return names && below(6) == 0 ? 60'000 : 1000;
  }
  // One that stays open for a while.
  int writer(int flags = 0) {
    struct stat st {};
    if (!writer_ || ::fstat(writer_.get(), &st) != 0 || st.st_nlink == 0 || below(40) == 0) {
      writer_mount_ = mounts_[below(mounts_.size())];
      writer_ =
          UniqueFd{::open((writer_mount_ + "/" + file_).c_str(), O_WRONLY | O_CLOEXEC | flags)};
    }
    return writer_ ? writer_.get() : -1;
  }
  UniqueFd opened(int flags) { return UniqueFd{::open(path().c_str(), flags | O_CLOEXEC)}; }
  void make(const std::string& at, int flags) {
    const UniqueFd fd{::open(at.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | flags, 0666)};
    if (!fd) return;
    const std::string text = record();
    for (std::size_t i = 0; i < 1 + below(24); ++i) {
      if (::pwrite(fd.get(), text.data(), text.size(), static_cast<off_t>(i * kRecord)) < 0) return;
    }
  }

  void once() {
    switch (hammer_) {
      case Hammer::kWrite:
        return write();
      case Hammer::kAppend:
        return append();
      case Hammer::kCut:
        return cut();
      case Hammer::kPunch:
        return punch();
      case Hammer::kReplace:
        return replace();
      case Hammer::kMoveAway:
        return move_away();
      case Hammer::kRecreate:
        return recreate();
      case Hammer::kChange:
        return change();
      case Hammer::kLink:
        return link();
      case Hammer::kMap:
        return map();
    }
  }

  void write() {
    const int fd = writer();
    if (fd < 0) return;
    const std::string text = record();
    attempt_by(fd, "pwrite", [&] { return ::pwrite(fd, text.data(), text.size(), place()); });
  }
  void append() {
    const int fd = writer(O_APPEND);
    struct stat st {};
    if (fd < 0 || ::fstat(fd, &st) != 0 || st.st_size > kMapped / 2) return;
    const std::string text = record();
    attempt_by(fd, "append", [&] { return ::write(fd, text.data(), text.size()); });
  }
  void cut() {
    const auto size = static_cast<off_t>(below(kRecords) * kRecord);
    switch (below(3)) {
      case 0: {
        UniqueFd fd;
        attempt(
            "O_TRUNC",
            [&]() -> long {
              fd = opened(O_WRONLY | O_TRUNC);
              return fd ? 0 : -1;
            },
            ENOENT);
        const std::string text = record();
        if (fd) {
          attempt_by(fd.get(), "write anew",
                     [&] { return ::pwrite(fd.get(), text.data(), text.size(), 0); });
        }
        return;
      }
      case 1: {
        const int fd = writer();
        if (fd >= 0) attempt_by(fd, "ftruncate", [&] { return ::ftruncate(fd, size); });
        return;
      }
      default:
        attempt("truncate", [&] {
          return ::truncate(path().c_str(), below(2) == 0 ? size : kMapped + off_t{kPage});
        });
    }
  }
  void punch() {
    const int fd = writer();
    if (fd < 0) return;
    if (below(2) == 0) {
      attempt_by(fd, "fallocate", [&] {
        return ::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, place(), kRecord);
      });
      return;
    }
    // (Between two mounts the kernel copies by itself, or not at all.)
    const std::string name = writer_mount_ + "/spare";
    UniqueFd spare{::open(name.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666)};
    const std::string text(kPage, 's');
    if (!spare || ::pwrite(spare.get(), text.data(), text.size(), 0) < 0) return;
    attempt_by(fd, "copy_file_range", [&] {
      loff_t from = 0;
      loff_t to = static_cast<loff_t>(below(4) * kPage);
      return ::copy_file_range(spare.get(), &from, fd, &to, kPage, 0);
    });
  }
  void replace() {
    const std::string mount = mounts_[below(mounts_.size())] + "/";
    make(mount + "new", O_TRUNC);
    attempt("rename over",
            [&] { return ::rename((mount + "new").c_str(), (mount + file_).c_str()); });
  }
  void move_away() {
    const std::string mount = mounts_[below(mounts_.size())] + "/";
    const std::string from = mount + file_;
    const std::string away = mount + "away";
    if (below(2) == 0) {
      make(mount + "other", 0);
      attempt("exchange", [&] {
        return ::syscall(SYS_renameat2, AT_FDCWD, from.c_str(), AT_FDCWD, (mount + "other").c_str(),
                         RENAME_EXCHANGE);
      });
      return;
    }
    attempt("rename away", [&] { return ::rename(from.c_str(), away.c_str()); });
    attempt(
        "rename back", [&] { return ::rename(away.c_str(), from.c_str()); }, ENOENT);
  }
  void recreate() {
    attempt("unlink", [&] { return ::unlink(path().c_str()); });
    attempt(
        "create",
        [&]() -> long {
          const UniqueFd fd{::open(path().c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666)};
          return fd ? 0 : -1;
        },
        EEXIST);
  }
  void change() {
    const std::string at = path();
    const timespec times[2] = {{0, UTIME_OMIT}, {static_cast<time_t>(below(1'000'000)), 0}};
    switch (below(4)) {
      case 0:
        return attempt("chmod", [&] { return ::chmod(at.c_str(), below(2) == 0 ? 0666 : 0676); });
      case 1:
        return attempt("utimensat", [&] { return ::utimensat(AT_FDCWD, at.c_str(), times, 0); });
      case 2:
        return attempt("setxattr", [&] {
          const char value = static_cast<char>('a' + below(26));
          return ::setxattr(at.c_str(), "user.hammer", &value, 1, 0);
        });
      default:
        return attempt(
            "removexattr", [&] { return ::removexattr(at.c_str(), "user.hammer"); }, ENODATA);
    }
  }
  // Nobody else has to do with that name.
  void link() {
    const std::string mount = mounts_[below(mounts_.size())] + "/";
    const std::string name = mount + "linked";
    attempt(
        "link", [&] { return ::link((mount + file_).c_str(), name.c_str()); }, EEXIST);
    attempt(
        "unlink of a link", [&] { return ::unlink(name.c_str()); },
        [&] {
          struct stat st {};
          return ::stat(name.c_str(), &st) == 0 && st.st_ino == board_.ino;
        });
  }
  void map() {
    const UniqueFd fd = opened(O_RDWR);
    struct stat st {};
    if (!fd || ::fstat(fd.get(), &st) != 0) return;
    void* const at = ::mmap(nullptr, kPage, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), kMapped);
    if (at == MAP_FAILED) return;
    if (board_.hold_map) {
      ++board_.held;
      while (board_.hold_map) ::usleep(500);
      --board_.held;
    } else {
      attempt_by(fd.get(), "store", [&]() -> long {
        // (Where the file has no such page, a plain store would be a SIGBUS.)
        const std::string text = record();
        const UniqueFd in{::memfd_create("record", MFD_CLOEXEC)};
        if (::pwrite(in.get(), text.data(), text.size(), 0) < 0) return 0;
        if (::pread(in.get(), at, text.size(), 0) < 0) {
          errno = EACCES;
          return -1;
        }
        const int done = ::msync(at, kPage, MS_SYNC);
        return done;
      });
    }
    ::munmap(at, kPage);
  }

  HammerBoard& board_;
  HammerBoard::One& me_;
  const Hammer hammer_;
  const std::vector<std::string> mounts_;
  const std::string file_;
  std::minstd_rand random_;
  UniqueFd writer_;
  std::string writer_mount_;
};

void wait_for(const std::function<bool()>& fn, const char* what) {
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  while (!fn()) {
    if (std::chrono::steady_clock::now() > deadline) throw std::runtime_error(what);
    ::usleep(200);
  }
}

}  // namespace

const char* name_of(Hammer hammer) {
  static constexpr std::array<const char*, kHammers> kNames{
      "write",     "append",   "cut",    "punch", "replace",
      "move away", "recreate", "change", "link",  "map"};
  return kNames.at(static_cast<std::size_t>(hammer));
}

Hammers::Hammers(uid_t uid, std::vector<std::string> mounts, std::string file) {
  void* const shared = ::mmap(nullptr, sizeof(HammerBoard), PROT_READ | PROT_WRITE,
                              MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (shared == MAP_FAILED) throw std::runtime_error("no shared memory");
  board_ = new (shared) HammerBoard{};
  std::vector<Hammer> all;
  for (std::size_t i = 0; i < kHammers; ++i) all.push_back(static_cast<Hammer>(i));
  all.push_back(Hammer::kWrite);
  all.push_back(Hammer::kMap);
  const pid_t parent = ::getpid();
  for (std::size_t i = 0; i < all.size(); ++i) {
    const pid_t child = ::fork();
    if (child < 0) throw std::runtime_error("fork");
    if (child == 0) {
      if (::setgid(uid) != 0 || ::setuid(uid) != 0) ::_exit(255);
      // (After that: another user's process forgets it.)
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      if (::getppid() != parent) ::_exit(254);
      Hammering{*board_, i, all[i], mounts, file}.run();
    }
    processes_.push_back({child, all[i]});
    if (all[i] == Hammer::kMap) map_pids_.push_back(child);
  }
}

Hammers::~Hammers() {
  for (const Process& process : processes_) ::kill(process.pid, SIGKILL);
  for (const Process& process : processes_) ::waitpid(process.pid, nullptr, 0);
  ::munmap(board_, sizeof(HammerBoard));
}

void Hammers::pause(bool others, bool maps) {
  if (others) board_->pause = true;
  if (maps) board_->pause_maps = true;
  wait_for(
      [&] {
        bool idle = true;
        for (std::size_t i = 0; i < processes_.size(); ++i) {
          const bool is_map = processes_[i].hammer == Hammer::kMap;
          if (is_map ? maps : others) idle &= board_->of.at(i).idle;
        }
        return idle;
      },
      "a hammer does not come to rest");
}
void Hammers::resume() {
  board_->pause = false;
  board_->pause_maps = false;
}

bool Hammers::hold_map() {
  board_->hold_map = true;
  for (int i = 0; i < 500 && board_->held == 0; ++i) ::usleep(2000);
  return board_->held != 0;
}
void Hammers::release_map() {
  board_->hold_map = false;
  wait_for([&] { return board_->held == 0; }, "a mapping does not go");
}

std::string Hammers::summary() const {
  std::string text;
  for (std::size_t i = 0; i < processes_.size(); ++i) {
    const auto& one = board_->of.at(i);
    text += std::string{name_of(processes_[i].hammer)} + " " + std::to_string(one.done) + "/" +
            std::to_string(one.refused) + "  ";
  }
  return text + "(succeeded/refused)";
}

bool Hammers::all_refused_and_done() const {
  bool all = true;
  for (std::size_t i = 0; i < processes_.size(); ++i) {
    const auto& one = board_->of.at(i);
    const bool maps = processes_[i].hammer == Hammer::kMap;
    all &= one.done != 0 && (maps || one.refused != 0);
  }
  return all;
}

}  // namespace latchfs::test
