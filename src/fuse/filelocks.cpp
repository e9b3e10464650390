#include "fuse/filelocks.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <pwd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <utility>

#include "base/clock.h"
#include "base/fault_point.h"
#include "base/log.h"
#include "control/text.h"
#include "filelock/side_files.h"
#include "posix/attributes.h"
#include "posix/credentials.h"
#include "posix/mappings.h"
#include "posix/sys.h"

namespace latchfs::fuse {
namespace {

using control::FilelockFailure;

// How long another request on the same file, and what is in flight on it, is waited for.
constexpr std::int64_t kPatienceNs = 10'000'000'000;
constexpr std::int64_t kTickNs = 1'000'000'000;
// How long a last close(2) may be on its way to the daemon.
constexpr std::int64_t kClosingNs = 300'000'000;
constexpr useconds_t kStepUs = 5'000;

FilelockFailure failure(int err, std::string words = "") { return {err, std::move(words)}; }
FilelockFailure failure(const filelock::Failure& why) { return {why.code.value(), why.words}; }

std::string user_name(uid_t uid) {
  std::array<char, 4096> buffer{};
  struct passwd entry {};
  struct passwd* found = nullptr;
  if (::getpwuid_r(uid, &entry, buffer.data(), buffer.size(), &found) != 0 || found == nullptr) {
    return "";
  }
  return found->pw_name;
}

// "alice (uid 1000)"
std::string describe_user(uid_t uid) {
  const std::string name = user_name(uid);
  return name.empty() ? fmt::format("uid {}", uid) : fmt::format("{} (uid {})", name, uid);
}

std::string to_json(const control::Tags& tags) {
  std::string out = "{";
  for (const auto& [key, value] : tags) {
    if (out.size() > 1) out += ", ";
    control::append_json_string(out, key);
    out += ": ";
    control::append_json_string(out, value);
  }
  return out + "}";
}

// A transition that ends with this.
class Passage {
 public:
  Passage(ChangeGate& gate, ChangeTicket ticket) : gate_{&gate}, ticket_{ticket} {}
  Passage(Passage&& o) noexcept : gate_{std::exchange(o.gate_, nullptr)}, ticket_{o.ticket_} {}
  Passage& operator=(Passage&&) = delete;
  Passage(const Passage&) = delete;
  Passage& operator=(const Passage&) = delete;
  ~Passage() {
    if (gate_ != nullptr) gate_->end_transition(ticket_);
  }

 private:
  ChangeGate* gate_;
  ChangeTicket ticket_;
};

// What is left of locks whose file is gone, or has another's name now: goes if he who asks made it,
// or is an admin. False: there is nothing.
Result<bool> remove_orphans(const MountFileView::Place& place, const Caller& caller, bool admin) {
  const auto names = filelock::side_names(place.name);
  if (!names) return false;
  bool any = false;
  for (const std::string& name : {names->metadata, names->backup}) {
    const auto side = filelock::look_at_side(place.directory.get(), name, filelock::LockId{});
    if (!side) return side.error();
    if (side->state != filelock::SideState::kOtherLock || !side->mark) continue;
    if (side->mark->uid != caller.uid && !admin) return errno_code(EACCES);
    if (auto r = filelock::unlink_side(place.directory.get(), name, *side); !r) return r.error();
    any = true;
  }
  return any;
}

}  // namespace

MountFilelocks::MountFilelocks(ChangeGate& gate, posix::InodeTable& inodes, MountFileView& view,
                               Options options)
    : gate_{gate},
      inodes_{inodes},
      view_{view},
      options_{std::move(options)},
      walk_{inodes, options_.hidden} {}

MountFilelocks::~MountFilelocks() { stop(); }

void MountFilelocks::start() {
  posix::become_daemon();
  if (options_.state_directory.empty()) {
    no_desk_ = "there is no directory to keep the journal in";
  } else {
    // Its parents; what is wrong with them the desk says.
    for (std::size_t at = 1; (at = options_.state_directory.find('/', at)) != std::string::npos;
         ++at) {
      ::mkdir(options_.state_directory.substr(0, at).c_str(), 0700);
    }
    auto desk = filelock::Desk::open(options_.state_directory);
    if (desk) {
      desk_.emplace(std::move(*desk));
    } else {
      no_desk_ = desk.failure().words;
    }
  }
  if (!desk_) {
    log::warn("files cannot be filelocked: {}", no_desk_);
    return;
  }
  recover();
  timer_.emplace();
  timer_->at(monotonic_ns() + kTickNs, [this] { tick(); });
}

void MountFilelocks::stop() noexcept {
  stopping_ = true;
  timer_.reset();
  // Nobody's any more, if this was the last mount of the table.
  if (desk_) ::rmdir(options_.state_directory.c_str());
  desk_.reset();
}

void MountFilelocks::tick() noexcept {
  if (stopping_) return;
  try {
    recover();
    timer_->at(monotonic_ns() + kTickNs, [this] { tick(); });
  } catch (const std::exception& e) {
    log::error("filelocks: {}", e.what());
  }
}

// As seldom as there is something to do: what cannot be settled from here (it is on another file
// system, or in a directory that cannot be found) is left to who comes to the file.
void MountFilelocks::recover() noexcept {
  try {
    auto files = desk_->abandoned();
    if (files == left_) return;
    std::vector<Passage> passages;
    std::vector<FileId> quiet;
    for (const FileId& file : files) {
      auto ticket = gate_.begin_transition(file, ChangeEdge::kForNobody);
      if (!ticket) break;
      passages.emplace_back(gate_, *ticket);
      if (gate_.wait_for_changes(file, monotonic_ns() + kPatienceNs).empty()) {
        quiet.push_back(file);
      }
    }
    const auto done = desk_->recover(inodes_.root()->fd.get(), &quiet);
    if (done.settled != 0) {
      log::warn("{} filelock(s) that a daemon which is gone was at are settled", done.settled);
    }
    left_ = desk_->abandoned();
  } catch (const std::exception& e) {
    log::error("filelocks: {}", e.what());
  }
}

filelock::Desk* MountFilelocks::desk(Failure& why) {
  if (desk_) return &*desk_;
  why = failure(EOPNOTSUPP, no_desk_);
  return nullptr;
}

// What is stored to a shared mapping is stored without anybody being asked, and a descriptor that
// is open for reading and writing can be mapped at any time without anybody being told: no lock
// could hold against either.
MountFilelocks::Failure MountFilelocks::find_storers(int path_fd, const struct stat& st,
                                                     FileId file, const Caller& caller) {
  posix::become_daemon();
  const UniqueFd fd{::openat(posix::self_fds(), posix::FdName{path_fd}.c_str(),
                             O_RDONLY | O_NOATIME | O_NONBLOCK | O_CLOEXEC)};
  // A descriptor that was closed a moment ago may still be on its way here.
  const std::int64_t deadline = monotonic_ns() + kClosingNs;
  for (;;) {
    if (fd && posix::has_no_writer(fd.get())) return std::nullopt;
    const auto storers = gate_.storers(file);
    if (!storers) return failure(EBUSY, "too many files are open for reading and writing");
    const auto other = std::find_if(storers->begin(), storers->end(), [&](const auto& who) {
      const Caller opener{who.uid, who.gid, static_cast<pid_t>(who.pid), 0};
      return who.uid != caller.uid && !view_.is_admin(opener);
    });
    if (other == storers->end()) return find_mappings(st, caller);
    if (monotonic_ns() >= deadline) {
      const auto process = posix::describe_process(static_cast<pid_t>(other->pid));
      return failure(
          EBUSY, fmt::format("process {} ({}) of {} has it open for reading and writing, "
                             "and could map and modify it",
                             other->pid, log::printable(process.comm), describe_user(other->uid)));
    }
    ::usleep(kStepUs);
  }
}

MountFilelocks::Failure MountFilelocks::find_mappings(const struct stat& st, const Caller& caller) {
  struct stat shown = st;
  inodes_.show(shown);
  const auto all = posix::shared_writers(shown.st_ino);
  if (!all) return failure(EBUSY, "it cannot be told who has it mapped");
  for (const posix::Process& process : *all) {
    if (process.uid == caller.uid || process.uid == 0) continue;
    return failure(
        EBUSY, fmt::format("process {} ({}) of {} has it mapped and could modify it", process.pid,
                           log::printable(process.comm), describe_user(process.uid)));
  }
  return std::nullopt;
}

MountFilelocks::Failure MountFilelocks::quiesce(const MountFileView::Place& place, FileId file,
                                                const Caller& caller) {
  fault_point("fuse.filelock_wait");
  const std::int64_t deadline = monotonic_ns() + kPatienceNs;
  auto left = gate_.wait_for_changes(file, deadline);
  const auto directory = posix::stat_of(place.directory.get());
  if (!directory) return failure(directory.error().value());
  if (left.empty()) {
    left = gate_.wait_for_changes(ChangeEdge::names_of(posix::file_id(*directory)), deadline);
  }
  if (!left.empty()) {
    return failure(EBUSY,
                   fmt::format("process {} of {} is modifying it and does not come to an end",
                               left.front().holder.pid, describe_user(left.front().holder.uid)));
  }
  // What was in flight may have taken the name from it. From here on nobody can.
  struct stat named {};
  if (::fstatat(place.directory.get(), place.name.c_str(), &named, AT_SYMLINK_NOFOLLOW) != 0) {
    return failure(errno);
  }
  if (posix::file_id(named) != file) return failure(ESTALE, "its name is no longer its own");
  const auto st = posix::stat_of(place.file.get());
  if (!st) return failure(st.error().value());
  return find_storers(place.file.get(), *st, file, caller);
}

void MountFilelocks::refresh(int fd) {
  const auto st = posix::stat_of(fd);
  if (!st || !refresh_) return;
  if (const std::uint64_t node = inodes_.known(*st)) refresh_(node);
}

template <class Run>
MountFilelocks::Failure MountFilelocks::with_room(Run&& run) {
  Failure failed = run();
  if (!failed || (failed->err != ENOSPC && failed->err != EDQUOT)) return failed;
  posix::become_daemon();
  inodes_.make_room();
  return run();
}

MountFilelocks::Failure MountFilelocks::apply(std::string_view path,
                                              const std::optional<control::Tags>& tags,
                                              const Caller& caller, bool admin) {
  return with_room([&] { return apply_once(path, tags, caller, admin); });
}

MountFilelocks::Failure MountFilelocks::remove(std::string_view path, bool revert,
                                               const Caller& caller, bool admin) {
  return with_room([&] { return remove_once(path, revert, caller, admin); });
}

MountFilelocks::Failure MountFilelocks::apply_once(std::string_view path,
                                                   const std::optional<control::Tags>& tags,
                                                   const Caller& caller, bool admin) {
  const auto place = view_.place_of(path, caller);
  if (!place) return failure(place.error().value());
  if (!place->file) return failure(ENOENT);
  return apply_to(*place, path, tags, caller, admin);
}

MountFilelocks::Failure MountFilelocks::apply_to(const MountFileView::Place& place,
                                                 std::string_view path,
                                                 const std::optional<control::Tags>& tags,
                                                 const Caller& caller, bool admin) {
  const auto st = posix::stat_of(place.file.get());
  if (!st) return failure(st.error().value());
  if (S_ISDIR(st->st_mode)) return failure(EISDIR, "it is a directory, not a regular file");
  if (!S_ISREG(st->st_mode)) return failure(EINVAL, "it is not a regular file");
  const bool side_name = filelock::is_side_name(place.name);
  if (side_name && !admin) return failure(EINVAL, "it has the name of a filelock's side file");
  if (const auto r = posix::check_access(place.file.get(), W_OK, caller); !r) {
    return failure(r.error().value());
  }
  if (stopping_) return failure(EBUSY, "the mount is coming to its end");
  Failure why;
  filelock::Desk* const at = desk(why);
  if (at == nullptr) return why;

  const FileId file = posix::file_id(*st);
  // Before anybody is held up: whose it is now.
  const auto foreign = [&](const std::optional<filelock::Mark>& mark) -> Failure {
    if (!mark || mark->kind != filelock::MarkKind::kLock || mark->uid == caller.uid) return {};
    return failure(EBUSY, fmt::format("it is filelocked by {} since {}", describe_user(mark->uid),
                                      rfc3339(mark->locked_at_ns)));
  };
  if (const auto mark = filelock::read_mark(place.file.get()); mark) {
    if (auto refused = foreign(*mark)) return refused;
  }
  const auto ticket = gate_.begin_transition(file, caller.uid);
  if (!ticket) return failure(EBUSY, "too many filelocks are being changed");
  const Passage passage{gate_, *ticket};
  auto session = at->begin({place.directory.get(), place.name, place.file.get()},
                           monotonic_ns() + kPatienceNs);
  if (!session) return failure(session.failure());
  const auto status = session->status();
  if (!status) return failure(status.failure());
  if (auto refused = foreign(status->mark)) return refused;

  filelock::LockInfo info;
  info.user = user_name(caller.uid);
  info.uid = caller.uid;
  info.path = path;
  if (tags) info.tags = to_json(*tags);
  const bool locked = status->mark && status->mark->kind == filelock::MarkKind::kLock;
  if (locked) {
    if (!tags && status->info) info.tags = status->info->tags;
    if (const auto r = session->retag(info); !r) return failure(r.failure());
    return std::nullopt;
  }
  if (auto refused = quiesce(place, file, caller)) return refused;
  fault_point("fuse.filelock_quiet");
  if (const auto mark = session->apply(info, caller); !mark) return failure(mark.failure());
  refresh(place.file.get());
  return std::nullopt;
}

MountFilelocks::Failure MountFilelocks::remove_once(std::string_view path, bool revert,
                                                    const Caller& caller, bool admin) {
  const auto place = view_.place_of(path, caller);
  if (!place) return failure(place.error().value());
  posix::become_daemon();
  std::optional<filelock::Mark> mark;
  if (place->file) {
    const auto found = filelock::read_mark(place->file.get());
    if (!found) return failure(found.error().value());
    mark = *found;
  }
  if (mark && mark->kind == filelock::MarkKind::kSide) {
    return failure(EINVAL, "it is a filelock's side file; name the locked file");
  }
  if (!mark) {
    if (revert && place->file) return failure(ENOENT, "it is not filelocked");
    // The file that was locked is gone, or another one has its name.
    const auto removed = revert ? Result<bool>{false} : remove_orphans(*place, caller, admin);
    if (!removed) {
      return failure(removed.error().value(), removed.error() == errno_code(EACCES)
                                                  ? "what is left of its filelock is another user's"
                                                  : "");
    }
    if (*removed) return std::nullopt;
    if (!place->file) return failure(ENOENT);
    return failure(ENOENT, "it is not filelocked");
  }
  const bool damaged = mark->kind == filelock::MarkKind::kDamaged;
  if (!admin && (damaged || mark->uid != caller.uid)) {
    return failure(EACCES, damaged ? "its filelock is damaged: only admins may remove it"
                                   : fmt::format("it is filelocked by {}; only he and admins may "
                                                 "unlock it",
                                                 describe_user(mark->uid)));
  }
  Failure why;
  filelock::Desk* const at = desk(why);
  if (at == nullptr) return why;
  const auto st = posix::stat_of(place->file.get());
  if (!st) return failure(st.error().value());
  const FileId file = posix::file_id(*st);
  const auto ticket = gate_.begin_transition(file, caller.uid);
  if (!ticket) return failure(EBUSY, "too many filelocks are being changed");
  const Passage passage{gate_, *ticket};
  auto session = at->begin({place->directory.get(), place->name, place->file.get()},
                           monotonic_ns() + kPatienceNs);
  if (!session) return failure(session.failure());
  const auto status = session->status();
  if (!status) return failure(status.failure());
  // It may have been unlocked and locked by somebody else meanwhile.
  if (!status->mark || status->mark->kind != mark->kind || status->mark->id != mark->id) {
    return failure(EBUSY, "its filelock was changed just now");
  }
  if (auto refused = quiesce(*place, file, caller); refused && revert) return refused;
  fault_point("fuse.unfilelock_quiet");
  const auto done = revert ? session->revert_and_remove(caller) : session->remove();
  if (!done) return failure(done.failure());
  refresh(place->file.get());
  return std::nullopt;
}

Result<control::Filelocks::Page> MountFilelocks::list(std::string_view after, std::uint32_t limit) {
  return walk_.list(after, limit);
}

Result<std::optional<control::FilelockEntry>> MountFilelocks::find(std::string_view path,
                                                                   const Caller& caller) {
  const auto place = view_.place_of(path, caller);
  if (!place) return place.error();
  posix::become_daemon();
  control::FilelockEntry entry;
  std::string shown{"/"};
  shown += path.substr(std::min(path.size(), path.find_first_not_of('/')));
  const int file = place->file ? place->file.get() : -1;
  if (!FilelockWalk::describe(place->directory.get(), place->name, file, shown, entry)) {
    if (file < 0) return errno_code(ENOENT);
    return std::optional<control::FilelockEntry>{};
  }
  return std::optional{std::move(entry)};
}

}  // namespace latchfs::fuse
