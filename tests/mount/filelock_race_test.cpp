// One user locks and unlocks a file over and over while another modifies it by all ways there are,
// through two mounts: what is locked stays as it is, in every one of many rounds.
//
// LATCHFS_TEST_SECONDS: how long (default 15), but never under kLeast rounds. A filelock that is
// refused because the other user maps the file, or because the file has no name just then, is asked
// for again.
#include <gtest/gtest.h>
#include <sys/prctl.h>
#include <sys/stat.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <optional>
#include <random>
#include <string>

#include "support/filelock_hammers.h"
#include "support/filelock_state.h"

namespace latchfs::test {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kLeast = 20;
constexpr std::chrono::seconds kMost{240};  // a machine on which nothing gets on

std::chrono::seconds time_to_run() {
  const char* text = std::getenv("LATCHFS_TEST_SECONDS");
  return std::chrono::seconds{text != nullptr ? std::atoi(text) : 15};
}

// Each record is of one value.
std::optional<std::size_t> torn_record(const std::string& text) {
  for (std::size_t at = 0; at < text.size(); at += kRecord) {
    const std::size_t size = std::min(kRecord, text.size() - at);
    if (size < kRecord || text.find_first_not_of(text[at], at) < at + size) return at;
  }
  return std::nullopt;
}

// All that a modification would change, by one path.
struct Sample {
  FileLook look;
  std::string inode;
  bool operator==(const Sample&) const = default;
};
Sample sample(const std::string& path) {
  struct stat st {};
  if (::lstat(path.c_str(), &st) != 0) return {{}, std::strerror(errno)};
  return {look_at(path), "ino " + std::to_string(st.st_ino) + " nlink " +
                             std::to_string(st.st_nlink) + " uid " + std::to_string(st.st_uid) +
                             " size " + std::to_string(st.st_size)};
}

// Now and then, modifications that have looked whether they may are held for some milliseconds:
// else hardly one is in flight for as long as a filelock takes. Made before the daemons start.
class Gate {
 public:
  Gate() {
    path_ = place_.path() + "/gate";
    ::setenv("LATCHFS_FAULT", ("fuse.change_admitted=hold:" + path_).c_str(), 1);
    keeper_ = ::fork();
    if (keeper_ != 0) return;
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (;;) {
      std::ofstream{path_};
      ::chmod(path_.c_str(), 0666);
      ::usleep(25'000);
      ::unlink(path_.c_str());
      ::usleep(60'000);
    }
  }
  ~Gate() {
    ::unsetenv("LATCHFS_FAULT");
    ::kill(keeper_, SIGKILL);
    ::waitpid(keeper_, nullptr, 0);
  }
  Gate(const Gate&) = delete;
  Gate& operator=(const Gate&) = delete;

 private:
  const TempDir place_;  // last to go, and the gate with it
  std::string path_;
  pid_t keeper_{};
};

class FilelockRace : public ::testing::Test {
 protected:
  FilelockRace() {
    ::chmod(first_.source().c_str(), 0777);
    const std::string text(8 * kRecord, 'x');
    std::ofstream{file()} << text;
    if (::chown(file().c_str(), kOther, kOther) != 0 || ::chmod(file().c_str(), 0666) != 0) {
      throw std::runtime_error("needs root");
    }
    hammers_.emplace(kOther, std::vector{first_.mount(), second_.mount()}, "f");
  }
  [[nodiscard]] std::string file() const { return first_.source() + "/f"; }
  [[nodiscard]] std::string backup() const { return first_.source() + "/.f.asp-bak"; }
  [[nodiscard]] const MountFixture& mount(int round) const {
    return round % 2 == 0 ? first_ : second_;
  }
  std::size_t below(std::size_t n) { return random_() % n; }

  // Whether it was; a refusal that is no fault of the daemon's otherwise.
  bool lock(const MountFixture& by);
  void expect_it_holds();
  void write_as_locker(const MountFixture& by);
  void unlock(const MountFixture& by, bool revert);
  void round(int number);
  void map_round(const MountFixture& by);

  const Gate gate_;
  const MountFixture first_;
  const MountFixture second_{first_.another()};
  std::optional<Hammers> hammers_;
  std::minstd_rand random_{std::random_device{}()};
  int locked_{}, mapped_{}, nameless_{}, busy_{};
};

bool FilelockRace::lock(const MountFixture& by) {
  const Answer answer = ask_as(kLocker, by.mount(), "filelock", "/f\n");
  if (answer.err == 0) return true;
  if (answer.err == EBUSY && has(answer.reply, R"("code": "409")") &&
      has(answer.reply, "process ")) {
    bool named = false;
    for (const pid_t pid : hammers_->maps()) {
      named |= has(answer.reply, "process " + std::to_string(pid) + " ");
    }
    EXPECT_TRUE(named) << answer.reply;
    ++mapped_;
  } else if (answer.err == ENOENT || answer.err == ESTALE) {
    ++nameless_;
  } else {
    ADD_FAILURE() << "filelock: " << std::strerror(answer.err) << ": " << answer.reply;
  }
  return false;
}

// From the return of filelock on, whoever looks at it from wherever.
void FilelockRace::expect_it_holds() {
  HammerBoard& board = hammers_->board();
  const std::array<std::string, 3> paths{file(), first_.mount() + "/f", second_.mount() + "/f"};
  std::array<Sample, 3> before;
  for (std::size_t i = 0; i < paths.size(); ++i) before.at(i) = sample(paths.at(i));
  struct stat st {};
  ASSERT_EQ(::stat(paths[1].c_str(), &st), 0) << "what is locked has its name";
  board.ino = st.st_ino;
  ++board.epoch;
  for (const Sample& view : before) {
    EXPECT_EQ(view.look, before[0].look) << difference(view.look, before[0].look);
  }
  if (const auto at = torn_record(before[0].look.content)) {
    ADD_FAILURE() << "a torn write at byte " << *at;
  }
  const auto until = Clock::now() + std::chrono::milliseconds{5 + below(30)};
  do {
    for (std::size_t i = 0; i < paths.size(); ++i) {
      const Sample now = sample(paths.at(i));
      ASSERT_EQ(now.inode, before.at(i).inode) << paths.at(i);
      ASSERT_EQ(now.look, before.at(i).look)
          << paths.at(i) << ": " << difference(now.look, before.at(i).look);
    }
    ::usleep(1000);
  } while (Clock::now() < until);
  EXPECT_EQ(board.wrong, 0u) << board.what.data();
}

void FilelockRace::write_as_locker(const MountFixture& by) {
  HammerBoard& board = hammers_->board();
  const std::string text(kRecord, 'L');
  EXPECT_EQ(as(kLocker,
               [&] {
                 const int fd = ::open((by.mount() + "/f").c_str(), O_WRONLY | O_CLOEXEC);
                 if (fd < 0) return errno;
                 const auto at = static_cast<off_t>(kRecord);
                 if (::pwrite(fd, text.data(), text.size(), at) < 0) return errno;
                 return ::ftruncate(fd, static_cast<off_t>(4 * kRecord)) != 0 ? errno : 0;
               }),
            0);
  EXPECT_EQ(content(file()).substr(kRecord, kRecord), text);
  EXPECT_EQ(board.wrong, 0u) << board.what.data();
}

void FilelockRace::unlock(const MountFixture& by, bool revert) {
  HammerBoard& board = hammers_->board();
  // Nobody is in the way of looking at what comes back.
  if (revert) hammers_->pause(true, true);
  ++board.epoch;
  const FileLook old = look_at(backup());
  const Answer answer = ask_as(
      kLocker, by.mount(), "unfilelock",
      std::string{R"({"paths": [{"path": "/f", "revert": )"} + (revert ? "true" : "false") + "}]}");
  EXPECT_EQ(answer.err, 0) << answer.reply;
  if (revert) {
    const FileLook after = look_at(file());
    EXPECT_EQ(after, old) << difference(after, old);
    hammers_->resume();
  }
}

void FilelockRace::round(int number) {
  if (!lock(mount(number))) {
    if (++busy_ % 4 == 0) hammers_->pause(false, true);  // to get on
    return;
  }
  ++locked_;
  const FileLook saved = look_at(backup());
  const FileLook now = look_at(file());
  EXPECT_EQ(now, saved) << difference(now, saved);
  ASSERT_NO_FATAL_FAILURE(expect_it_holds());
  if (below(4) == 0) {
    write_as_locker(mount(number + 1));
    EXPECT_EQ(look_at(backup()), saved);
    hammers_->board().epoch += 2;
  }
  unlock(mount(static_cast<int>(below(2))), below(3) == 0);
  hammers_->resume();
}

// While one of them has it mapped.
void FilelockRace::map_round(const MountFixture& by) {
  hammers_->pause(true, false);
  if (hammers_->hold_map()) {
    const int before = mapped_;
    EXPECT_FALSE(lock(by));
    EXPECT_EQ(mapped_, before + 1);
    EXPECT_FALSE(names_in(first_.source()).contains(".f.asp-bak"));
  }
  hammers_->release_map();
  hammers_->resume();
}

TEST_F(FilelockRace, WhatIsLockedStaysAsItIsWhoeverHammers) {
  const auto began = Clock::now();
  const auto end = began + time_to_run();
  const bool maps = first_.io() != "direct";
  for (int number = 0; !HasFailure(); ++number) {
    if (number % 64 == 8 && maps) {
      ASSERT_NO_FATAL_FAILURE(map_round(mount(number / 64)));
    }
    ASSERT_NO_FATAL_FAILURE(round(number));
    const bool enough = locked_ >= kLeast && (mapped_ != 0 || !maps);
    if (enough && Clock::now() >= end) break;
    ASSERT_LT(Clock::now(), began + kMost) << locked_ << " rounds";
  }
  EXPECT_EQ(hammers_->board().wrong, 0u) << hammers_->board().what.data();
  if (locked_ >= 5 * kLeast) {
    EXPECT_TRUE(hammers_->all_refused_and_done()) << hammers_->summary();
  }
  std::cout << locked_ << " times locked, " << mapped_ << " refused for a mapping, " << nameless_
            << " without a name\n"
            << hammers_->summary() << "\n";
}

}  // namespace
}  // namespace latchfs::test
