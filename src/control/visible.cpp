#include "control/visible.h"

#include <utility>

namespace latchfs::control {

Viewer viewer_of(const Context& context, const Caller& caller) {
  return {caller, context.files().is_admin(caller)};
}

const FileFacts::Facts& FileFacts::of(const Grant& grant) {
  // A grant whose descriptor is just being closed has no path; the file's next one may.
  constexpr int kTries = 4;
  if (file_ != grant.file) {
    file_ = grant.file;
    facts_ = {};
    readable_.reset();
    tries_ = 0;
  }
  if (tries_ < kTries && facts_.path.empty() && !facts_.outside) {
    ++tries_;
    auto located = context_.files().locate(grant);
    facts_.outside = located.outside;
    facts_.path = std::move(located.path);
    facts_.snapshot = context_.snapshot_of(facts_.path);
    readable_.reset();
  }
  return facts_;
}

bool FileFacts::visible(const Grant& grant) {
  if (is_his(viewer_, grant)) return true;
  const Facts& facts = of(grant);
  if (facts.path.empty()) return false;  // nothing to judge by
  if (!readable_) {
    readable_ = context_.files().may_read(facts.path, grant.file, viewer_.caller);
  }
  return *readable_;
}

}  // namespace latchfs::control
