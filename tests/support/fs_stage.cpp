#include "support/fs_stage.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <system_error>

#include "base/unique_fd.h"
#include "support/fs_world.h"

namespace latchfs::fsdiff {
namespace {

void must(bool done, const std::string& what) {
  if (!done) throw std::system_error(errno, std::generic_category(), what);
}

void clear_flags(int dir, const char* name) {
  const UniqueFd fd{openat(dir, name, O_RDONLY | O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC)};
  int flags = 0;
  if (!fd || ioctl(fd.get(), FS_IOC_GETFLAGS, &flags) != 0) return;
  if ((flags & (FS_IMMUTABLE_FL | FS_APPEND_FL)) == 0) return;
  flags &= ~(FS_IMMUTABLE_FL | FS_APPEND_FL);
  (void)ioctl(fd.get(), FS_IOC_SETFLAGS, &flags);
}

void remove_entries(int raw, dev_t device) {
  std::unique_ptr<DIR, int (*)(DIR*)> dir{fdopendir(raw), closedir};
  if (!dir) return;
  while (const dirent* d = readdir(dir.get())) {
    const std::string name = d->d_name;
    if (name == "." || name == "..") continue;
    struct stat st {};
    if (fstatat(raw, name.c_str(), &st, AT_SYMLINK_NOFOLLOW) != 0 || st.st_dev != device) continue;
    if (S_ISDIR(st.st_mode) || S_ISREG(st.st_mode)) clear_flags(raw, name.c_str());
    if (S_ISDIR(st.st_mode)) {
      const int down = openat(raw, name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
      if (down >= 0) remove_entries(down, device);
      unlinkat(raw, name.c_str(), AT_REMOVEDIR);
    } else {
      unlinkat(raw, name.c_str(), 0);
    }
  }
}

}  // namespace

void use_private_mounts() {
  static bool done = false;
  if (done) return;
  must(unshare(CLONE_NEWNS) == 0, "unshare(CLONE_NEWNS)");
  must(mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0, "mount --make-rprivate /");
  // Copies of others' FUSE mounts would keep their daemons alive after they are unmounted.
  std::ifstream mounts{"/proc/self/mounts"};
  std::vector<std::string> copies;
  for (std::string device, point, type, rest;
       mounts >> device >> point >> type && std::getline(mounts, rest);) {
    if (type.rfind("fuse", 0) == 0 && type != "fusectl") copies.push_back(point);
  }
  for (auto point = copies.rbegin(); point != copies.rend(); ++point) {
    umount2(point->c_str(), MNT_DETACH);
  }
  done = true;
}

std::string make_scratch_directory(const std::string& name) {
  const char* where = std::getenv("TMPDIR");
  std::string path = std::string{where != nullptr ? where : "/tmp"} + "/" + name + "-XXXXXX";
  must(mkdtemp(path.data()) != nullptr, "mkdtemp " + path);
  must(chmod(path.c_str(), 0755) == 0, "chmod");
  return path;
}

void remove_tree(const std::string& path) {
  struct stat st {};
  if (lstat(path.c_str(), &st) != 0) return;
  clear_flags(AT_FDCWD, path.c_str());
  const int fd = open(path.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (fd >= 0) remove_entries(fd, st.st_dev);
  rmdir(path.c_str());
}

Mounter native_mounter() {
  return [](const std::string& source, const std::string& mountpoint) {
    must(mount(source.c_str(), mountpoint.c_str(), nullptr, MS_BIND, nullptr) == 0,
         "bind " + mountpoint);
    return [mountpoint] { umount2(mountpoint.c_str(), MNT_DETACH); };
  };
}

Stage::Stage(int mounts, const Mounter& mounter, std::optional<int> owner)
    : base_{make_scratch_directory("latchfs-differential")} {
  for (const std::string& dir : {root_a(), root_b(), look_a(), backing_a(), backing_b()}) {
    must(mkdir(dir.c_str(), 0755) == 0, "mkdir " + dir);
  }
  // The beginning is the same on both sides to the nanosecond.
  const timespec epoch[2] = {{1'000'000'000, 0}, {1'000'000'000, 0}};
  for (const std::string& dir : {backing_a(), backing_b()}) {
    if (owner) {
      const Identity& who = identity(*owner);
      must(chown(dir.c_str(), who.uid, who.gid) == 0, "chown " + dir);
    }
    must(utimensat(AT_FDCWD, dir.c_str(), epoch, 0) == 0, "utimensat " + dir);
  }
  unsigned long flags = 0;
  for (int i = 0; i < mounts; ++i) {
    const std::string at = root_b() + "/m" + std::to_string(i);
    must(mkdir(at.c_str(), 0755) == 0, "mkdir " + at);
    if (owner) must(chown(at.c_str(), identity(*owner).uid, identity(*owner).gid) == 0, "chown");
    end_b_.push_back(mounter(backing_b(), at));
    struct statvfs got {};
    must(statvfs(at.c_str(), &got) == 0, "statvfs " + at);
    flags = got.f_flag;
  }
  // A FUSE mount is nosuid and nodev unless it is told otherwise; A must be what B is.
  unsigned long same = MS_BIND | MS_REMOUNT;
  if ((flags & ST_NOSUID) != 0) same |= MS_NOSUID;
  if ((flags & ST_NODEV) != 0) same |= MS_NODEV;
  if ((flags & ST_NOEXEC) != 0) same |= MS_NOEXEC;
  for (const bool look : {false, true}) {
    for (int i = 0; i < mounts; ++i) {
      const std::string at = (look ? look_a() : root_a()) + "/m" + std::to_string(i);
      must(mkdir(at.c_str(), 0755) == 0, "mkdir " + at);
      end_a_.push_back(native_mounter()(backing_a(), at));
      const unsigned long all = look ? same | MS_NOATIME : same;
      must(mount("none", at.c_str(), nullptr, all, nullptr) == 0, "remount " + at);
    }
  }
}

void Stage::unmount_b() {
  for (auto& end : end_b_) end();
  end_b_.clear();
}

Stage::~Stage() {
  unmount_b();
  for (auto& end : end_a_) end();
  remove_tree(base_);
}

}  // namespace latchfs::fsdiff
