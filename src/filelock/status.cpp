#include "filelock/status.h"

#include "posix/sys.h"

namespace latchfs::filelock {
namespace {

std::string what_is_wrong(const Status& status) {
  const auto tell = [](const char* what, SideState state) -> std::string {
    switch (state) {
      case SideState::kMissing:
        return fmt::format("its {} is missing", what);
      case SideState::kOurs:
        return fmt::format("its {} is damaged", what);
      case SideState::kOtherLock:
      case SideState::kForeign:
        break;
    }
    return fmt::format("another file has the name of its {}", what);
  };
  std::string words;
  if (!status.info) words = tell("metadata", status.metadata);
  if (status.backup != SideState::kOurs) {
    if (!words.empty()) words += ", ";
    words += tell("backup", status.backup);
  }
  return words;
}

bool is_marked_side(SideState state) {
  return state == SideState::kOurs || state == SideState::kOtherLock;
}

void judge(Status& status, bool other_name) {
  if (!status.mark) {
    if (is_marked_side(status.metadata) || is_marked_side(status.backup)) {
      status.condition = Condition::kOrphan;
      status.words = "side files of another lock are beside it";
    }
    return;
  }
  if (status.mark->kind == MarkKind::kSide) {
    status.condition = Condition::kSideFile;
    status.words = fmt::format("it belongs to the filelock of {}", in_quotes(status.mark->name));
  } else if (status.mark->kind == MarkKind::kDamaged) {
    status.condition = Condition::kDamagedMark;
    status.words = "its lock's mark is damaged: only an admin can remove the lock";
  } else if (other_name) {
    status.condition = Condition::kOtherName;
    status.words = fmt::format("it is locked under another name: {}", in_quotes(status.mark->name));
  } else if (status.info && status.info->state == LockState::kReverting) {
    status.condition = Condition::kReverting;
    status.words = "reverting it was begun and is not complete";
  } else if (!status.info || status.backup != SideState::kOurs) {
    status.condition = Condition::kIncomplete;
    status.words = what_is_wrong(status);
  } else {
    status.condition = Condition::kLocked;
  }
}

}  // namespace

Outcome<Status> status_of(const Place& place) {
  Status status;
  status.side_name = place.name;
  bool other_name = false;
  if (place.file >= 0) {
    auto mark = read_mark(place.file);
    if (!mark) return failed(mark.error(), "its lock's mark cannot be read");
    status.mark = std::move(*mark);
    if (status.mark && status.mark->kind == MarkKind::kLock && status.mark->name != place.name) {
      const auto st = posix::stat_of(place.file);
      if (!st) return failed(st.error(), "it cannot be looked at");
      // With one link it can only have been renamed.
      if (st->st_nlink == 1) status.side_name = status.mark->name;
      other_name = st->st_nlink != 1;
    }
  }
  const auto names = side_names(status.side_name);
  if (!names) {
    judge(status, other_name);
    return status;
  }
  const LockId id = status.mark ? status.mark->id : LockId{};
  const auto metadata = look_at_side(place.dir, names->metadata, id);
  if (!metadata)
    return failed(metadata.error(), in_quotes(names->metadata) + " cannot be looked at");
  const auto backup = look_at_side(place.dir, names->backup, id);
  if (!backup) return failed(backup.error(), in_quotes(names->backup) + " cannot be looked at");
  status.metadata = metadata->state;
  status.backup = backup->state;
  if (status.metadata == SideState::kOurs) {
    auto info = read_metadata(place.dir, status.side_name, id);
    if (info) {
      status.info = std::move(*info);
    } else if (info.error() == errno_code(EBUSY)) {
      status.metadata = SideState::kForeign;
    }
  }
  judge(status, other_name);
  return status;
}

}  // namespace latchfs::filelock
