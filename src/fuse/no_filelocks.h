// Filelocks of a mount that has none yet: nothing is locked, nothing can be.
#pragma once

#include "control/filelocks.h"

namespace latchfs::fuse {

class NoFilelocks final : public control::Filelocks {
 public:
  std::optional<control::FilelockFailure> apply(std::string_view,
                                                const std::optional<control::Tags>&, const Caller&,
                                                bool) override {
    return control::FilelockFailure{EOPNOTSUPP, {}};
  }
  std::optional<control::FilelockFailure> remove(std::string_view, bool, const Caller&,
                                                 bool) override {
    return control::FilelockFailure{EOPNOTSUPP, {}};
  }
  Result<Page> list(std::string_view, std::uint32_t) override { return Page{}; }
  Result<std::optional<control::FilelockEntry>> find(std::string_view, const Caller&) override {
    return std::optional<control::FilelockEntry>{};
  }
  std::uint64_t changes() const noexcept override { return 0; }
};

}  // namespace latchfs::fuse
