#include "support/fs_mount.h"

#include <sys/mount.h>

#include <memory>

#include "support/mount_fixture.h"

namespace latchfs::fsdiff {

Mounter latchfs_mounter(std::vector<std::string> options) {
  // The first mount owns the table; it is let go last.
  auto first = std::make_shared<std::weak_ptr<test::MountFixture>>();
  return [options = std::move(options), first](const std::string& source,
                                               const std::string& mountpoint) {
    test::MountFixture::Options wanted;
    const auto owner = first->lock();
    if (owner) wanted = owner->another();
    wanted.source = source;
    wanted.options = options;
    auto mount = std::make_shared<test::MountFixture>(wanted);
    if (!owner) *first = mount;
    auto unbind = native_mounter()(mount->mount(), mountpoint);
    return [mount, owner, unbind]() mutable {
      unbind();
      (void)mount->unmount();
      mount.reset();
    };
  };
}

}  // namespace latchfs::fsdiff
