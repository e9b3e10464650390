#include "crash/step_check.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/futex.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <sstream>
#include <utility>

#include "crash/step_image.h"
#include "crash/step_victim.h"
#include "support/store_fixture.h"

namespace latchfs::test {
namespace {

constexpr std::size_t kFailuresTold = 5;

// Mounts by what is the same in each table.
std::string text(const Grant& g) {
  OwnerId owner = g.owner;
  owner.mount %= std::uint64_t{1} << 20;
  return fmt::format("{}:{} {} {}-{} {} kind {} uid {}\n", g.file.dev, g.file.ino, to_string(owner),
                     g.range.begin(), g.range.end(), g.mode == LockMode::kExclusive ? "EX" : "SH",
                     static_cast<int>(g.kind), g.holder.uid);
}

// What survivors find. `uids`: grants and waiters of each user.
struct Found {
  std::string state;
  std::string problem;
  std::map<std::uint32_t, std::int64_t> uids;
};

// Memory of waiters that are granted and that their daemon has not fetched yet. (Who repairs a step
// fetches its own at once.)
std::uint64_t ready_bytes(const shm::Region& region) {
  std::uint64_t bytes = 0;
  for (std::uint32_t i = 0; i < shm::kShardCount; ++i) {
    for (lock::Ref w = region.shard(i).root.ready; w != 0; bytes += sizeof(lock::WaiterRec)) {
      w = reinterpret_cast<const lock::WaiterRec*>(region.base() + w * shm::kCellBytes)->next;
    }
  }
  return bytes;
}

// All that is held and waited for, and how much memory that takes.
Found look_at(LockService& store, const shm::Region& region) {
  Found found;
  ListQuery query;
  query.limit = 256;
  for (bool more = true; more;) {
    const auto page = store.list(query);
    if (!page.ok()) return {"", "list: " + page.error().message(), {}};
    for (const Grant& g : page->grants) {
      found.state += text(g);
      ++found.uids[g.holder.uid];
    }
    more = page->next.has_value();
    if (more) query.after = *page->next;
  }
  query.after = ListCursor{};
  for (bool more = true; more;) {
    const auto page = store.list_waiters(query);
    if (!page.ok()) return {"", "list_waiters: " + page.error().message(), {}};
    for (const Waiter& w : page->waiters) {
      found.state += "waits " + text(w.request);
      if (!w.blocker) found.problem = "a waiter that nothing blocks";
      ++found.uids[w.request.holder.uid];
    }
    more = page->next.has_value();
    if (more) query.after = *page->next;
  }
  const auto stats = store.stats();
  if (!stats.ok()) return {"", "stats: " + stats.error().message(), {}};
  found.state += fmt::format("{} files, {} owners, {} grants, {} waiters, {} bytes\n", stats->files,
                             stats->owners, stats->grants, stats->waiters,
                             stats->bytes_used - ready_bytes(region));
  const auto wrong = store.verify();
  if (!wrong.ok()) found.problem = "verify: " + wrong.error().message();
  if (wrong.ok() && !wrong->empty()) found.problem = "verify: " + *wrong;
  return found;
}

// What no list shows but all depend on: the counts of mounts and of users, memory that is nobody's.
std::string look_at_header(const shm::Region& region,
                           const std::map<std::uint32_t, std::int64_t>& uids) {
  const shm::Header& h = region.header();
  const auto mounts = static_cast<std::uint32_t>(
      std::count_if(h.mounts.begin(), h.mounts.end(),
                    [](const shm::MountSlot& slot) { return slot.id.load() != 0; }));
  if (h.mount_count.load() != mounts) {
    return fmt::format("{} mounts counted, {} there", h.mount_count.load(), mounts);
  }
  std::map<std::uint32_t, std::int64_t> counted;
  for (const shm::UserSlot& slot : h.users) {
    if (slot.count.load() != 0) {
      counted[static_cast<std::uint32_t>(slot.uid_plus_one.load() - 1)] = slot.count.load();
    }
  }
  if (counted != uids) return "the counts per user are wrong";
  for (std::uint32_t i = 0; i < shm::kShardCount; ++i) {
    const shm::FileFilter& filter = region.shard(i).filter;
    std::uint64_t files = 0;
    for (std::uint32_t cell = 0; cell < shm::FileFilter::kCells; ++cell) {
      files += filter.counts[cell];
      if (filter.nothing_in(cell) != (filter.counts[cell] == 0)) return "a filter bit is wrong";
    }
    if (files != region.shard(i).root.file_count) return "a filter counts other files";
  }
  // (Where the last to grow the table died, the next to grow it counts.)
  const auto& grow_mu = reinterpret_cast<const std::uint32_t&>(h.grow_mu);
  if ((grow_mu & FUTEX_OWNER_DIED) != 0) return "";
  std::uint64_t cells = 0;
  for (std::uint32_t i = 0; i < shm::kShardCount; ++i) cells += region.shard(i).chunks;
  const std::uint64_t given =
      region.chunk_limit() - shm::first_chunk(region.bytes()) - h.space.given_back_count;
  if (cells != given) {
    return fmt::format("shards have {} chunks of memory, {} were given out", cells, given);
  }
  return "";
}

// The state that is found, and what reaping the dead makes of it.
struct Recovered {
  std::string before_reaping, after_reaping, problem;
};

std::string text(const Recovered& r) { return r.before_reaping + "reaped:\n" + r.after_reaping; }

Recovered recover(const std::string& table, QuietMount* survivor, TellTale& told) {
  Recovered out;
  const auto note = [&out](const std::string& problem) {
    if (out.problem.empty()) out.problem = problem;
  };
  if (survivor != nullptr) {
    const Found found = look_at(*survivor, survivor->region());
    out.before_reaping = found.state;
    note(found.problem);
  }
  ShmStore::Options options;
  options.table = table;
  options.table_max = kStepTableBytes;
  TellTale silent;
  auto next = ShmStore::attach(options, silent);
  if (!next.ok()) {
    note("attach: " + next.error().message());
    return out;
  }
  // (What the next mount has mapped cannot be seen from outside; the registry leads to the same.)
  const auto registry = shm::Registry::open(table);
  const auto region = shm::Region::open(registry.ok() ? registry->region_name() : "");
  if (!region.ok()) {
    note("the table has no name");
    return out;
  }
  if (survivor != nullptr) survivor->collect_ready();
  const Found found = look_at(**next, **region);
  out.after_reaping = found.state;
  note(found.problem);
  note(look_at_header(**region, found.uids));
  if (survivor == nullptr) return out;
  for (const auto& [token, err] : told.told()) {
    out.after_reaping += fmt::format("told {}: {}\n", token, err);
  }
  // It still works: all can be given back, and then there is nothing left.
  survivor->reap_mount(survivor->mount_id());
  survivor->collect_ready();
  const Found empty = look_at(**next, **region);
  note(empty.problem);
  if (empty.state != "0 files, 0 owners, 0 grants, 0 waiters, 0 bytes\n") {
    note("when all was given back there was left: " + empty.state);
  }
  // Memory can still be got: for a file in a shard that has none.
  LockRequest fresh;
  fresh.owner = {(*next)->mount_id(), 1, OwnerSpace::kRange};
  for (fresh.file = {9, 0}; (*region)->shard(shm::ShmBackend::shard_of(fresh.file)).chunks != 0;
       ++fresh.file.ino) {
  }
  const auto got = (*next)->acquire(fresh, OnConflict::kRefuse, {});
  if (!got.ok() || !std::holds_alternative<Granted>(*got)) note("the table cannot grow any more");
  note(look_at_header(**region, {{0, 1}}));
  return out;
}

// fn() in a forked process; what went wrong with that is the problem.
template <class Fn>
Recovered in_a_process(const Fn& fn) {
  constexpr unsigned kHungSeconds = 20;
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) return {"", "", "no pipe"};
  UniqueFd from{ends[0]};
  UniqueFd to{ends[1]};
  const pid_t pid = ::fork();
  if (pid == 0) {
    ::alarm(kHungSeconds);
    const Recovered r = fn();
    const std::string all = r.before_reaping + '\0' + r.after_reaping + '\0' + r.problem + '\0';
    std::size_t done = 0;
    while (done < all.size()) {
      const ssize_t n = ::write(to.get(), all.data() + done, all.size() - done);
      if (n <= 0) ::_exit(1);
      done += static_cast<std::size_t>(n);
    }
    ::_exit(0);
  }
  to.reset();
  std::string all;
  std::array<char, 4096> part{};
  for (ssize_t n = 0; (n = ::read(from.get(), part.data(), part.size())) > 0;) {
    all.append(part.data(), static_cast<std::size_t>(n));
  }
  int status = 0;
  if (pid < 0 || ::waitpid(pid, &status, 0) != pid) return {"", "", "no process"};
  if (WIFSIGNALED(status)) {
    return {"", "", fmt::format("the survivor ended by signal {}", WTERMSIG(status))};
  }
  Recovered out;
  std::istringstream in{all};
  std::getline(in, out.before_reaping, '\0');
  std::getline(in, out.after_reaping, '\0');
  if (!std::getline(in, out.problem, '\0') || status != 0) out.problem = "the survivor ended early";
  return out;
}

// A table with its survivor and its victim, stopped where the act begins.
class Scene {
 public:
  explicit Scene(const StepAct& act) : table_{unique_table()} {
    if (act.survivor) survivor_ = join_quietly(table_, told_);
    stage_.table = table_;
    if (survivor_ != nullptr) {
      stage_.survivor = survivor_->mount_id();
      stage_.survivor_slot = survivor_->slot();
    }
    victim_ = std::make_unique<Victim>(
        [&] {
          if (act.joins) stage_.me = join_quietly(table_, stage_.told);
          return (!act.joins || stage_.me != nullptr) && act.prepare(stage_);
        },
        [&] { act.run(stage_); });
  }
  ~Scene() {
    victim_.reset();
    survivor_.reset();
    remove_table(table_);
  }
  Scene(const Scene&) = delete;
  Scene& operator=(const Scene&) = delete;

  [[nodiscard]] bool set_up() const { return !victim_->failed(); }
  Victim& victim() { return *victim_; }
  [[nodiscard]] const std::string& table() const { return table_; }
  [[nodiscard]] std::set<std::size_t> pages_in_use() const {
    const auto registry = shm::Registry::open(table_);
    const auto image = registry.ok() ? Image::open(registry->region_name()) : nullptr;
    return image != nullptr ? image->pages_in_use() : std::set<std::size_t>{};
  }

  // The victim dies in a copy of the table, and is survived there.
  Recovered recover_copy(const WatchedTable& watched) {
    Recovered out;
    std::unique_ptr<Image> copy;
    if (!watched.copy_to(copy_, copy)) {
      out.problem = "the table could not be copied";
    } else if (copy != nullptr && victim_->holds_robust() &&
               !victim_->die_in(copy->fd(), copy->bytes(), table_mutexes().data(),
                                table_mutexes().size())) {
      out.problem = "nobody could die in the copy";
    } else {
      out = survive(copy_);
    }
    remove_table(copy_);
    return out;
  }
  // The same in the table itself.
  Recovered recover_here() {
    victim_->kill();
    return survive(table_);
  }

 private:
  // As the survivor goes on, in a process of its own: a damaged table may be its end.
  Recovered survive(const std::string& table) {
    return in_a_process([&] {
      TellTale told;
      std::unique_ptr<QuietMount> survivor;
      if (survivor_ != nullptr) {
        survivor = speak_for<shm::ShmBackend>(table, told, stage_.survivor_slot, stage_.survivor);
        if (survivor == nullptr) return Recovered{"", "", "the survivor cannot go on"};
        // (In the table itself the survivor that set the scene has it.)
        if (auto registry = shm::Registry::open(table);
            registry.ok() && registry->claim(stage_.survivor_slot)) {
          survivor->claimed = std::move(*registry);
        }
      }
      return recover(table, survivor.get(), told);
    });
  }

  std::string table_, copy_{unique_table()};
  TellTale told_;
  std::unique_ptr<QuietMount> survivor_;
  Stage stage_;
  std::unique_ptr<Victim> victim_;
};

// What was found, point by point, and whether it may be.
class Judge {
 public:
  Judge(const StepAct& act, StepReport& report) : act_{act}, report_{report} {}

  void first(const Recovered& old) {
    old_ = old;
    if (!old.problem.empty()) fail("before the act: " + old.problem);
    left_behind_.push_back(act_.outcome == Outcome::kTwoSteps ? text(old) : old.before_reaping);
  }
  void point(std::uint64_t instruction, std::uintptr_t at, const Recovered& found) {
    seen_.push_back({instruction, at, found});
  }
  void last(const Recovered& fresh) {
    new_ = fresh;
    if (!fresh.problem.empty()) fail("after the act: " + fresh.problem);
    if (act_.outcome == Outcome::kOldOrNew && text(old_) == text(fresh)) fail("it does nothing");
    if (act_.outcome == Outcome::kSame && text(old_) != text(fresh)) fail("it does something");
    bool done = false;
    for (const auto& [instruction, at, found] : seen_) {
      const std::string why = at_once() ? old_or_new(found, fresh, done) : in_steps(found, fresh);
      if (!why.empty()) fail(fmt::format("instruction {} ({:#x}): {}", instruction, at, why));
    }
  }
  // A death of the victim itself. After last().
  void death(std::uint64_t instruction, const Recovered& found) {
    const auto same = [&](const Recovered& other) {
      return other.after_reaping == found.after_reaping &&
             other.before_reaping == found.before_reaping;
    };
    // (Of several steps a sample of points need not have shown all.)
    const bool fine =
        at_once() ? same(old_) || same(new_)
                  : act_.outcome == Outcome::kTwoSteps || found.after_reaping == new_.after_reaping;
    if (!found.problem.empty()) {
      fail(fmt::format("killed at instruction {}: {}", instruction, found.problem));
    } else if (!fine) {
      fail(fmt::format("killed at instruction {}: {}", instruction, text(found)));
    }
  }
  void fail(const std::string& what) {
    if (++report_.failures <= kFailuresTold) report_.first.push_back(act_.name + ", " + what);
  }

 private:
  struct Point {
    std::uint64_t instruction;
    std::uintptr_t at;
    Recovered found;
  };

  [[nodiscard]] bool at_once() const {
    return act_.outcome == Outcome::kOldOrNew || act_.outcome == Outcome::kSame;
  }

  std::string old_or_new(const Recovered& found, const Recovered& fresh, bool& done) const {
    if (!found.problem.empty()) return found.problem;
    const bool is_old =
        found.before_reaping == old_.before_reaping && found.after_reaping == old_.after_reaping;
    const bool is_new =
        found.before_reaping == fresh.before_reaping && found.after_reaping == fresh.after_reaping;
    if (!is_old && !is_new) {
      return "neither the old nor the new state:\n" + text(found) + "--- old:\n" + text(old_) +
             "--- new:\n" + text(fresh);
    }
    if (done && !is_new) return "the old state after the new one";
    done = is_new && !is_old;
    return "";
  }

  std::string in_steps(const Recovered& found, const Recovered& fresh) {
    if (!found.problem.empty()) return found.problem;
    const bool two = act_.outcome == Outcome::kTwoSteps;
    if (!two && found.after_reaping != fresh.after_reaping) {
      return "another state than at the end:\n" + found.after_reaping;
    }
    const std::string now = two ? text(found) : found.before_reaping;
    if (now == left_behind_.back()) return "";
    if (std::count(left_behind_.begin(), left_behind_.end(), now) != 0) {
      return "a state that was left came back:\n" + now;
    }
    left_behind_.push_back(now);
    if (two && left_behind_.size() > 2 && now != text(fresh)) return "a state too many:\n" + now;
    return "";
  }

  const StepAct& act_;
  StepReport& report_;
  Recovered old_, new_;
  std::vector<std::string> left_behind_;
  std::vector<Point> seen_;
};

void die_at(const StepAct& act, std::uint64_t instruction, Judge& judge, StepReport& report) {
  Scene scene{act};
  std::uint64_t done = 0;
  while (done < instruction && scene.victim().step()) ++done;
  ++report.deaths;
  if (scene.victim().failed()) {
    judge.fail("the victim could not be stepped to its death");
  } else {
    judge.death(done, scene.recover_here());
  }
}

}  // namespace

StepReport check_act(const StepAct& act, std::uint64_t stride, int deaths) {
  StepReport report;
  Judge judge{act, report};
  std::mt19937_64 random{std::random_device{}()};
  std::set<std::size_t> pages;
  {
    // Once at full speed, to know which pages matter.
    Scene scene{act};
    if (!scene.set_up()) {
      judge.fail("it could not be set up");
      return report;
    }
    pages = scene.pages_in_use();
    if (!scene.victim().run_through()) judge.fail("it does not come to its end");
    pages.merge(scene.pages_in_use());
  }
  std::vector<std::uint64_t> where;
  {
    Scene scene{act};
    Victim& victim = scene.victim();
    WatchedTable watched{scene.table(), pages};
    judge.first(scene.recover_copy(watched));
    std::uint64_t until_next = stride == 1 ? 0 : random() % stride;
    for (RobustHead held = victim.robust(); victim.step(); held = victim.robust()) {
      ++report.instructions;
      if (victim.was_syscall()) watched.look_again();
      // Every now and then all the same, so that it would show if may_have_stored() were wrong.
      const bool sure = !victim.may_have_stored() && !victim.was_syscall();
      const bool changed = (!sure || report.instructions % 64 == 0) && watched.changed();
      if (sure && changed) judge.fail("a store was not taken for one");
      if (!changed && held == victim.robust() && !victim.was_syscall()) continue;
      ++report.points;
      where.push_back(report.instructions);
      if (until_next-- != 0) continue;
      until_next = stride - 1;
      ++report.recovered;
      const Recovered found = scene.recover_copy(watched);
      judge.point(report.instructions, victim.at(), found);
      if (act.broken && !found.problem.empty()) {
        judge.fail(found.problem);
        return report;
      }
    }
    if (victim.failed()) judge.fail("the victim could not be stepped to its end");
    if (watched.missed_a_page()) judge.fail("memory changed that was not watched");
    judge.last(scene.recover_copy(watched));
  }
  // Each is the way there once more.
  constexpr std::uint64_t kMostInstructions = 600'000;
  const auto some = static_cast<int>(kMostInstructions / (report.instructions + 1)) + 1;
  for (int i = 0; i < std::min(deaths, some) && !where.empty(); ++i) {
    die_at(act, where[random() % where.size()], judge, report);
  }
  return report;
}

}  // namespace latchfs::test
