#include "crash/mount_contention.h"

#include <fcntl.h>
#include <sched.h>
#include <unistd.h>

#include <cerrno>
#include <optional>
#include <random>
#include <stdexcept>
#include <vector>

namespace latchfs::locktest {
namespace {

bool mount_is_gone(int err) {
  // ECANCELED: what was on its way to a ring. (So EINTR may be, of any call: it is tried again.)
  return err == ENOTCONN || err == ECONNABORTED || err == ECANCELED || err == EIO || err == ENODEV;
}

// Tells others what is held, and notices what cannot be.
class Claim {
 public:
  Claim(Arena& arena, int side, unsigned cell, bool exclusive)
      : arena_{arena}, side_{side}, cell_{cell}, exclusive_{exclusive} {
    const int before = own().fetch_add(1);
    if ((exclusive && before != 0) || conflicts()) ++arena_.violations;
  }
  ~Claim() { own().fetch_sub(1); }
  Claim(const Claim&) = delete;
  Claim& operator=(const Claim&) = delete;

 private:
  std::atomic<int>& own() {
    return exclusive_ ? arena_.writers[side_][cell_] : arena_.readers[side_][cell_];
  }
  // Somebody else's on this side, or on the other while both live.
  bool conflicts() {
    if (arena_.writers[side_][cell_] > (exclusive_ ? 1 : 0)) return true;
    if (exclusive_ && arena_.readers[side_][cell_] > 0) return true;
    const int there = 1 - side_;
    const bool there_now =
        arena_.writers[there][cell_] > 0 || (exclusive_ && arena_.readers[there][cell_] > 0);
    // Looked at last: it is said before the daemon dies.
    return there_now && !arena_.side_dead[there] && !arena_.side_dead[side_];
  }

  Arena& arena_;
  int side_;
  unsigned cell_;
  bool exclusive_;
};

class Fighter {
 public:
  Fighter(Arena& arena, const Contender& who) : arena_{arena}, who_{who}, random_{who.seed} {}

  int fight() {
    if (!open_all()) return kOrphaned;
    while (!arena_.stop) {
      if (const std::optional<int> status = one_lock()) return *status;
    }
    return 0;
  }

 private:
  bool open_all() {
    const unsigned files = who_.type == LockType::kFlock ? kCells : 1;
    const char* const names = who_.type == LockType::kFlock ? "flock" : "bytes";
    fds_.clear();
    for (unsigned i = 0; i < files; ++i) {
      const std::string path = who_.dir + "/" + names + std::to_string(i);
      UniqueFd fd;
      do {
        fd.reset(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666));
      } while (!fd && errno == EINTR);
      if (!fd && mount_is_gone(errno)) return false;
      if (!fd) throw std::runtime_error(path + ": cannot be opened");
      fds_.push_back(std::move(fd));
    }
    return true;
  }

  // The exit status, if this was the last.
  std::optional<int> one_lock() {
    const auto cell = static_cast<unsigned>(random_() % kCells);
    const bool exclusive = random_() % 3 != 0;
    const bool wait = random_() % 4 != 0;
    const int fd = fds_[who_.type == LockType::kFlock ? cell : 0].get();
    const off_t start = cell;
    const int err = wait ? lock_waiting(fd, who_.type, exclusive, start, 1)
                         : lock_now(fd, who_.type, exclusive, start, 1);
    if (mount_is_gone(err)) return kOrphaned;
    if (err == EINTR || err == EAGAIN) return std::nullopt;
    if (err != 0) return unexpected(err);
    {
      const unsigned claimed = who_.type == LockType::kFlock ? kCells + cell : cell;
      const Claim claim{arena_, who_.side, claimed, exclusive};
      ++arena_.grants[who_.number];
      if (random_() % 8 == 0) ::sched_yield();
    }
    if (who_.dies_at_will && random_() % 40 == 0) return 0;
    return give_back(fd, start);
  }

  // By unlocking or by closing; by closing and opening everything now and then.
  std::optional<int> give_back(int fd, off_t start) {
    if (random_() % 16 == 0) return open_all() ? std::nullopt : std::optional{kOrphaned};
    int err{};
    do {
      err = unlock(fd, who_.type, start, 1);
    } while (err == EINTR);
    if (mount_is_gone(err)) return kOrphaned;
    return err == 0 ? std::nullopt : unexpected(err);
  }

  std::optional<int> unexpected(int err) {
    ++arena_.errors;
    arena_.last_error = err;
    return 1;
  }

  Arena& arena_;
  const Contender& who_;
  std::mt19937_64 random_;
  std::vector<UniqueFd> fds_;
};

}  // namespace

int contend(Arena& arena, const Contender& who) {
  handle_user_signals();
  return Fighter{arena, who}.fight();
}

}  // namespace latchfs::locktest
