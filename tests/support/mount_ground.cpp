#include "support/mount_ground.h"

#include "support/mount_fixture.h"

namespace latchfs::locktest {

Ground mount_ground(unsigned mounts) {
  auto all = std::make_shared<std::vector<std::unique_ptr<test::MountFixture>>>();
  Ground ground;
  ground.name = mounts == 1 ? "one mount" : std::to_string(mounts) + " mounts";
  for (unsigned i = 0; i < mounts; ++i) {
    all->push_back(i == 0 ? std::make_unique<test::MountFixture>()
                          : std::make_unique<test::MountFixture>(all->front()->another()));
    ground.roots.push_back(all->back()->mount());
    ground.daemons.push_back(all->back()->daemon());
  }
  ground.mounts = std::move(all);
  ground.renew = [mounts] { return mount_ground(mounts); };
  return ground;
}

Ground native_ground(const std::string& mutation) {
  const auto dir = std::make_shared<test::TempDir>();
  Ground ground;
  ground.name = "native" + (mutation.empty() ? "" : "+" + mutation);
  ground.roots = {dir->path()};
  ground.mutation = mutation;
  ground.mounts = dir;
  return ground;
}

}  // namespace latchfs::locktest
