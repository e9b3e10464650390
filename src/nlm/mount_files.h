// Files of latchfs mounts, by open_by_handle_at(2) on the FUSE mount itself: the kernel asks the
// daemon for the node (LOOKUP ".") and compares the generation.
#pragma once

#include <map>
#include <string>

#include "base/mutex.h"
#include "base/seldom.h"
#include "nlm/files.h"

namespace latchfs::nlm {

class MountFiles final : public Files {
 public:
  struct Options {
    std::map<Fsid, std::string> mountpoints;
    std::string table;      // a mount of another one is refused
    bool insecure_locks{};  // anybody may lock (exports(5), no_auth_nlm)
  };
  explicit MountFiles(Options options) : options_{std::move(options)} {}

  [[nodiscard]] bool exports(const Fsid& fsid) const override {
    return options_.mountpoints.contains(fsid);
  }
  Result<OpenFilePtr> open(const NfsHandle& handle) override;
  Result<void> may_lock(const OpenFile& file, const User& user) override;
  // A descriptor on the mount would keep it from being unmounted.
  void let_go() override EXCLUDES(mu_);

 private:
  // A directory descriptor on a mount.
  struct Mount {
    UniqueFd fd;
    std::uint64_t device{};
    bool read_only{};
    std::int64_t opened_at{};  // monotonic ns
  };
  using MountPtr = std::shared_ptr<const Mount>;

  // Anew, or what was opened a moment ago.
  Result<MountPtr> mount_of(const Fsid& fsid, bool anew) EXCLUDES(mu_);
  Result<MountPtr> open_mount(const std::string& mountpoint);
  Result<OpenFilePtr> open_on(const Mount& mount, const NfsHandle& handle);
  Result<FileId> key_of(int fd);

  const Options options_;
  Seldom complained_{10'000'000'000};
  Mutex mu_;  // leaf
  std::map<Fsid, MountPtr> mounts_ GUARDED_BY(mu_);
};

}  // namespace latchfs::nlm
