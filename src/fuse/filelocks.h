// Filelocks of the mount's files (control/filelocks.h): who may, that nobody modifies the file
// meanwhile, and what the disk is to say (filelock/). docs/design.md, "Filelocks".
//
// Thread-safe.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "control/filelocks.h"
#include "filelock/desk.h"
#include "fuse/change_edge.h"
#include "fuse/file_view.h"
#include "fuse/filelock_walk.h"
#include "fuse/timer.h"
#include "latchfs/change_gate.h"
#include "posix/inode_table.h"

namespace latchfs::fuse {

class MountFilelocks final : public control::Filelocks {
 public:
  struct Options {
    std::string state_directory;  // "": there is none, filelocks are refused
    std::string hidden;           // a name in the root that does not count: the control tree's
  };
  MountFilelocks(ChangeGate& gate, posix::InodeTable& inodes, MountFileView& view, Options options);
  MountFilelocks(const MountFilelocks&) = delete;
  MountFilelocks& operator=(const MountFilelocks&) = delete;
  ~MountFilelocks() override;

  // Before the first request: makes the kernel forget the attributes it has of a node.
  void refresh_by(std::function<void(std::uint64_t node)> refresh) {
    refresh_ = std::move(refresh);
  }
  // Finishes or undoes what a daemon that is gone was at, now and every second. Once.
  void start();
  // Requests that are begun from now on are refused. Any time.
  void refuse_all() noexcept { stopping_ = true; }
  // No more of that; waits for what is under way.
  void stop() noexcept;

  std::optional<control::FilelockFailure> apply(std::string_view path,
                                                const std::optional<control::Tags>& tags,
                                                const Caller& caller, bool admin) override;
  std::optional<control::FilelockFailure> remove(std::string_view path, bool revert,
                                                 const Caller& caller, bool admin) override;
  Result<Page> list(std::string_view after, std::uint32_t limit) override;
  Result<std::optional<control::FilelockEntry>> find(std::string_view path,
                                                     const Caller& caller) override;
  [[nodiscard]] std::uint64_t changes() const noexcept override { return gate_.filelock_changes(); }

 private:
  using Failure = std::optional<control::FilelockFailure>;
  // Runs it, and where there was no room once more, when removed files have given back what they
  // hold.
  template <class Run>
  Failure with_room(Run&& run);
  Failure apply_once(std::string_view path, const std::optional<control::Tags>& tags,
                     const Caller& caller, bool admin);
  Failure remove_once(std::string_view path, bool revert, const Caller& caller, bool admin);
  Failure apply_to(const MountFileView::Place& place, std::string_view path,
                   const std::optional<control::Tags>& tags, const Caller& caller, bool admin);
  // Nobody modifies the file from here on, and nobody could without being asked.
  Failure quiesce(const MountFileView::Place& place, FileId file, const Caller& caller);
  // Who could modify it without being asked, if anybody could.
  Failure find_storers(int path_fd, const struct stat& st, FileId file, const Caller& caller);
  Failure find_mappings(const struct stat& st, const Caller& caller);
  filelock::Desk* desk(Failure& why);
  void refresh(int fd);
  void recover() noexcept;
  void tick() noexcept;

  ChangeGate& gate_;
  posix::InodeTable& inodes_;
  MountFileView& view_;
  const Options options_;
  FilelockWalk walk_;
  std::function<void(std::uint64_t node)> refresh_;
  std::optional<filelock::Desk> desk_;
  std::string no_desk_;       // why
  std::vector<FileId> left_;  // the timer's: what it could not settle last time
  std::atomic<bool> stopping_{false};
  std::optional<Timer> timer_;  // last: what it runs uses the others
};

}  // namespace latchfs::fuse
