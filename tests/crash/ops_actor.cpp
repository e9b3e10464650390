#include "crash/ops_actor.h"

#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <iostream>
#include <thread>
#include <vector>

#include "base/fault_point.h"
#include "base/log.h"
#include "crash/step_mount.h"
#include "support/store_fixture.h"

namespace latchfs::test {
namespace {

constexpr FileId kFile{1, 100};
constexpr std::uint64_t kLockOwner = 1;
constexpr std::uint64_t kOpOwner = 2;
constexpr std::uint64_t kToken = 9;

class Play {
 public:
  explicit Play(const std::string& table) : table_{table} {
    ShmStore::Options options;
    options.table = table;
    options.table_max = 64ULL << 20;
    if (auto store = ShmStore::attach(options, sink_)) store_ = std::move(*store);
  }
  [[nodiscard]] bool joined() const { return store_ != nullptr; }

  std::string operator()(const std::string& command) {
    if (command.rfind("arm ", 0) == 0) {
      arm_faults(command.c_str() + 4);
      return "armed";
    }
    if (command == "begin") return begin();
    if (command.rfind("begin ", 0) == 0) {
      std::string last;
      for (int i = std::stoi(command.substr(6)); i > 0; --i) last = begin();
      return last;
    }
    if (command == "begin_unsound") return begin_unsound();
    if (command == "end") {
      for (const OwnerId& op : begun_) store_->end_op(kFile, op);
      begun_.clear();
      return "ended";
    }
    if (command == "lock") return lock(OnConflict::kRefuse);
    if (command == "wait") return lock(OnConflict::kQueue);
    if (command == "got") return sink_.await(kToken) == 0 ? "granted" : "never";
    if (command == "unlock") {
      return store_->drop_owner(kFile, request().owner).ok() ? "released" : "error";
    }
    if (command == "list") return list();
    if (command == "verify") {
      const auto wrong = store_->verify();
      if (!wrong.ok()) return wrong.error().message();
      return wrong->empty() ? "ok" : *wrong;
    }
    return "what?";
  }

 private:
  [[nodiscard]] LockRequest request() const {
    LockRequest r;
    r.file = kFile;
    r.owner = {store_->mount_id(), kLockOwner, OwnerSpace::kRange};
    r.mode = LockMode::kExclusive;
    r.kind = LockKind::kPosix;
    return r;
  }
  void next_op() {
    op_ = LockService::OpRequest{};
    op_.file = kFile;
    op_.op = {store_->mount_id(), ++last_op_, OwnerSpace::kOp};
    op_.owner = {store_->mount_id(), kOpOwner, OwnerSpace::kRange};
    op_.range = *ByteRange::from_half_open(5, 10);
    op_.kind = LockKind::kWriteOp;
    op_.holder.uid = 1000;
  }
  std::string begin() {
    next_op();
    const auto got = store_->begin_op(op_, OnConflict::kRefuse, {});
    if (!got.ok()) return got.error().message();
    if (!std::holds_alternative<Granted>(*got)) return "conflict";
    begun_.push_back(op_.op);
    return "granted";
  }
  // Without the store's own begin_op(), in the order that must not be.
  std::string begin_unsound() {
    next_op();
    const auto registry = shm::Registry::open(table_);
    auto region = registry.ok() ? shm::Region::open(registry->region_name()) : errno_code(EIO);
    if (!region.ok()) return region.error().message();
    const auto& filter = (*region)->shard(shm::shard_of(kFile)).filter;
    const bool nothing = filter.nothing_in(shm::FileFilter::cell_of(kFile));
    fault_point("test.unsound");
    if (!nothing) return "conflict";
    std::uint32_t slot = 0;
    while ((*region)->header().mounts[slot].id.load() != store_->mount_id()) ++slot;
    (*region)->operations().publish(slot, op_, 0);
    begun_.push_back(op_.op);
    return "granted";
  }
  std::string lock(OnConflict on) {
    const auto got = store_->acquire(request(), on, WaiterToken{kToken});
    if (!got.ok()) return got.error().message();
    if (std::holds_alternative<Queued>(*got)) return "queued";
    return std::holds_alternative<Granted>(*got) ? "granted" : "conflict";
  }
  std::string list() {
    const auto page = store_->list({kFile, {}, 256});
    if (!page.ok()) return page.error().message();
    int ops = 0;
    for (const Grant& g : page->grants) ops += is_op(g.kind) ? 1 : 0;
    return std::to_string(ops);
  }

  std::string table_;
  RecordingSink sink_{RecordingSink::Losses::kExpected};  // a test empties a shard
  std::unique_ptr<ShmStore> store_;
  LockService::OpRequest op_;
  std::uint64_t last_op_{};
  std::vector<OwnerId> begun_;
};

}  // namespace

int run_actor(const std::string& table) {
  if (!log::open("/dev/null", log::Level::kError)) return 3;
  Play play{table};
  if (!play.joined()) return 3;
  std::cout << "here" << std::endl;
  for (std::string line; std::getline(std::cin, line) && line != "quit";) {
    std::cout << play(line) << std::endl;
  }
  return 0;
}

Actor::Actor(const std::string& table) {
  std::array<int, 2> in{};
  std::array<int, 2> out{};
  if (::pipe2(in.data(), O_CLOEXEC) != 0 || ::pipe2(out.data(), O_CLOEXEC) != 0) return;
  pid_ = ::fork();
  if (pid_ == 0) {
    ::dup2(in[0], 0);
    ::dup2(out[1], 1);
    ::execl("/proc/self/exe", "actor", "--actor", table.c_str(), nullptr);
    ::_exit(127);
  }
  ::close(in[0]);
  ::close(out[1]);
  to_ = in[1];
  from_ = out[0];
  answer();  // it has joined
}

Actor::~Actor() {
  ::close(to_);  // it reads no more, and ends
  if (pid_ > 0) ::waitpid(pid_, nullptr, 0);
  ::close(from_);
}

void Actor::tell(const std::string& command) {
  const std::string line = command + "\n";
  (void)!::write(to_, line.data(), line.size());
}

std::string Actor::answer() {
  std::string line;
  for (char c = 0; ::read(from_, &c, 1) == 1;) {
    if (c == '\n') return line;
    line += c;
  }
  return "dead";
}

void Actor::kill() {
  if (pid_ <= 0) return;
  ::kill(pid_, SIGKILL);
  ::waitpid(pid_, nullptr, 0);
  pid_ = -1;
}

Gate::Gate() : path_{"/tmp/latchfs-gate-XXXXXX"} {
  const int fd = ::mkstemp(path_.data());
  if (fd >= 0) ::close(fd);
}

bool Gate::reached() const {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::minutes{1};
  for (;;) {
    struct stat st {};
    if (::stat(path_.c_str(), &st) == 0 && st.st_size > 0) return true;
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds{1});
  }
}

void Gate::open() { ::unlink(path_.c_str()); }

}  // namespace latchfs::test
