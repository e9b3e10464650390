// The two trees of a differential run: A, native, and B, the one under test, each a directory with
// the mounts m0 and m1 of one backing directory. All of it is gone when the object is.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace latchfs::fsdiff {

// Gives the process a mount namespace of its own, so that no mount of a test outlives it however it
// ends. Once is enough. Throws std::system_error.
void use_private_mounts();

// A new directory below $TMPDIR or /tmp.
[[nodiscard]] std::string make_scratch_directory(const std::string& name);
// Removes it with all that is in it: immutable files too. Does not cross mounts.
void remove_tree(const std::string& path);

// Mounts source at mountpoint; what it returns ends the mount.
using Mounter =
    std::function<std::function<void()>(const std::string& source, const std::string& mountpoint)>;
// A bind mount: the native filesystem in the place of the one under test.
[[nodiscard]] Mounter native_mounter();

class Stage {
 public:
  // owner: of the backing directories; an actor's number.
  Stage(int mounts, const Mounter& mounter, std::optional<int> owner);
  ~Stage();
  Stage(const Stage&) = delete;
  Stage& operator=(const Stage&) = delete;

  [[nodiscard]] std::string root_a() const { return base_ + "/A"; }
  [[nodiscard]] std::string root_b() const { return base_ + "/B"; }
  // A once more, for looks that must leave no trace: there, access times stand still.
  [[nodiscard]] std::string look_a() const { return base_ + "/look-A"; }
  [[nodiscard]] std::string backing_a() const { return base_ + "/back-A"; }
  [[nodiscard]] std::string backing_b() const { return base_ + "/back-B"; }
  // Ends the mounts of B: its backing directory is then at rest.
  void unmount_b();

 private:
  std::string base_;
  std::vector<std::function<void()>> end_a_, end_b_;
};

}  // namespace latchfs::fsdiff
