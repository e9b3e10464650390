// Files, of which one mount that hangs takes some of the threads only.
#pragma once

#include "nlm/files.h"
#include "nlm/places.h"

namespace latchfs::nlm {

// As Files; EAGAIN besides: those who asked before are held up, nobody else may.
class FilesInTurn final : public Files {
 public:
  // Both must outlive it.
  FilesInTurn(Files& files, Places& places) : files_{files}, places_{places} {}

  [[nodiscard]] bool exports(const Fsid& fsid) const override { return files_.exports(fsid); }
  Result<OpenFilePtr> open(const NfsHandle& handle) override {
    const auto stay = places_.enter(to_string(handle.fsid));
    if (!stay) return errno_code(EAGAIN);
    return files_.open(handle);
  }
  Result<void> may_lock(const OpenFile& file, const User& user) override {
    const auto stay = places_.enter(to_string(file.fsid));
    if (!stay) return errno_code(EAGAIN);
    return files_.may_lock(file, user);
  }
  void let_go() override { files_.let_go(); }

 private:
  Files& files_;
  Places& places_;
};

}  // namespace latchfs::nlm
