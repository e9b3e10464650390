#include "support/fs_mount.h"

#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <memory>
#include <system_error>

#include "support/fs_world.h"
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

namespace {

void replace(const std::string& with, const char* what) {
  if (mount(with.c_str(), what, nullptr, MS_BIND, nullptr) != 0) {
    throw std::system_error(errno, std::generic_category(), std::string{"bind "} + what);
  }
}

// Every user may use /dev/fuse, and allow_other with it, and our actors have names, without which
// fusermount3 serves nobody: for this process and what it starts.
void let_users_mount() {
  static bool done = false;
  if (done) return;
  const std::string place = make_scratch_directory("latchfs-fuse-conf");
  const std::string conf = place + "/fuse.conf";
  std::ofstream{conf} << "user_allow_other\n";
  if (access("/etc/fuse.conf", F_OK) == 0) replace(conf, "/etc/fuse.conf");
  const std::string names = place + "/passwd";
  std::ofstream out{names};
  out << std::ifstream{"/etc/passwd"}.rdbuf();
  for (int i = 1; i < 4; ++i) {
    const Identity& who = identity(i);
    out << "latchfs-test-" << i << ":x:" << who.uid << ":" << who.gid << "::/:/bin/false\n";
  }
  out.close();
  replace(names, "/etc/passwd");
  const std::string device = place + "/fuse";
  if (mknod(device.c_str(), S_IFCHR | 0666, makedev(10, 229)) == 0 &&
      chmod(device.c_str(), 0666) == 0) {
    replace(device, "/dev/fuse");
  }
  // Bound files stay where they are; their names are not needed any more.
  remove_tree(place);
  done = true;
}

}  // namespace

Mounter users_mounter(int actor) {
  return [actor](const std::string& source, const std::string& mountpoint) {
    let_users_mount();
    test::MountFixture::Options wanted;
    wanted.source = source;
    wanted.options = {"allow_other"};
    std::shared_ptr<test::MountFixture> mount;
    {
      const ActingAs him{identity(actor)};
      mount = std::make_shared<test::MountFixture>(wanted);
    }
    auto unbind = native_mounter()(mount->mount(), mountpoint);
    return [actor, mount, unbind]() mutable {
      unbind();
      const ActingAs him{identity(actor)};
      (void)mount->unmount();
      mount.reset();
    };
  };
}

}  // namespace latchfs::fsdiff
