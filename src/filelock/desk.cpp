#include "filelock/desk.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "base/fault_point.h"
#include "filelock/steps.h"
#include "posix/credentials.h"
#include "posix/sys.h"

namespace latchfs::filelock {
namespace {

constexpr int kDirectory = O_RDONLY | O_DIRECTORY;

// A file or directory that a journal names.
enum class Found : std::uint8_t { kYes, kGone, kUnknown };
struct Lookup {
  Found found{Found::kUnknown};
  UniqueFd fd;
};

// By handle, through an ordinary descriptor on what may be its file system.
Lookup by_handle(const posix::FileHandle& handle, int anchor) {
  if (handle.empty()) return {};
  auto fd = handle.open(anchor);
  if (fd) return {Found::kYes, std::move(*fd)};
  return {fd.error() == errno_code(ESTALE) ? Found::kGone : Found::kUnknown, {}};
}

Lookup find_dir(const JournalEntry& entry, int anchor) {
  Lookup dir = by_handle(entry.dir_handle, anchor);
  if (dir.found != Found::kYes) return dir;
  const auto st = posix::stat_of(dir.fd.get());
  auto open = reopen(dir.fd.get(), kDirectory);
  if (!st || !open || st->st_ino != entry.dir.ino) return {};
  // A removed directory has nothing in it.
  if (st->st_nlink == 0) return {Found::kGone, {}};
  return {Found::kYes, std::move(*open)};
}

// By handle, else by the name it had: with no handles, nothing tells that it is gone.
Lookup find_file(const JournalEntry& entry, int dir) {
  Lookup file = by_handle(entry.file_handle, dir);
  if (file.found == Found::kYes) {
    const auto st = posix::stat_of(file.fd.get());
    if (!st || st->st_ino != entry.file.ino || !S_ISREG(st->st_mode)) return {};
    if (st->st_nlink == 0) return {Found::kGone, {}};
    return file;
  }
  if (file.found == Found::kGone) return file;
  UniqueFd named{::openat(dir, entry.name.c_str(), O_PATH | O_NOFOLLOW | O_CLOEXEC)};
  if (!named) return {};
  const auto st = posix::stat_of(named.get());
  if (!st || posix::file_id(*st) != entry.file) return {};
  return {Found::kYes, std::move(named)};
}

// A device's number may be another's after a reboot: then only what carries the lock's id shows
// that this is the directory meant.
bool has_traces(const JournalEntry& entry, int dir, int file) {
  if (file >= 0) {
    const auto mark = read_mark(file);
    if (mark && *mark && (*mark)->id == entry.id) return true;
  }
  const auto names = side_names(entry.name);
  if (!names) return false;
  for (const std::string& name : {names->backup, names->metadata, temporary_name(entry.id)}) {
    const auto side = look_at_side(dir, name, entry.id);
    if (side && side->state == SideState::kOurs) return true;
  }
  return false;
}

enum class Settled : std::uint8_t { kYes, kLeft, kHeld, kFailed };

// Of a journal that nobody holds, in the place of `anchor`, an ordinary descriptor.
Settled settle_left(const Journal::StateDir& state, const JournalEntry& entry, int anchor) {
  const auto here = posix::stat_of(anchor);
  if (!here) return Settled::kLeft;
  const bool same_device = here->st_dev == entry.file.dev;
  const Lookup dir = find_dir(entry, anchor);
  // Nothing can be in a directory that is gone; the lock itself, if there is one, is on the file.
  if (dir.found == Found::kGone && same_device) return Settled::kYes;
  if (dir.found != Found::kYes) return Settled::kLeft;
  const Lookup file = find_file(entry, dir.fd.get());
  if (file.found == Found::kUnknown) return Settled::kLeft;
  std::optional<Journal> present;
  if (!same_device) {
    if (!has_traces(entry, dir.fd.get(), file.fd.get())) return Settled::kLeft;
    // Its journal has another name by now.
    auto taken = Journal::take(state, {here->st_dev, entry.file.ino}, 0);
    if (!taken) return Settled::kHeld;
    present.emplace(std::move(*taken));
  }
  const auto settled = settle(entry, {dir.fd.get(), file.fd.get(), entry.name});
  if (settled) return Settled::kYes;
  log::error("{}: what was begun with its filelock cannot be settled now: {}",
             in_quotes(entry.name), settled.failure().words);
  return Settled::kFailed;
}

std::vector<std::string> journals_in(int state) {
  std::vector<std::string> names;
  const int fd = ::openat(state, ".", kDirectory | O_CLOEXEC);
  if (fd < 0) return names;
  DIR* const dir = ::fdopendir(fd);
  if (dir == nullptr) {
    ::close(fd);
    return names;
  }
  while (const struct dirent* item = ::readdir(dir)) {
    if (is_journal_name(item->d_name)) names.emplace_back(item->d_name);
  }
  ::closedir(dir);
  return names;
}

Failure unsettled(std::string_view why) {
  return refused(EBUSY,
                 fmt::format("what was begun with it before cannot be settled from here: {}", why));
}

// What a dead one had begun with the file at hand.
Outcome<void> settle_here(const JournalEntry& entry, int dir, int file) {
  const auto dir_st = posix::stat_of(dir);
  if (!dir_st) return failed(dir_st.error(), "its directory cannot be looked at");
  // An inode number whose old file is gone is a new one's.
  bool gone = false;
  if (!entry.file_handle.empty()) {
    const auto handle = posix::FileHandle::of(file);
    gone = handle && *handle != entry.file_handle;
  }
  Lookup there;
  int where = dir;
  if (posix::file_id(*dir_st) != entry.dir) {
    there = find_dir(entry, dir);
    if (there.found == Found::kGone) return {};
    if (there.found == Found::kUnknown) return unsettled("it began in another directory");
    where = there.fd.get();
  }
  return settle(entry, {where, gone ? -1 : file, entry.name});
}

}  // namespace

Outcome<Desk> Desk::open(const std::string& state) {
  posix::become_daemon();
  if (::mkdir(state.c_str(), S_IRWXU) != 0 && errno != EEXIST) {
    return failed(last_errno(), in_quotes(state) + " cannot be made");
  }
  UniqueFd fd{::open(state.c_str(), kDirectory | O_NOFOLLOW | O_CLOEXEC)};
  if (!fd) return failed(last_errno(), in_quotes(state) + " cannot be opened");
  const auto st = posix::stat_of(fd.get());
  if (!st) return failed(st.error(), in_quotes(state) + " cannot be looked at");
  if (st->st_uid != ::geteuid()) return refused(EPERM, in_quotes(state) + " is another user's");
  if ((st->st_mode & (S_IWGRP | S_IWOTH)) != 0) {
    return refused(EPERM, in_quotes(state) + " can be written by others");
  }
  return Desk{std::make_shared<const UniqueFd>(std::move(fd))};
}

Outcome<Session> Desk::begin(const Place& place, std::int64_t deadline_ns) const {
  posix::become_daemon();
  if (!is_name(place.name)) return refused(EINVAL, "that is no file name");
  auto dir = reopen(place.dir, kDirectory);
  if (!dir) return failed(dir.error(), "its directory cannot be opened");
  UniqueFd file{::fcntl(place.file, F_DUPFD_CLOEXEC, 0)};
  if (!file) return failed(last_errno(), "it cannot be kept open");
  const auto st = posix::stat_of(file.get());
  if (!st) return failed(st.error(), "it cannot be looked at");
  auto journal = Journal::take(state_, posix::file_id(*st), deadline_ns);
  if (!journal && journal.error() == errno_code(EBUSY)) {
    return refused(EBUSY, "its filelock is being changed by another request");
  }
  if (!journal) return failed(journal.error(), "the journal cannot be opened");
  const auto entry = journal->read();
  if (!entry) return failed(entry.error(), "the journal cannot be read");
  if (*entry) {
    if (auto r = settle_here(**entry, dir->get(), file.get()); !r) return r.failure();
  }
  if (auto r = journal->clear(); !r) return failed(r.error(), "the journal cannot be written");
  struct stat named {};
  if (::fstatat(dir->get(), place.name.c_str(), &named, AT_SYMLINK_NOFOLLOW) != 0 ||
      posix::file_id(named) != posix::file_id(*st)) {
    return refused(ESTALE, "its name is no longer its own");
  }
  fault_point("filelock.begun");
  return Session{std::move(*journal), std::move(*dir), std::move(file), place.name};
}

std::vector<FileId> Desk::abandoned() const {
  posix::become_daemon();
  std::vector<FileId> files;
  for (const std::string& name : journals_in(state_->get())) {
    const auto journal = Journal::take_left(state_, name);
    if (!journal) continue;
    const auto entry = journal->read();
    if (entry && *entry) files.push_back((*entry)->file);
  }
  return files;
}

Recovered Desk::recover(int root, const std::vector<FileId>* only) const {
  posix::become_daemon();
  Recovered recovered;
  const auto anchor = reopen(root, O_RDONLY);
  if (!anchor) return recovered;
  for (const std::string& name : journals_in(state_->get())) {
    auto journal = Journal::take_left(state_, name);
    if (!journal) {
      if (journal.error() == errno_code(EBUSY)) ++recovered.held;
      continue;
    }
    const auto entry = journal->read();
    if (!entry) continue;
    if (*entry && only != nullptr &&
        std::find(only->begin(), only->end(), (*entry)->file) == only->end()) {
      ++recovered.left;
      continue;
    }
    const Settled settled = *entry ? settle_left(state_, **entry, anchor->get()) : Settled::kYes;
    switch (settled) {
      case Settled::kYes:
        if (*entry) ++recovered.settled;
        if (auto r = journal->clear(); !r) ++recovered.failed;
        break;
      case Settled::kLeft:
        ++recovered.left;
        break;
      case Settled::kHeld:
        ++recovered.held;
        break;
      case Settled::kFailed:
        ++recovered.failed;
        break;
    }
  }
  return recovered;
}

}  // namespace latchfs::filelock
