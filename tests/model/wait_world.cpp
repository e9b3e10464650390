#include "model/wait_world.h"

#include <algorithm>
#include <cstring>

#include "base/fault_point.h"

namespace latchfs::test {
namespace {

WaitWorld* g_world = nullptr;

constexpr std::uint64_t mix(std::uint64_t seed, std::uint64_t value) {
  std::uint64_t x = (seed ^ value) * 0x9E3779B97F4A7C15ULL;
  x ^= x >> 32;
  x *= 0xD6E8FEB86659FD93ULL;
  return x ^ (x >> 29);
}
std::uint64_t mix(std::uint64_t seed, const char* text) {
  for (; *text != '\0'; ++text) seed = mix(seed, static_cast<std::uint64_t>(*text));
  return seed;
}

}  // namespace

// ---- the table as one mount sees it

// ShmBackend::outside().
void WaitWorld::Backend::outside(const lock::Effects& fx) {
  if (fx.ring.empty() || world_.draining_ || world_.bug_ == Bug::kDoesNotRing) return;
  world_.point("ready_shards");
  world_.ready_shards_ |= fx.ready_shards;
  ++world_.current_->since;
  for (const std::uint64_t id : fx.ring) {
    world_.point("doorbell");
    if (world_.draining_) return;
    world_.mounts_[id - 1]->rung = true;
    ++world_.current_->since;
  }
}

void WaitWorld::Store::forget_ready(std::uint32_t i) {
  world_.point("forget_ready");
  if (world_.draining_) return;
  if (world_.shards_->at(i).root.ready == 0 || world_.bug_ == Bug::kForgetsBlindly) {
    world_.ready_shards_ &= ~(std::uint64_t{1} << i);
  }
}

void WaitWorld::Sink::tell(WaiterToken token, int err) noexcept {
  if (world_.draining_) return;
  world_.point("sink");
  if (world_.draining_) return;
  ++world_.current_->since;
  world_.current_->in_hand = token.raw;
  const int r = world_.request_of(token.raw);
  if (r < 0) {
    world_.fail("the sink heard of a request that nobody made");
    return;
  }
  std::string& lot = world_.requests_[static_cast<std::size_t>(r)].lot;
  if (world_.bug_ == Bug::kDropsEarlyGrant && lot.find('P') == std::string::npos) return;
  lot += 'G';
  auto& mount = *world_.mounts_[static_cast<std::size_t>(mount_)];
  if (err == 0) {
    mount.lot.granted(token);
  } else {
    mount.lot.refused(token, err);
  }
}

// ---- the machine

WaitWorld::WaitWorld(const Scenario& scenario, Bug bug)
    : scenario_{scenario}, bug_{bug}, shards_{get_shards()} {
  g_world = this;
  hook_faults(&WaitWorld::on_fault);
  for (int m = 0; m < scenario.mounts; ++m) mounts_.push_back(std::make_unique<Mount>(*this, m));
  for (int p = 0; p < static_cast<int>(scenario.processes.size()); ++p) {
    const Process& process = scenario.processes[static_cast<std::size_t>(p)];
    for (int n = 0; n < static_cast<int>(process.ops.size()); ++n) {
      const Op& op = process.ops[static_cast<std::size_t>(n)];
      if (op.what == Op::What::kLock) requests_.push_back({p, op, 0, kUnanswered, false, {}});
    }
  }
  for (int p = 0; p < static_cast<int>(scenario.processes.size()); ++p) {
    const Process& process = scenario.processes[static_cast<std::size_t>(p)];
    add_task(process.mount, "process " + std::to_string(p), true, [this, p] { run_process(p); });
    if (process.interrupted < 0) continue;
    int nth = 0;
    for (int r = 0; r < static_cast<int>(requests_.size()); ++r) {
      if (requests_[static_cast<std::size_t>(r)].process != p) continue;
      if (nth++ != process.interrupted) continue;
      add_task(process.mount, "signal to process " + std::to_string(p), false,
               [this, r] { run_interrupt(r); });
    }
  }
  if (scenario.mounts > 1) {
    for (int m = 0; m < scenario.mounts; ++m) {
      add_task(m, "doorbell " + std::to_string(m), false, [this, m] { run_doorbell(m); });
    }
  }
  if (scenario.killed >= 0) {
    const int dead = scenario.killed;
    add_task(-1, "kill", false, [this, dead] {
      wait_until(
          "its time", [this] { return there(0, scenario_.killed_beside); }, false);
      if (draining_) return;
      mounts_[static_cast<std::size_t>(dead)]->alive = false;
    });
    for (int m = 0; m < (scenario.all_reap ? scenario.mounts : 1); ++m) {
      if (m == dead) continue;
      add_task(m, "reaper " + std::to_string(m), false, [this, m, dead] { run_reaper(m, dead); });
    }
  }
}

WaitWorld::~WaitWorld() {
  draining_ = true;
  for (auto& task : tasks_) {
    current_ = task.get();
    while (!task->fiber->finished()) task->fiber->resume();
    Fiber::give_back(std::move(task->fiber));
  }
  current_ = nullptr;
  hook_faults(nullptr);
  g_world = nullptr;
  give_back(std::move(shards_));
}

// Memory once got is used again: getting it costs more than a step does.
std::unique_ptr<WaitWorld::Shards>& WaitWorld::spare() {
  static std::unique_ptr<Shards> one;
  return one;
}

std::unique_ptr<WaitWorld::Shards> WaitWorld::get_shards() {
  return spare() ? std::move(spare()) : std::make_unique<Shards>();
}

void WaitWorld::give_back(std::unique_ptr<Shards> shards) {
  for (Shard& shard : *shards) {
    lock::Effects none;
    for (std::uint64_t mount = 1; mount <= mounts_.size(); ++mount) {
      lock::LockTable<HeapArena> table{shard.arena, shard.root, none, 0};
      FileId at{};
      bool at_start = true;
      while (table.reap(mount, at, at_start)) {
      }
    }
    if (shard.root.file_count != 0 || shard.root.ready != 0) return;
    shard.root = {};
  }
  spare() = std::move(shards);
}

void WaitWorld::add_task(int mount, std::string name, bool must_end, std::function<void()> job) {
  auto task = std::make_unique<Task>();
  task->mount = mount;
  task->name = std::move(name);
  task->must_end = must_end;
  task->fiber = Fiber::get([this, job = std::move(job)] {
    if (!draining_) job();
  });
  tasks_.push_back(std::move(task));
}

std::vector<int> WaitWorld::enabled() const {
  std::vector<int> out;
  for (std::size_t i = 0; i < tasks_.size(); ++i) {
    const Task& task = *tasks_[i];
    if (task.fiber->finished()) continue;
    if (task.mount >= 0 && !mounts_[static_cast<std::size_t>(task.mount)]->alive) continue;
    if (!task.ready || task.ready()) out.push_back(static_cast<int>(i));
  }
  return out;
}

void WaitWorld::step(int task, bool checked) {
  checked_ = checked;
  current_ = tasks_[static_cast<std::size_t>(task)].get();
  current_->fiber->resume();
  if (current_->fiber->finished()) current_->at = "end";
  current_ = nullptr;
}

void WaitWorld::point(const char* at, bool touches) {
  Task* task = current_;
  if (task == nullptr || draining_) return;
  if (task->moved) {
    task->at = at;
    Fiber::pause();
  }
  task->moved = touches;
}

void WaitWorld::wait_until(const char* at, std::function<bool()> ready, bool touches) {
  Task* task = current_;
  task->at = at;
  task->ready = std::move(ready);
  while (!draining_ && !task->ready()) Fiber::pause();
  task->ready = nullptr;
  task->moved = touches;
}

void WaitWorld::on_fault(const char* name) noexcept {
  WaitWorld* world = g_world;
  if (world == nullptr || world->current_ == nullptr || world->draining_) return;
  Task& task = *world->current_;
  const auto note = [&](char what) {
    const int r = world->request_of(task.in_hand);
    if (r >= 0 && !world->draining_) world->requests_[static_cast<std::size_t>(r)].lot += what;
  };
  if (std::strcmp(name, "store.deliver") == 0) {
    if (task.tells) world->point("deliver", false);
    task.tells = false;
  } else if (std::strcmp(name, "park.before") == 0) {
    world->point("park");
    note('P');
  } else if (std::strcmp(name, "park.cancel") == 0) {
    world->point("cancel", false);
  } else if (std::strcmp(name, "park.finish") == 0) {
    world->point("finish");
    note('F');
  }
}

// ---- who does what

OwnerId WaitWorld::owner(int process) const {
  const Process& p = scenario_.processes[static_cast<std::size_t>(process)];
  if (p.owner_of >= 0) process = p.owner_of;
  return {static_cast<std::uint64_t>(p.mount) + 1, static_cast<std::uint64_t>(process) + 1,
          OwnerSpace::kRange};
}

LockRequest WaitWorld::as_request(int process, const Op& op) const {
  LockRequest r;
  r.file = {1, op.file};
  r.owner = owner(process);
  r.range = *ByteRange::from_half_open(op.begin, op.end);
  r.mode = op.mode;
  r.kind = op.kind;
  r.holder.pid = static_cast<std::uint32_t>(r.owner.key);
  r.holder.fh = r.owner.key;
  return r;
}

WaitWorld::Holding& WaitWorld::holding(int process, std::uint64_t file) {
  const Process& p = scenario_.processes[static_cast<std::size_t>(process)];
  if (p.owner_of >= 0) process = p.owner_of;
  for (Holding& h : holdings_) {
    if (h.process == process && h.file == file) return h;
  }
  return holdings_.emplace_back(Holding{process, file, {}, -1, false});
}

// As LockEdge does.
void WaitWorld::run_process(int process) {
  const Process& script = scenario_.processes[static_cast<std::size_t>(process)];
  Mount& mount = *mounts_[static_cast<std::size_t>(script.mount)];
  Task& task = *current_;
  if (script.after >= 0) {
    const auto first =
        std::find_if(requests_.begin(), requests_.end(),
                     [&script](const Request& other) { return other.process == script.after; });
    const int theirs = scenario_.processes[static_cast<std::size_t>(script.after)].mount;
    const Mount& before = *mounts_[static_cast<std::size_t>(theirs)];
    const auto ready = [&before, first] { return first->answer != kUnanswered || !before.alive; };
    wait_until("its turn", ready, false);
    if (draining_) return;
  }
  bool gave_up = false;
  int r = -1;
  for (const Op& op : script.ops) {
    task.trace = mix(task.trace, 7);
    const LockRequest req = as_request(process, op);
    if (op.what == Op::What::kAwait) {
      wait_until(
          "await", [this, &op] { return there(op.grants, op.waiters); }, false);
      if (draining_) return;
      continue;
    }
    if (op.what != Op::What::kLock) {
      const auto h = [&]() -> Holding& { return holding(process, op.file); };
      point("give back", false);
      if (draining_) return;
      if (op.what == Op::What::kClose) h().giving_back = true;
      // Whole step: see Backend::locked. Until then it is held.
      task.request = -1;
      h().mode.reset();
      const bool was = std::exchange(h().giving_back, true);
      const auto done = op.what == Op::What::kClose
                            ? mount.store.drop_owner(req.file, req.owner)
                            : mount.store.release(req.file, req.owner, req.range);
      if (draining_) return;
      if (!done) fail("giving back failed");
      h().giving_back = was;
      continue;
    }
    while (requests_[static_cast<std::size_t>(++r)].process != process) {
    }
    if (gave_up) continue;
    Request& request = requests_[static_cast<std::size_t>(r)];
    task.request = r;
    const WaiterToken token = mount.lot.open(req.file, [this, r](int err) { answered(r, err); });
    request.begun = true;
    request.token = task.in_hand = token.raw;
    holding(process, op.file).asking = r;
    task.moved = true;  // a signal finds it
    const auto got = mount.store.acquire(req, OnConflict::kQueue, token);
    if (draining_) return;
    if (!got) {
      fail("a request failed");
    } else if (std::holds_alternative<Queued>(*got)) {
      mount.lot.park(token);
      wait_until(
          "answer", [&request] { return request.answer != kUnanswered; }, false);
    } else {
      point("close");
      if (draining_) return;
      mount.lot.close(token);
      answered(r, std::holds_alternative<Granted>(*got) ? 0 : EDEADLK);
    }
    gave_up = request.answer != 0;
  }
}

void WaitWorld::run_interrupt(int r) {
  Request& request = requests_[static_cast<std::size_t>(r)];
  wait_until(
      "signal", [&request] { return request.begun; }, true);
  if (draining_) return;
  if (bug_ == Bug::kDropsEarlyInterrupt && request.lot.find('P') == std::string::npos) return;
  current_->in_hand = request.token;
  request.lot += 'I';
  fuse::ParkingLot::interrupt_any(WaiterToken{request.token}, EINTR);
}

// ShmStore::doorbell_loop().
void WaitWorld::run_doorbell(int m) {
  Mount& mount = *mounts_[static_cast<std::size_t>(m)];
  Task& task = *current_;
  for (;;) {
    task.trace = 0;
    task.since = 0;
    wait_until(
        "doorbell", [&mount] { return mount.rung; }, true);
    if (draining_) return;
    if (bug_ != Bug::kSeenTooLate) mount.rung = false;
    point("woken");
    const std::uint64_t maybe = ready_shards_;
    task.trace = mix(task.trace, maybe);
    mount.store.collect_ready();
    for (std::uint32_t i = 0; i < scenario_.shards && !draining_; ++i) {
      if ((maybe >> i & 1) == 0) continue;
      mount.store.forget_ready(i);
      ++task.since;
    }
    if (bug_ == Bug::kSeenTooLate) {
      point("reset");
      mount.rung = false;
    }
  }
}

// ShmStore::reap_the_dead().
void WaitWorld::run_reaper(int m, int dead) {
  wait_until(
      "a death", [this, dead] { return !mounts_[static_cast<std::size_t>(dead)]->alive; }, false);
  if (draining_) return;
  reaping_ = true;
  mounts_[static_cast<std::size_t>(m)]->store.reap_mount(static_cast<std::uint64_t>(dead) + 1);
  reaping_ = false;
  if (draining_) return;
  reaped_ = true;
  const SeenTable now = look();
  const auto theirs = [dead](const OwnerId& o) {
    return o.mount == static_cast<std::uint64_t>(dead) + 1;
  };
  for (const SeenGrant& g : now.grants) {
    if (theirs(g.owner)) fail("a dead mount's lock was left");
  }
  for (const SeenWaiter& w : now.waiters) {
    if (theirs(w.wanted.owner)) fail("a dead mount's waiter was left");
  }
  if (bug_ == Bug::kReaperDoesNotRing) return;
  point("ready_shards");
  if (draining_) return;
  ready_shards_ = (std::uint64_t{1} << scenario_.shards) - 1;
  for (auto& mount : mounts_) {
    point("doorbell");
    if (draining_) return;
    mount->rung = true;
    ++current_->since;
  }
}

void WaitWorld::answered(int r, int err) {
  if (draining_) return;
  Request& request = requests_[static_cast<std::size_t>(r)];
  if (request.answer != kUnanswered) {
    fail("a request was answered twice");
    return;
  }
  request.answer = err;
  request.lot = "over";
  Holding& h = holding(request.process, request.op.file);
  h.asking = -1;
  if (err == 0) h.mode = request.op.mode;
  if (!checked_) check_holdings(look());
}

// ---- what must be true

int WaitWorld::request_of(std::uint64_t token) const {
  for (std::size_t r = 0; r < requests_.size(); ++r) {
    if (requests_[r].begun && requests_[r].token == token) return static_cast<int>(r);
  }
  return -1;
}

bool WaitWorld::there(std::uint64_t grants, std::uint64_t waiters) const {
  for (const Shard& shard : *shards_) {
    grants -= std::min(grants, shard.root.grant_count);
    waiters -= std::min(waiters, shard.root.waiter_count);
  }
  return grants == 0 && waiters == 0;
}

SeenTable WaitWorld::look() const {
  SeenTable seen;
  for (const Shard& shard : *shards_) {
    seen.look(shard.arena, shard.root, [this](std::uint64_t token) {
      return static_cast<std::uint64_t>(request_of(token) + 1);
    });
  }
  return seen;
}

void WaitWorld::after_step(std::uint32_t shard, const SeenTable& before, const lock::Effects& fx) {
  if (bug_ == Bug::kNewestFirst) serve_newest_first(shard);
  const SeenTable now = look();
  if (!checked_) check_step(shard, before, now, fx);
  for (const SeenWaiter& w : now.waiters) {
    if (std::find(arrived_.begin(), arrived_.end(), w.token) == arrived_.end()) {
      arrived_.push_back(w.token);
    }
  }
  std::erase_if(arrived_, [&](std::uint64_t token) {
    return std::none_of(now.waiters.begin(), now.waiters.end(),
                        [&](const SeenWaiter& w) { return w.token == token; });
  });
  if (current_ == nullptr) return;
  // What the step told the task: what it is to tell, and how its own request stands.
  std::uint64_t told = mix(0, fx.ready_shards);
  for (const auto& done : fx.finished) {
    told = mix(mix(told, static_cast<std::uint64_t>(request_of(done.token.raw))),
               static_cast<std::uint64_t>(done.err));
  }
  for (const std::uint64_t id : fx.ring) told = mix(told, id);
  for (const auto& item : fx.recheck) {
    told = mix(told, static_cast<std::uint64_t>(request_of(item.token.raw)));
  }
  if (current_->request >= 0) {
    const Request& mine = requests_[static_cast<std::size_t>(current_->request)];
    for (const SeenWaiter& w : now.waiters) told = mix(told, w.token == mine.token ? 3 : 4);
    for (const SeenGrant& g : now.grants) {
      told = mix(told, g.owner == owner(mine.process) && g.file.ino == mine.op.file &&
                               g.mode == mine.op.mode
                           ? 5
                           : 6);
    }
  }
  current_->trace = mix(current_->trace, told);
  current_->since = 0;
  current_->tells = !fx.finished.empty() || !fx.ring.empty() || !fx.recheck.empty();
}

std::string WaitWorld::answers() const {
  std::string out;
  for (const Request& r : requests_) {
    if (!out.empty()) out += ' ';
    out += r.answer == kUnanswered ? "none"
           : r.answer == 0         ? "granted"
           : r.answer == EINTR     ? "EINTR"
           : r.answer == EDEADLK   ? "EDEADLK"
                                   : std::to_string(r.answer);
  }
  return out;
}

std::string WaitWorld::describe(int task) const {
  const Task& t = *tasks_[static_cast<std::size_t>(task)];
  return t.name + " at " + t.at;
}

std::uint64_t WaitWorld::hash() const {
  std::uint64_t h = mix(0, ready_shards_);
  for (const std::uint64_t word : look().state) h = mix(h, word);
  for (const auto& mount : mounts_) h = mix(h, (mount->alive ? 1U : 0U) + (mount->rung ? 2U : 0U));
  for (const auto& task : tasks_) {
    h = mix(mix(h, task->at), task->trace);
    h = mix(mix(h, task->since), (task->moved ? 1U : 0U) + (task->tells ? 2U : 0U));
  }
  for (const Request& r : requests_) {
    h = mix(mix(h, static_cast<std::uint64_t>(r.answer) + 2), r.lot.c_str());
    h = mix(h, r.begun ? 1U : 0U);
  }
  for (const std::uint64_t token : arrived_) {
    h = mix(h, static_cast<std::uint64_t>(request_of(token)));
  }
  for (const Holding& x : holdings_) {
    h = mix(h, static_cast<std::uint64_t>(x.process) * 64 + x.file * 8 +
                   (x.mode ? 1U + static_cast<unsigned>(*x.mode) : 0U));
    h = mix(h, static_cast<std::uint64_t>(x.asking + 1) * 2 + (x.giving_back ? 1U : 0U));
  }
  return mix(h, reaped_ ? 1U : 0U);
}

// Bug::kNewestFirst: who has just queued goes to the front.
void WaitWorld::serve_newest_first(std::uint32_t shard) {
  using lock::FileRec;
  using lock::WaiterRec;
  Shard& at = shards_->at(shard);
  const lock::Ref f = at.root.files;
  if (f == 0) return;
  const FileRec& file = at.arena.get<FileRec>(f);
  const lock::Ref last = file.wait_tail;
  if (last == 0 || last == file.wait_head) return;
  const std::uint64_t token = at.arena.get<WaiterRec>(last).token;
  if (std::find(arrived_.begin(), arrived_.end(), token) != arrived_.end()) return;
  const WaiterRec& rec = at.arena.get<WaiterRec>(last);
  at.arena.set(file.wait_tail, rec.prev);
  at.arena.set(at.arena.get<WaiterRec>(rec.prev).next, 0U);
  at.arena.set(rec.prev, 0U);
  at.arena.set(rec.next, file.wait_head);
  at.arena.set(at.arena.get<WaiterRec>(file.wait_head).prev, last);
  at.arena.set(file.wait_head, last);
}

}  // namespace latchfs::test
