// Where the shared table is found: one place a user, whatever others do there and whatever becomes
// of it. Needs root: each case has a /dev/shm of its own and acts as another user in it.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>

#include "base/log.h"
#include "support/store_fixture.h"

namespace latchfs::test {
namespace {

namespace fs = std::filesystem;

constexpr uid_t kUser = 65533;
constexpr const char* kShm = "/dev/shm";
const std::string kPrefix = "latchfs-" + std::to_string(kUser) + ".";
constexpr int kDone = 0;

// What fn returns, a step's number where it failed, from a child with a /dev/shm of its own: first
// prepare() as root, then fn() as kUser.
int as_user(
    const std::function<int()>& fn, const std::function<void()>& prepare = [] {}) {
  const pid_t pid = ::fork();
  if (pid == 0) {
    if (::unshare(CLONE_NEWNS) != 0 ||
        ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
        ::mount("none", kShm, "tmpfs", 0, "mode=1777") != 0) {
      ::_exit(99);
    }
    prepare();
    if (::setresgid(kUser, kUser, kUser) != 0 || ::setresuid(kUser, kUser, kUser) != 0) {
      ::_exit(98);
    }
    // The log's library sets itself up at its first line: not in a thread, where TSan, which does
    // not see into it, would have us guilty of a race.
    log::write(log::Level::kDebug, "as a user");
    ::_exit(fn());
  }
  int status = 0;
  ::waitpid(pid, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

Result<std::unique_ptr<ShmStore>> attach(GrantSink& sink) {
  ShmStore::Options options;
  options.table = "names";
  options.table_max = 64 << 20;
  return ShmStore::attach(options, sink);
}

enum class Answer : std::uint8_t { kGranted, kConflict, kError };

// The same lock in every store.
Answer take(LockService& store) {
  LockRequest r;
  r.file = {1, 1};
  r.owner = {store.mount_id(), 1, OwnerSpace::kRange};
  r.mode = LockMode::kExclusive;
  r.kind = LockKind::kPosix;
  const auto got = store.acquire(r, OnConflict::kRefuse, {});
  if (!got) return Answer::kError;
  return std::holds_alternative<Granted>(*got) ? Answer::kGranted : Answer::kConflict;
}

// A new mount joins the table in which the lock is taken.
bool joins() {
  RecordingSink sink;
  const auto store = attach(sink);
  return store && take(**store) == Answer::kConflict;
}

std::vector<fs::path> own_directories() {
  std::vector<fs::path> own;
  for (const auto& entry : fs::directory_iterator{kShm}) {
    struct stat st {};
    if (entry.path().filename().string().rfind(kPrefix, 0) == 0 && entry.is_directory() &&
        ::stat(entry.path().c_str(), &st) == 0 && st.st_uid == kUser) {
      own.push_back(entry.path());
    }
  }
  return own;
}

void remove_all_of_ours() {
  for (const auto& entry : fs::directory_iterator{kShm}) fs::remove_all(entry.path());
}

bool poll_until(const std::function<bool()>& what) {
  for (int tries = 0; tries < 3000; ++tries) {
    if (what()) return true;
    ::usleep(10'000);
  }
  return false;
}

TEST(TableName, DoesNotDependOnTheEnvironment) {
  EXPECT_EQ(kDone, as_user([] {
              RecordingSink sink;
              ::setenv("XDG_RUNTIME_DIR", kShm, 1);
              const auto first = attach(sink);
              if (!first || take(**first) != Answer::kGranted) return 1;
              ::unsetenv("XDG_RUNTIME_DIR");
              ::setenv("TMPDIR", kShm, 1);
              return joins() ? kDone : 2;
            }));
}

TEST(TableName, WhatOthersPutThereDoesNotCount) {
  const auto squat = [] {
    const std::string base = std::string{kShm} + "/" + kPrefix;
    fs::create_directory(base + "000000");
    fs::permissions(base + "000000", fs::perms::all);
    fs::create_directory_symlink("/tmp", base + "000001");
    std::ofstream{base + "000002"} << "a file\n";
    fs::create_directory(base.substr(0, base.size() - 1));
  };
  const auto mount = [] {
    RecordingSink sink;
    const auto first = attach(sink);
    if (!first || take(**first) != Answer::kGranted) return 1;
    const auto own = own_directories();
    if (own.size() != 1) return 2;
    struct stat st {};
    if (::stat(own.front().c_str(), &st) != 0 || (st.st_mode & 0777) != 0700) return 3;
    return joins() ? kDone : 4;
  };
  EXPECT_EQ(kDone, as_user(mount, squat));
}

TEST(TableName, ADirectoryThatOthersMayWriteIsRefused) {
  EXPECT_EQ(kDone, as_user([] {
              const std::string dir = kShm + ("/" + kPrefix) + "aaaaaa";
              fs::create_directory(dir);
              fs::permissions(dir, fs::perms::all);
              RecordingSink sink;
              if (attach(sink).error() != errno_code(EPERM)) return 1;
              fs::permissions(dir, fs::perms::owner_all);
              return attach(sink) ? kDone : 2;
            }));
}

TEST(TableName, OfTwoDirectoriesTheOneInUseIsTaken) {
  EXPECT_EQ(kDone, as_user([] {
              const std::string base = kShm + ("/" + kPrefix);
              fs::create_directory(base + "bbbbbb");
              fs::create_directory(base + "cccccc");
              RecordingSink sink;
              const auto first = attach(sink);
              if (!first || take(**first) != Answer::kGranted) return 1;
              fs::create_directory(base + "aaaaaa");
              fs::create_directory(base + "dddddd");
              if (!joins()) return 2;
              return own_directories().size() == 1 ? kDone : 3;
            }));
}

// A mount in a process of its own, which says what it was answered and stays until told.
struct Mount {
  pid_t pid{};
  UniqueFd answer;
};
struct Pipe {
  Pipe() {
    int ends[2];
    if (::pipe2(ends, O_CLOEXEC) == 0) {
      out = UniqueFd{ends[0]};
      in = UniqueFd{ends[1]};
    }
  }
  UniqueFd out, in;
};
Mount start_mount(Pipe& go, Pipe& quit) {
  Pipe answer;
  const pid_t pid = ::fork();
  if (pid != 0) return {pid, std::move(answer.out)};
  go.in.reset();  // the parent's death is an end of file
  quit.in.reset();
  char byte = 0;
  if (::read(go.out.get(), &byte, 1) != 1) ::_exit(1);
  {
    RecordingSink sink;
    const auto store = attach(sink);
    const Answer got = store ? take(**store) : Answer::kError;
    if (::write(answer.in.get(), &got, sizeof got) != sizeof got) ::_exit(1);
    // Until all have answered: the one that was granted must still hold it.
    if (::read(quit.out.get(), &byte, 1) != 1) ::_exit(1);
  }
  ::_exit(0);
}

// 0, or what went wrong.
int start_together(std::size_t count) {
  Pipe go;
  Pipe quit;
  std::vector<Mount> mounts;
  for (std::size_t i = 0; i < count; ++i) mounts.push_back(start_mount(go, quit));
  const std::string bytes(count, '!');
  if (::write(go.in.get(), bytes.data(), count) != static_cast<ssize_t>(count)) return 1;
  int granted = 0;
  int errors = 0;
  for (const Mount& mount : mounts) {
    Answer got{};
    if (::read(mount.answer.get(), &got, sizeof got) != sizeof got) return 2;
    granted += got == Answer::kGranted ? 1 : 0;
    errors += got == Answer::kError ? 1 : 0;
  }
  if (::write(quit.in.get(), bytes.data(), count) != static_cast<ssize_t>(count)) return 3;
  for (const Mount& mount : mounts) ::waitpid(mount.pid, nullptr, 0);
  if (errors != 0) return 4;
  return granted == 1 ? 0 : 5;
}

TEST(TableName, MountsThatStartAtOnceMeet) {
  EXPECT_EQ(kDone, as_user([] {
              for (int round = 0; round < 10; ++round) {
                if (const int wrong = start_together(6); wrong != 0) return wrong;
                if (!own_directories().empty()) return 6;
              }
              return kDone;
            }));
}

// As logind does at a user's last logout (RemoveIPC=).
TEST(TableName, WhenItIsRemovedNewMountsAreRefusedUntilTheLastOneEnds) {
  EXPECT_EQ(kDone, as_user([] {
              RecordingSink sink;
              auto first = attach(sink);
              auto second = attach(sink);
              if (!first || !second || take(**first) != Answer::kGranted) return 1;
              const auto refused = [&] { return attach(sink).error() == errno_code(ENOENT); };
              const auto put_back = [] {
                const auto own = own_directories();
                return own.size() == 1 && fs::exists(own.front() / "names.table") &&
                       fs::file_size(own.front() / "names.table") != 0;
              };
              for (int round = 0; round < 2; ++round) {
                remove_all_of_ours();
                if (!poll_until(put_back)) return 2;
                if (!refused()) return 3;
              }
              // They themselves go on, together.
              if (take(**second) != Answer::kConflict) return 4;
              first->reset();
              if (!poll_until(refused)) return 5;
              if (take(**second) != Answer::kGranted) return 6;
              second->reset();
              if (!attach(sink)) return 7;
              return own_directories().empty() ? kDone : 8;
            }));
}

TEST(TableName, AnOldTablesLastMountLeavesTheNewOneItsName) {
  EXPECT_EQ(kDone, as_user([] {
              RecordingSink sink;
              auto old = attach(sink);
              if (!old) return 1;
              remove_all_of_ours();
              const auto fresh = attach(sink);  // before the old one notices
              if (!fresh) return fresh.error() == errno_code(ENOENT) ? kDone : 2;
              if (take(**fresh) != Answer::kGranted) return 3;
              old->reset();
              return joins() ? kDone : 4;
            }));
}

}  // namespace
}  // namespace latchfs::test
