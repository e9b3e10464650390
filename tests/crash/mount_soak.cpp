// Random deaths on mounts that share a table, for as long as asked (scripts/soak): daemons and
// clients are killed, signals rain, the table grows to many locks and back. Nobody may ever hold
// what another holds, nobody may be stuck, and when all are gone nothing may be left.
//
// usage: mount_soak MINUTES      LATCHFS_SEED: of an earlier run
#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "crash/mount_contention.h"
#include "support/lock_proc.h"
#include "support/mount_fixture.h"

namespace latchfs::locktest {
namespace {

using test::MountFixture;
using Clock = std::chrono::steady_clock;

constexpr unsigned kContenders = 40;
constexpr unsigned kGrowers = 2;
constexpr off_t kManyLocks = 20'000;

struct Totals {
  unsigned long long rounds{}, daemons{}, clients{}, signals{}, grants{}, grown{};
};

[[noreturn]] void fail(const std::string& what) { throw std::runtime_error(what); }

bool bearable(std::optional<int> status) {
  // Ended as it should, orphaned, or killed by us.
  return status &&
         (exited_well(status) || (WIFEXITED(*status) && WEXITSTATUS(*status) == kOrphaned) ||
          (WIFSIGNALED(*status) && WTERMSIG(*status) == SIGKILL));
}

// Takes many locks that do not touch and gives them back, in one call, again and again.
int grow(Arena& arena, const std::string& path, std::atomic<std::uint64_t>& grown) {
  handle_user_signals();
  while (!arena.stop) {
    const UniqueFd fd = open_file(path);
    for (off_t i = 0; i < kManyLocks && !arena.stop; ++i) {
      const int err = lock_now(fd.get(), LockType::kOfd, i % 2 == 0, i * 2, 1);
      if (err == EINTR) continue;
      if (err != 0) return 1;
      ++grown;
    }
    if (unlock(fd.get(), LockType::kOfd) != 0) return 1;
  }
  return 0;
}

class Soak {
 public:
  explicit Soak(std::uint64_t seed) : random_{seed} {
    left_ = std::make_unique<MountFixture>(keeper_.another());
    right_ = std::make_unique<MountFixture>(keeper_.another());
    used_at_first_ = status_number(keeper_.mount(), "/capacity/used");
  }

  // One crowd, with deaths; at its end nothing is left.
  void round() {
    const Shared<Arena> arena;
    const Shared<std::atomic<std::uint64_t>> grown;
    std::vector<Child> growers;
    for (unsigned i = 0; i < kGrowers; ++i) {
      const std::string path = keeper_.mount() + "/many" + std::to_string(i);
      growers.emplace_back([&arena, &grown, path] { return grow(*arena, path, *grown); });
    }
    std::vector<Child> crowd;
    // Those that end with locks held are not checked for what they hold: their mount hears of it
    // only then.
    const bool dying = random_() % 2 == 0;
    for (unsigned i = 0; i < kContenders; ++i) crowd.push_back(contender(*arena, i, dying));
    const std::uint64_t goal = 2000 + random_() % 8000;
    const auto daemon_dies = static_cast<unsigned>(random_() % 3);  // 2: neither
    const std::uint64_t dies_at = random_() % goal;
    bool daemon_died = false;
    if (!poll_until([&] {
          const std::uint64_t sum = granted(*arena);
          if (daemon_dies != 2 && !daemon_died && sum >= dies_at) {
            daemon_died = true;
            kill_daemon(*arena, daemon_dies);
          }
          const auto number = static_cast<unsigned>(random_() % kContenders);
          Child& one = crowd[number];
          if (dying && random_() % 16 == 0) {
            one.signal(SIGKILL);
            ++totals.clients;
          } else if (arena->grants[number] != 0) {  // it has its handlers
            one.signal(random_() % 2 == 0 ? SIGUSR1 : SIGUSR2);
            ++totals.signals;
          }
          const bool all_over =
              std::all_of(crowd.begin(), crowd.end(), [](Child& c) { return c.ended(); });
          return sum >= goal || all_over;
        })) {
      fail("stuck at " + std::to_string(granted(*arena)) + " of " + std::to_string(goal) +
           " grants");
    }
    arena->stop = true;
    for (Child& child : crowd) {
      const auto status = child.wait();
      if (!status) fail("a client hangs");
      if (!bearable(status)) fail("a client ended badly: status " + std::to_string(*status));
    }
    for (Child& child : growers) {
      if (!exited_well(child.wait())) fail("one with many locks hangs, or ended badly");
    }
    if (!dying && arena->violations != 0) fail("somebody held what another held");
    if (arena->errors != 0) fail("errno " + std::to_string(arena->last_error));
    totals.grants += granted(*arena);
    totals.grown += *grown;
    ++totals.rounds;
    if (daemon_died) replace(daemon_dies);
    expect_empty();
  }

  void finish() {
    if (!left_->unmount() || !right_->unmount()) fail("a mount cannot be ended");
    expect_empty();
    if (status_number(keeper_.mount(), "/counts/mounts") != 1) fail("a mount is left");
  }

  Totals totals;

 private:
  Child contender(Arena& arena, unsigned i, bool dying) {
    Contender who;
    who.number = i;
    who.side = static_cast<int>(i % 2);
    who.dir = who.side == 0 ? left_->mount() : right_->mount();
    who.type = static_cast<LockType>(i / 2 % 3);
    who.seed = random_();
    who.dies_at_will = dying;
    return Child{[&arena, who] { return contend(arena, who); }};
  }

  static std::uint64_t granted(const Arena& arena) {
    std::uint64_t sum = 0;
    for (const auto& grants : arena.grants) sum += grants;
    return sum;
  }

  std::unique_ptr<MountFixture>& side(unsigned i) { return i == 0 ? left_ : right_; }

  void kill_daemon(Arena& arena, unsigned i) {
    arena.side_dead[i] = true;
    side(i)->kill_daemon();
    ++totals.daemons;
  }
  void replace(unsigned i) {
    side(i)->detach();
    side(i) = std::make_unique<MountFixture>(keeper_.another());
  }

  void expect_empty() {
    if (const std::string left = table_left(keeper_.mount()); !left.empty()) fail("left: " + left);
    for (const char* what :
         {"/counts/grants", "/counts/waiters", "/counts/owners", "/counts/files"}) {
      if (status_number(keeper_.mount(), what) != 0) fail(std::string{what} + " is not 0");
    }
    if (status_number(keeper_.mount(), "/capacity/used") != used_at_first_) {
      fail("the table does not get its memory back");
    }
    const auto status = nlohmann::json::parse(status_text(keeper_.mount()));
    const std::string verified = status.at("last_verify").get<std::string>();
    if (!verified.empty() && verified != "ok") fail("last_verify: " + verified);
  }

  std::mt19937_64 random_;
  MountFixture keeper_;  // never killed: sees all, and has those with many locks
  std::unique_ptr<MountFixture> left_, right_;
  long used_at_first_{};
};

int run(int minutes) {
  const char* const text = std::getenv("LATCHFS_SEED");
  const std::uint64_t seed =
      text != nullptr ? std::strtoull(text, nullptr, 10) : std::random_device{}();
  std::printf("LATCHFS_SEED=%llu\n", static_cast<unsigned long long>(seed));
  std::fflush(stdout);
  Soak soak{seed};
  const auto until = Clock::now() + std::chrono::minutes{minutes};
  while (Clock::now() < until) soak.round();
  soak.finish();
  const Totals& t = soak.totals;
  std::printf(
      "%llu rounds: %llu grants, %llu locks of those with many, %llu daemons and %llu clients "
      "killed, %llu signals; nothing stuck, nothing left\n",
      t.rounds, t.grants, t.grown, t.daemons, t.clients, t.signals);
  return 0;
}

}  // namespace
}  // namespace latchfs::locktest

int main(int argc, char** argv) {
  const int minutes = argc == 2 ? std::atoi(argv[1]) : 0;
  if (minutes <= 0) {
    std::fprintf(stderr, "usage: mount_soak MINUTES\n");
    return 2;
  }
  try {
    return latchfs::locktest::run(minutes);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "soak: %s\n", e.what());
    return 1;
  }
}
