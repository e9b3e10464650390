#include "support/fs_image.h"

#include <fcntl.h>
#include <grp.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <stdexcept>

#include "base/unique_fd.h"
#include "support/fs_stage.h"
#include "support/lock_proc.h"

namespace latchfs::fsdiff {
namespace {

constexpr unsigned long kShutdown = _IOR('X', 125, std::uint32_t);  // EXT4_IOC_SHUTDOWN
constexpr std::uint32_t kNoLogFlush = 2;

void run(const std::string& command, const char* what) {
  if (std::system((command + " >/dev/null 2>&1").c_str()) != 0) {  // NOLINT: the words are ours
    throw std::runtime_error(std::string{what} + " failed: " + command);
  }
}

}  // namespace

LoopImage::LoopImage(int megabytes, const std::string& mkfs_options, const std::string& type)
    : type_{type},
      base_{make_scratch_directory("latchfs-image")},
      file_{base_ + "/image"},
      mountpoint_{base_ + "/mnt"} {
  if (mkdir(mountpoint_.c_str(), 0755) != 0) throw std::runtime_error("mkdir " + mountpoint_);
  const UniqueFd fd{open(file_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600)};
  if (!fd || ftruncate(fd.get(), off_t{megabytes} << 20) != 0) {
    throw std::runtime_error("no room for " + file_);
  }
  const std::string force = type_ == "ext4" ? " -q -F " : " -q -f ";
  run("PATH=$PATH:/sbin:/usr/sbin mkfs." + type_ + force + mkfs_options + " " + file_,
      "making a file system");
  attach();
}

void LoopImage::attach() {
  const std::string extra = type_ == "ext4" ? ",acl,user_xattr " : " ";
  run("mount -t " + type_ + " -o loop" + extra + file_ + " " + mountpoint_,
      "mounting an image (no loop devices?)");
  chmod(mountpoint_.c_str(), 0755);
}

void LoopImage::remount(const std::string& options) {
  run("mount -o remount," + options + " " + mountpoint_, "remounting an image");
}

void LoopImage::detach() { umount2(mountpoint_.c_str(), MNT_DETACH); }

void LoopImage::mount_again() {
  // A killed daemon's rings are taken down in the background, and hold what was passed through.
  if (!locktest::poll_until([this] { return umount2(mountpoint_.c_str(), 0) == 0; })) {
    throw std::runtime_error("the image is in use");
  }
  attach();
}

void LoopImage::shut_down() {
  const UniqueFd fd{open(mountpoint_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
  std::uint32_t how = kNoLogFlush;
  if (!fd || ioctl(fd.get(), kShutdown, &how) != 0) throw std::runtime_error("EXT4_IOC_SHUTDOWN");
}

LoopImage::~LoopImage() {
  detach();
  remove_tree(base_);
}

int as_user(uid_t uid, gid_t gid, const std::function<int()>& fn) {
  const pid_t child = fork();
  if (child == 0) {
    if (setgroups(0, nullptr) != 0 || setresgid(gid, gid, gid) != 0 ||
        setresuid(uid, uid, uid) != 0) {
      _exit(255);
    }
    _exit(fn());
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 254;
}

int errno_of(long result) { return result < 0 ? errno : 0; }

}  // namespace latchfs::fsdiff
