#include "support/fs_compare.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>

#include "base/unique_fd.h"
#include "support/fs_generate.h"
#include "support/fs_world.h"

namespace latchfs::fsdiff {
namespace {

constexpr int kSnapshotEvery = 120;
constexpr int kLookEvery = 8;  // steps between looks at which paths exist

// The tree every run begins with.
std::vector<Op> prologue() {
  static const char* const lines[] = {
      "chmod actor=0 path=. a=511",
      "mkdir actor=0 path=sticky a=511",
      "chmod actor=0 path=sticky a=1023",
      "mkdir actor=0 path=group a=511",
      "chown actor=0 path=group a=-1 b=61010",
      "chmod actor=0 path=group a=1535",
      "mkdir actor=1 path=one a=493",
      "mkdir actor=2 path=two a=488",
      "mkdir actor=0 path=acl a=511",
      "setacl actor=0 path=acl text=system.posix_acl_default c=2932623",
      "open actor=1 path=one/file fd=0 a=66 b=420",
      "write actor=1 fd=0 a=10000 c=1",
      "open actor=0 path=file fd=0 a=66 b=438",
      "write actor=0 fd=0 a=65536 c=2",
      "link actor=0 path=file path2=link",
      "symlink actor=0 path=ln text=one/file",
      "symlink actor=0 path=ln2 text=sticky",
      "makeprogram actor=0 path=prog a=2541",
      "makeprogram actor=1 path=one/sleep a=493 b=1",
  };
  std::vector<Op> out;
  for (const char* line : lines) out.push_back(parse(line).value());
  return out;
}

void list_paths(int raw, const std::string& prefix, std::vector<Known>& out) {
  std::unique_ptr<DIR, int (*)(DIR*)> dir{fdopendir(raw), closedir};
  if (!dir) return;
  std::vector<Known> entries;
  while (const dirent* d = readdir(dir.get())) {
    const std::string name = d->d_name;
    if (name != "." && name != "..") {
      struct stat st {};
      (void)fstatat(raw, d->d_name, &st, AT_SYMLINK_NOFOLLOW);
      const bool regular = S_ISREG(st.st_mode);
      entries.push_back({name, S_ISDIR(st.st_mode), regular, S_ISLNK(st.st_mode),
                         regular && (st.st_mode & 0111) != 0});
    }
  }
  std::sort(entries.begin(), entries.end(),
            [](const Known& one, const Known& two) { return one.path < two.path; });
  for (Known& entry : entries) {
    const std::string name = entry.path;
    entry.path = prefix + name;
    const std::string& path = entry.path;
    out.push_back(entry);
    // Deep enough: longer paths come by themselves and only slow the walk down.
    if (!entry.directory || std::count(path.begin(), path.end(), '/') > 6) continue;
    const int down = openat(raw, name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (down >= 0) list_paths(down, path + "/", out);
  }
}

class Session {
 public:
  explicit Session(const Plan& plan)
      : plan_{plan},
        stage_{plan.mounts, plan.mounter, plan.sole_actor},
        a_{stage_.root_a(), Sabotage::kNone},
        b_{stage_.root_b(), plan.sabotage} {
    last_ = StepClock::wait_for_tick(0);
  }

  // Where the two differ after this step: "" if nowhere.
  std::string step(const Op& op) {
    one_ = {};
    one_.ret = -1;  // as long as it has not been done
    if (plan_.deviations != nullptr) {
      for (const Deviation& known : *plan_.deviations) {
        if (known.avoids != nullptr && known.avoids(op)) return "";
      }
    }
    if ((op.call == Call::kExec || op.call == Call::kSpawn) && !harmless(op)) return "";
    tick();
    one_ = a_.run(op);
    last_ = a_.clock().end();
    two_ = b_.run(op);
    if (plan_.tally != nullptr) {
      std::string result{name_of(op.call)};
      if (one_.err != 0) result += std::string{" "} + std::strerror(one_.err);
      ++(*plan_.tally)[result];
    }
    last_ = std::max(last_, b_.clock().end());
    return compare(op);
  }

  // The outcome of the last step in the native world.
  [[nodiscard]] const Outcome& outcome() const { return one_; }

  [[nodiscard]] std::vector<Known> existing() const {
    std::vector<Known> out;
    const std::string top = stage_.look_a() + "/m0";
    const int fd = open(top.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) list_paths(fd, "", out);
    return out;
  }

  std::string compare_trees() {
    tick();
    const Snapshot one = look(stage_.root_a() + "/m0");
    last_ = a_.clock().end();
    const Snapshot two = look(stage_.root_b() + "/m0");
    last_ = std::max(last_, b_.clock().end());
    return all_differences(one, two, "the trees");
  }

  // Lets everything go, unmounts, and compares what really is on the disk.
  std::string finish() {
    const std::string differ = compare_trees();
    if (!differ.empty()) return differ;
    a_.dismiss();
    b_.dismiss();
    const Snapshot seen = look(stage_.root_b() + "/m0");
    stage_.unmount_b();
    const Snapshot one = take_snapshot(stage_.backing_a());
    const Snapshot two = take_snapshot(stage_.backing_b());
    for (const auto& [path, entry] : seen) {
      const auto real = two.find(path);
      if (real == two.end()) return path + " is not in the backing directory";
      // (Not to be seen: in a directory that may be read and not searched.)
      if (entry.st.st_ino != 0 && real->second.st.st_ino != entry.st.st_ino) {
        return path + " has inode " + std::to_string(entry.st.st_ino) + " in the mount and " +
               std::to_string(real->second.st.st_ino) + " below it";
      }
    }
    return all_differences(one, two, "the backing directories");
  }

 private:
  [[nodiscard]] Snapshot look(const std::string& root) const {
    if (!plan_.sole_actor) return take_snapshot(root);
    const ActingAs him{identity(*plan_.sole_actor)};
    return take_snapshot(root);
  }

  void tick() {
    const std::int64_t now = StepClock::wait_for_tick(last_);
    a_.clock().begin(now);
    b_.clock().begin(now);
  }

  TimeName times(World& world) {
    return [&world](const timespec& t) { return world.clock().name(t); };
  }

  std::string all_differences(const Snapshot& one, const Snapshot& two, const std::string& of) {
    std::string out;
    for (const std::string& line : differences(one, times(a_), two, times(b_), plan_.compare)) {
      out += "\n  " + line;
    }
    return out.empty() ? "" : of + " differ (native vs ours):" + out;
  }

  std::string compare(const Op& op) {
    std::string out;
    auto note = [&out](const char* what, const std::string& one, const std::string& two) {
      if (one != two) out += std::string{"\n  "} + what + ": " + one + " vs " + two;
    };
    auto result = [](const Outcome& o) {
      return std::to_string(o.ret) + (o.err != 0 ? std::string{" "} + std::strerror(o.err) : "");
    };
    note("result", result(one_), result(two_));
    note("data", one_.data, two_.data);
    if (one_.has_stat && two_.has_stat) {
      const std::string attributes =
          difference(one_.st, times(a_), two_.st, times(b_), plan_.compare);
      if (!attributes.empty()) out += "\n ";
      out += attributes;
    }
    if (out.empty()) return "";
    if (plan_.deviations != nullptr) {
      for (const Deviation& known : *plan_.deviations) {
        if (known.accepts != nullptr && known.accepts(op, one_, two_)) return "";
      }
    }
    return print(op) + " differs (native vs ours):" + out;
  }

  // A program of the test's own, the kind that ends for kExec and the kind that stays for kSpawn,
  // or nothing that could run at all.
  bool harmless(const Op& op) {
    const UniqueFd root{open(stage_.look_a().c_str(), O_PATH | O_CLOEXEC)};
    open_how how{};
    how.flags = O_RDONLY | O_NONBLOCK | O_CLOEXEC;
    how.resolve = RESOLVE_IN_ROOT;
    const bool absolute = !op.path.empty() && op.path.front() == '/';
    const std::string path =
        absolute || op.path.empty() ? op.path : "/m" + std::to_string(op.mount) + "/" + op.path;
    const UniqueFd fd{
        static_cast<int>(syscall(SYS_openat2, root.get(), path.c_str(), &how, sizeof how))};
    if (!fd) return true;
    char head[512];
    const ssize_t got = read(fd.get(), head, sizeof head);
    if (got < 4 || std::memcmp(head,
                               "\x7f"
                               "ELF",
                               4) != 0)
      return true;
    return std::string(head, static_cast<std::size_t>(got)) ==
           program(op.call == Call::kExec ? 0 : 1);
  }

  const Plan& plan_;
  Stage stage_;
  World a_, b_;
  Outcome one_, two_;
  std::int64_t last_{};
};

// "mtime" of "  /a/b: mtime step 1 vs step 2; ctime …".
std::string first_name(const std::string& line) {
  const std::size_t begin = line.find(": ");
  if (begin == std::string::npos) return line.substr(line.find_last_of(' ') + 1);
  return line.substr(begin + 2, line.find(' ', begin + 2) - begin - 2);
}

std::optional<Failure> drive(const Plan& plan, const std::function<const Op*(Session&)>& next) {
  Session session{plan};
  Failure failure;
  auto failed = [&failure](const std::string& what) {
    failure.what = "step " + std::to_string(failure.ops.size()) + ": " + what;
    // The call or "the trees", and of each difference its name.
    failure.kind = what.substr(0, what.find(' '));
    if (const std::size_t line = what.find('\n'); line != std::string::npos) {
      const std::string first = what.substr(line + 1, what.find('\n', line + 1) - line - 1);
      failure.kind += what.rfind("the ", 0) == 0 ? " " + first_name(first) : first;
    }
    std::erase_if(failure.kind, [](unsigned char c) { return std::isdigit(c) != 0; });
    return failure;
  };
  try {
    for (Op op : prologue()) {
      if (plan.sole_actor) op.actor = *plan.sole_actor;
      const std::string differ = session.step(op);
      if (!differ.empty()) return failed("(beginning) " + differ);
    }
    while (const Op* op = next(session)) {
      failure.ops.push_back(*op);
      std::string differ = session.step(*op);
      if (!differ.empty()) return failed(differ);
      if (failure.ops.size() % kSnapshotEvery == 0) differ = session.compare_trees();
      if (!differ.empty()) return failed(differ);
    }
    const std::string differ = session.finish();
    if (!differ.empty()) return failed(differ);
  } catch (const std::exception& e) {
    return failed(e.what());
  }
  return std::nullopt;
}

}  // namespace

std::optional<Failure> run_random(const Plan& plan, std::uint64_t seed) {
  Generator generator{seed, plan.mounts,
                      plan.sole_actor ? std::vector<int>{*plan.sole_actor} : plan.actors};
  std::vector<Known> existing;
  Op op;
  int made = 0;
  return drive(plan, [&](Session& session) -> const Op* {
    if (made > 0) generator.learn(op, session.outcome());
    if (made == plan.steps) return nullptr;
    if (made % kLookEvery == 0) existing = session.existing();
    op = generator.next(existing);
    ++made;
    return &op;
  });
}

std::optional<Failure> run_steps(const Plan& plan, const std::vector<Op>& ops) {
  std::size_t at = 0;
  return drive(plan, [&](Session&) { return at < ops.size() ? &ops[at++] : nullptr; });
}

Failure shrink(const Plan& plan, Failure failure, int attempts) {
  // Halves, quarters, … are left out as long as what remains still fails; a failure in the middle
  // of a sequence cuts its tail by itself. A snapshot at the end finds what the periodic one did.
  for (std::size_t piece = std::max<std::size_t>(failure.ops.size() / 2, 1); attempts > 0;) {
    bool removed = false;
    for (std::size_t at = 0; at < failure.ops.size() && attempts > 0;) {
      std::vector<Op> fewer = failure.ops;
      const std::size_t end = std::min(at + piece, fewer.size());
      fewer.erase(fewer.begin() + static_cast<std::ptrdiff_t>(at),
                  fewer.begin() + static_cast<std::ptrdiff_t>(end));
      --attempts;
      auto still = run_steps(plan, fewer);
      if (still && still->kind == failure.kind) {
        failure = std::move(*still);
        removed = true;
      } else {
        at += piece;
      }
    }
    if (piece == 1 && !removed) break;
    if (!removed || piece > failure.ops.size()) piece = std::max<std::size_t>(piece / 2, 1);
  }
  return failure;
}

}  // namespace latchfs::fsdiff
