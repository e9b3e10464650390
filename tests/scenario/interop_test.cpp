// Programs that lock: flock(1), Python's fcntl, sqlite3 with two writers; on a native directory, to
// know that the checks are right, on a mount and between two mounts.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "support/lock_children.h"
#include "support/lock_proc.h"
#include "support/mount_fixture.h"

namespace latchfs::locktest {
namespace {

using test::MountFixture;
using test::TempDir;
using Dirs = std::vector<std::string>;

int shell(const std::string& command) {
  const int status = std::system(command.c_str());  // NOLINT: the words are ours
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

void python(const char* what, const Dirs& dirs) {
  std::string command = std::string{"python3 "} + SCENARIO_DIR + "/interop.py " + what;
  for (const std::string& dir : dirs) command += " '" + dir + "'";
  EXPECT_EQ(shell(command), 0) << command;
}

// flock(1) holds the lock as long as the program it runs: cat, on a pipe that we close.
void flock_program(const Dirs& dirs) {
  const TempDir pipes;
  const std::string here = "'" + dirs.front() + "/f'";
  const std::string there = "'" + dirs.back() + "/f'";
  const std::string fifo = pipes.path() + "/p";
  ASSERT_EQ(::mkfifo(fifo.c_str(), 0600), 0);
  Child holder{[&] { return shell("flock " + here + " cat '" + fifo + "'"); }};
  // Can be opened when cat has: the lock is taken.
  UniqueFd held{::open(fifo.c_str(), O_WRONLY | O_CLOEXEC)};
  EXPECT_EQ(shell("flock -n " + there + " true"), 1);
  EXPECT_EQ(shell("flock -n -E 9 -s " + there + " true"), 9);
  Child waiter{[&] {
    held.reset();  // the child's copy
    return shell("flock " + there + " true");
  }};
  held.reset();
  EXPECT_TRUE(exited_well(holder.wait()));
  EXPECT_TRUE(exited_well(waiter.wait()));
  EXPECT_EQ(shell("flock -n " + there + " true"), 0);
}

struct Case {
  const char* name;
  std::function<void(const Dirs&)> run;
};

class Interop : public testing::TestWithParam<Case> {};

TEST_P(Interop, OnTheKernel) {
  const TempDir dir;
  GetParam().run({dir.path()});
}

TEST_P(Interop, OnAMount) {
  const MountFixture mount;
  GetParam().run({mount.mount()});
  EXPECT_EQ(table_left(mount.mount()), "");
}

TEST_P(Interop, OnTwoMounts) {
  const MountFixture left;
  const MountFixture right{left.another()};
  GetParam().run({left.mount(), right.mount()});
  EXPECT_EQ(table_left(left.mount()), "");
}

INSTANTIATE_TEST_SUITE_P(
    All, Interop,
    testing::Values(Case{"FlockProgram", flock_program},
                    Case{"PythonCounter", [](const Dirs& d) { python("counter", d); }},
                    Case{"PythonModes", [](const Dirs& d) { python("modes", d); }},
                    Case{"Sqlite", [](const Dirs& d) { python("sqlite", d); }}),
    [](const auto& tested) { return std::string{tested.param.name}; });

}  // namespace
}  // namespace latchfs::locktest
