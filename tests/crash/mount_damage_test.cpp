// Something writes over the shared table while mounts use it: who waits is told, the mounts go on.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <functional>
#include <ostream>
#include <string>

#include "store/shm/region.h"
#include "store/shm/registry.h"
#include "support/lock_children.h"
#include "support/lock_proc.h"
#include "support/mount_fixture.h"

namespace latchfs::locktest {
namespace {

using test::MountFixture;

bool waiters_become(const MountFixture& mount, long wanted) {
  const auto until = std::chrono::steady_clock::now() + hung_after();
  while (status_number(mount.mount(), "/counts/waiters") != wanted) {
    if (std::chrono::steady_clock::now() > until) return false;
    ::usleep(10'000);
  }
  return true;
}

struct Damage {
  const char* what;
  std::function<void(shm::Region&)> doing;
};
void PrintTo(const Damage& d, std::ostream* os) { *os << d.what; }

class MountsOfADamagedTable : public testing::TestWithParam<Damage> {};

TEST_P(MountsOfADamagedTable, TellWhoWaitsAndGoOn) {
  MountFixture here;
  MountFixture there{here.another()};
  const std::string name = "/file";
  const UniqueFd held = open_file(here.mount() + name);
  ASSERT_EQ(lock_now(held.get(), LockType::kOfd, true), 0);
  const auto wait_on = [&](const MountFixture& mount) {
    return Child{[path = mount.mount() + name] {
      const UniqueFd fd = open_file(path);
      return lock_waiting(fd.get(), LockType::kOfd, true);
    }};
  };
  Child one = wait_on(here);
  Child two = wait_on(there);
  ASSERT_TRUE(waiters_become(here, 2));

  const auto registry = shm::Registry::open(here.table());
  ASSERT_TRUE(registry.ok());
  const auto region = shm::Region::open(registry->region_name());
  ASSERT_TRUE(region.ok());
  GetParam().doing(**region);
  // (Whoever looks stumbles over it.)
  EXPECT_TRUE(waiters_become(there, 0));

  for (Child* waiter : {&one, &two}) {
    const auto status = waiter->wait();
    ASSERT_TRUE(status.has_value()) << "it waits for ever";
    EXPECT_TRUE(WIFEXITED(*status) && WEXITSTATUS(*status) == EIO) << *status;
  }
  EXPECT_NE((here.log() + there.log()).find("damaged"), std::string::npos);
  // Nobody holds anything now; what is locked from here on is seen by both.
  const UniqueFd other = open_file(there.mount() + name);
  EXPECT_EQ(lock_now(other.get(), LockType::kOfd, true), 0);
  EXPECT_EQ(lock_now(held.get(), LockType::kOfd, true), EAGAIN);
  EXPECT_EQ(unlock(other.get(), LockType::kOfd), 0);
  EXPECT_EQ(lock_now(held.get(), LockType::kOfd, true), 0);
}

INSTANTIATE_TEST_SUITE_P(
    Table, MountsOfADamagedTable,
    testing::Values(Damage{"header", [](shm::Region& r) { r.header().identity.checksum ^= 1; }},
                    Damage{"records",
                           [](shm::Region& r) {
                             for (std::uint32_t i = 0; i < shm::kShardCount; ++i) {
                               auto& files = r.shard(i).root.files;
                               if (files != 0) files = 0xfffffff0U;
                             }
                           }}),
    [](const auto& of) { return std::string{of.param.what}; });

}  // namespace
}  // namespace latchfs::locktest
