#include "fuse/change_edge.h"

#include <unistd.h>

#include "base/clock.h"
#include "base/fault_point.h"
#include "base/log.h"
#include "filelock/mark.h"

namespace latchfs::fuse {
namespace {

// How long who may modify the file anyway waits for its filelock to be there, or gone.
constexpr std::int64_t kPatienceNs = 5'000'000'000;
constexpr useconds_t kStepUs = 500;
constexpr int kMostWaiting = 4;

// OpenFile::filelock: the low half of the version, and who was allowed then.
constexpr std::uint64_t known_as(std::uint64_t version, std::uint32_t allowed) {
  return version << 32 | allowed;
}

Change change_by(const Caller& caller, FileId file, ByteRange range = {}) {
  Change change;
  change.file = file;
  change.range = range;
  change.holder.pid = static_cast<std::uint32_t>(caller.pid);
  change.holder.uid = caller.uid;
  return change;
}

}  // namespace

ChangeEdge::Verdict ChangeEdge::look(int fd, FileId file, std::uint64_t version,
                                     std::atomic<std::uint64_t>* known) {
  if (known != nullptr) {
    const std::uint64_t was = known->load(std::memory_order_relaxed);
    if (was == known_as(version, static_cast<std::uint32_t>(was))) {
      return {static_cast<Allowed>(was), false};
    }
  }
  // In this order: a transition changes the mark while it is under way, so if there is none (any
  // more) the mark is what it made it, until the version is another one.
  const auto passing = gate_.transition_on(file);
  if (passing && *passing != kForNobody) return {*passing, true};
  const auto mark = filelock::read_mark(fd);
  Allowed allowed = kEverybody;
  if (!mark) {
    // What cannot be read may be a filelock.
    if (damaged_.due()) {
      log::error("the filelock of {}:{} cannot be read: {}", file.dev, file.ino,
                 mark.error().message());
    }
    return {kNobody, false};
  }
  if (*mark) {
    allowed = (*mark)->kind == filelock::MarkKind::kLock ? (*mark)->uid : kNobody;
    if ((*mark)->kind == filelock::MarkKind::kDamaged && damaged_.due()) {
      log::error("the filelock of {}:{} is damaged: only admins may modify the file", file.dev,
                 file.ino);
    }
  }
  if (passing) return {allowed, true};
  if (known != nullptr) known->store(known_as(version, allowed), std::memory_order_relaxed);
  return {allowed, false};
}

std::error_code ChangeEdge::refuse(FileId file, const Caller& caller, Allowed allowed,
                                   int refusal) {
  if (refused_.due()) {
    log::info("uid {} pid {} may not modify {}:{}: it is filelocked{}", caller.uid, caller.pid,
              file.dev, file.ino,
              allowed == kNobody ? std::string{} : " by uid " + std::to_string(allowed));
  }
  return errno_code(refusal);
}

Result<ChangePass> ChangeEdge::admit(int fd, const Change& change,
                                     std::atomic<std::uint64_t>* known, const Caller& caller,
                                     int refusal) {
  for (std::int64_t deadline = 0;;) {
    ChangePass pass{gate_, gate_.begin_change(change)};
    fault_point("fuse.change_begun");
    const Verdict verdict = look(fd, change.file, gate_.filelock_version(change.file), known);
    if (!verdict.passing && verdict.allowed == kEverybody) {
      fault_point("fuse.change_admitted");
      return pass;
    }
    if (!may(verdict, caller)) return refuse(change.file, caller, verdict.allowed, refusal);
    if (!verdict.passing) return pass;
    // Not in flight meanwhile: it would be waited for.
    pass = ChangePass{};
    if (!wait_a_moment(deadline)) return errno_code(EBUSY);
  }
}

bool ChangeEdge::wait_a_moment(std::int64_t& deadline) {
  // Each that waits holds a thread of the daemon, which has others to serve.
  static std::atomic<int> waiting{0};
  const std::int64_t now = monotonic_ns();
  if (deadline == 0) deadline = now + kPatienceNs;
  if (now >= deadline) return false;
  const bool room = waiting.fetch_add(1, std::memory_order_relaxed) < kMostWaiting;
  if (room) ::usleep(kStepUs);
  waiting.fetch_sub(1, std::memory_order_relaxed);
  return room;
}

Result<ChangePass> ChangeEdge::admit_names(FileId directory, const FindNamed& find,
                                           const Caller& caller) {
  const Change change = change_by(caller, names_of(directory));
  for (std::int64_t deadline = 0;;) {
    // Before the names are looked up: who locks what has one of them by then is seen, or waits.
    ChangePass pass{gate_, gate_.begin_change(change)};
    fault_point("fuse.change_begun");
    const auto all = find();
    if (!all) return all.error();
    bool passing = false;
    for (const Named& one : *all) {
      const Verdict verdict = look(one.fd, one.file, 0, nullptr);
      if (!may(verdict, caller)) return refuse(one.file, caller, verdict.allowed, EACCES);
      passing |= verdict.passing;
    }
    if (!passing) {
      fault_point("fuse.change_admitted");
      return pass;
    }
    pass = ChangePass{};
    if (!wait_a_moment(deadline)) return errno_code(EBUSY);
  }
}

Result<ChangePass> ChangeEdge::admit(OpenFile& file, ByteRange range, const Caller& caller) {
  Change change = change_by(caller, file.id, range);
  change.holder.fh = file.fh;
  change.holder.backing_fd = file.fd.get();
  change.listed = list_;
  return admit(file.fd.get(), change, &file.filelock, caller, EACCES);
}

Result<ChangePass> ChangeEdge::admit(int fd, FileId file, const Caller& caller, int refusal) {
  return admit(fd, change_by(caller, file), nullptr, caller, refusal);
}

Result<ChangePass> ChangeEdge::admit(int fd, FileId file, ByteRange range, const Caller& caller) {
  Change change = change_by(caller, file, range);
  change.holder.backing_fd = fd;
  change.listed = list_;
  return admit(fd, change, nullptr, caller, EACCES);
}

bool ChangeEdge::is_locked(const OpenFile& file) {
  const Verdict verdict = look(file.fd.get(), file.id, gate_.filelock_version(file.id), nullptr);
  return verdict.passing || verdict.allowed != kEverybody;
}

}  // namespace latchfs::fuse
