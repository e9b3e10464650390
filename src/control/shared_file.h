// A file that the kernel's NFS server has opened for all its users.
//
// Of NFSv4 clients it keeps one descriptor for each way of opening a file, whoever comes after the
// first (fs/nfsd/nfs4state.c, nfs4_get_vfs_file()), and reads and writes through it as the user who
// asks. So each of them has a file of his own behind it: what he is shown is his to see, and what
// he writes is asked by him alone.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/caller.h"
#include "base/mutex.h"
#include "control/open_file.h"
#include "latchfs/result.h"

namespace latchfs::control {

class SharedFile final : public OpenFile {
 public:
  // Users who have a file at the same time. One more: who came least recently has to open anew,
  // and what he wrote and did not end is run.
  static constexpr std::size_t kMostUsers = 64;
  using OpenFor = std::function<Result<std::shared_ptr<OpenFile>>(const Caller&)>;

  // `first`: what `open_for` gave the user who opened.
  SharedFile(OpenFor open_for, const Caller& opener, std::shared_ptr<OpenFile> first);

  // And the errors of opening, as the caller.
  Result<std::string> read(std::uint64_t offset, std::size_t size, const Caller& caller) override;
  Result<std::size_t> write(std::uint64_t offset, std::string_view data,
                            const Caller& caller) override;
  // Of all: who closes is the server. The first error.
  Result<void> flush(const Caller& caller) override;
  void close() noexcept override;

 private:
  struct User {
    uid_t uid{};
    gid_t gid{};
    std::shared_ptr<OpenFile> file;
  };
  Result<std::shared_ptr<OpenFile>> file_of(const Caller& caller);
  std::vector<std::shared_ptr<OpenFile>> all();

  const OpenFor open_for_;
  Mutex mu_;                               // held over no call out
  std::list<User> users_ GUARDED_BY(mu_);  // who came last first
};

}  // namespace latchfs::control
