#include "control/shared_file.h"

#include <algorithm>
#include <utility>

namespace latchfs::control {

SharedFile::SharedFile(OpenFor open_for, const Caller& opener, std::shared_ptr<OpenFile> first)
    : open_for_{std::move(open_for)} {
  const MutexLock lock{mu_};
  users_.push_front({opener.uid, opener.gid, std::move(first)});
}

Result<std::shared_ptr<OpenFile>> SharedFile::file_of(const Caller& caller) {
  const auto find = [&]() REQUIRES(mu_) -> std::shared_ptr<OpenFile> {
    const auto found = std::find_if(users_.begin(), users_.end(), [&](const User& user) {
      return user.uid == caller.uid && user.gid == caller.gid;
    });
    if (found == users_.end()) return nullptr;
    users_.splice(users_.begin(), users_, found);
    return found->file;
  };
  {
    const MutexLock lock{mu_};
    if (auto file = find()) return file;
  }
  auto opened = open_for_(caller);
  if (!opened) return opened.error();
  std::shared_ptr<OpenFile> gone;
  {
    const MutexLock lock{mu_};
    if (auto file = find()) return file;  // two of his requests came at once
    users_.push_front({caller.uid, caller.gid, *opened});
    if (users_.size() > kMostUsers) {
      // One that is in use has not come least recently for long.
      const auto idle = std::find_if(users_.rbegin(), users_.rend(),
                                     [](const User& user) { return user.file.use_count() == 1; });
      if (idle != users_.rend()) {
        gone = std::move(idle->file);
        users_.erase(std::next(idle).base());
      }
    }
  }
  if (gone) gone->close();
  return *opened;
}

std::vector<std::shared_ptr<OpenFile>> SharedFile::all() {
  const MutexLock lock{mu_};
  std::vector<std::shared_ptr<OpenFile>> files;
  files.reserve(users_.size());
  for (const User& user : users_) files.push_back(user.file);
  return files;
}

Result<std::string> SharedFile::read(std::uint64_t offset, std::size_t size, const Caller& caller) {
  const auto file = file_of(caller);
  return file ? (*file)->read(offset, size, caller) : Result<std::string>{file.error()};
}

Result<std::size_t> SharedFile::write(std::uint64_t offset, std::string_view data,
                                      const Caller& caller) {
  const auto file = file_of(caller);
  return file ? (*file)->write(offset, data, caller) : Result<std::size_t>{file.error()};
}

Result<void> SharedFile::flush(const Caller& caller) {
  Result<void> first;
  for (const auto& file : all()) {
    if (auto flushed = file->flush(caller); !flushed && first) first = flushed;
  }
  return first;
}

void SharedFile::close() noexcept {
  std::list<User> users;
  {
    const MutexLock lock{mu_};
    users.swap(users_);
  }
  for (const User& user : users) user.file->close();
}

}  // namespace latchfs::control
