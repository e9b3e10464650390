// The inodes the kernel knows: node id to backing file.
//
// A file is kept by its handle (open_by_handle_at) where the daemon may and the file system can,
// else by name below its parent node, checked by device and inode when it is used again. On top
// there is a bounded cache of O_PATH descriptors, least recently used first out, so that hot nodes
// cost nothing and a walk of a million files needs neither descriptors nor much memory: about 180
// bytes an inode, plus its name where there are no handles.
//
// A cached descriptor keeps a removed file's blocks in use. So descriptors unused for two seconds
// are closed (by handle they are had again), and released at once when a removal through this
// mount says so. Without handles they stay: an open file holds its own (OpenFile::pin). With the
// descriptors go those that keep nested file systems mounted (devices.h).
//
// Thread-safe. Makes no system call and takes no other lock while a shard's mutex is held.
#pragma once

#include <sys/stat.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <unordered_map>
#include <vector>

#include "base/mutex.h"
#include "base/unique_fd.h"
#include "latchfs/result.h"
#include "latchfs/types.h"
#include "posix/devices.h"
#include "posix/file_handle.h"
#include "posix/mount_points.h"
#include "posix/node_ids.h"

namespace latchfs::posix {

// A descriptor held while somebody uses it; O_PATH but for the root's.
struct Pin {
  UniqueFd fd;
  FileId id;
  mode_t type{};  // S_IFMT bits
};
using PinPtr = std::shared_ptr<const Pin>;

// What a lookup answers.
struct Entry {
  std::uint64_t node{};
  std::uint32_t generation{};
  FileId id;
  struct stat attr {};
};

class InodeTable {
 public:
  struct Options {
    bool use_handles{true};
    std::size_t max_pins{};  // 0: a quarter of RLIMIT_NOFILE, at most 4096
  };

  // root: any descriptor of the directory that is node 1. Not to be followed by a fork.
  static Result<std::unique_ptr<InodeTable>> create(UniqueFd root, Options options);
  ~InodeTable();
  InodeTable(const InodeTable&) = delete;
  InodeTable& operator=(const InodeTable&) = delete;

  // ESTALE: not known to the table, or the file is gone.
  Result<PinPtr> pin(std::uint64_t node);

  // One step down, as the daemon; takes a reference. "." and ".." go by node, known to the table or
  // not, for NFS handles (Documentation/filesystems/fuse: EXPORT_SUPPORT). EINVAL for a name with
  // a slash.
  Result<Entry> lookup(std::uint64_t parent, const char* name);
  // The same for a file that is open already (any descriptor) and was reached by parent and name.
  Result<Entry> adopt(UniqueFd fd, std::uint64_t parent, std::string_view name);

  // An O_PATH descriptor of a name in a directory: mount_points.h. Takes no reference.
  Result<UniqueFd> open_child(int dir, const char* name);
  // Before the first request.
  void set_own_mount(dev_t dev, UniqueFd covered) noexcept {
    mount_points_.set_own(dev, std::move(covered));
  }

  // Gives references back.
  void forget(std::uint64_t node, std::uint64_t count) noexcept;

  // The node's file was or will be removed through this mount; `fd` is an O_PATH descriptor of it
  // and `st` its state before. A directory, and anything without blocks, stays reachable by its
  // node until forgotten (a working directory, O_PATH descriptors); other files' descriptors are
  // let go so that their space comes free with the last real user's.
  void removed(UniqueFd fd, const struct stat& st);
  // It has a new name; matters only where there are no handles.
  void renamed(std::uint64_t node, std::uint64_t parent, std::string_view name);
  // The node of a file met by other means; 0 if the kernel does not know it.
  std::uint64_t known(const struct stat& st);

  // st_ino as users see it: unique in the mount also where several file systems are below it.
  void show(struct stat& st) const noexcept;
  [[nodiscard]] std::uint64_t shown_ino(dev_t dev, std::uint64_t ino) const noexcept;

  [[nodiscard]] const PinPtr& root() const noexcept { return root_; }
  // Whether files of this device are found by handle, so that nothing need be kept open for them.
  [[nodiscard]] bool has_handles(dev_t dev) const noexcept;

  struct Counts {
    std::size_t inodes{};
    std::size_t pins{};
  };
  [[nodiscard]] Counts counts();

 private:
  struct Name {
    std::uint64_t parent{};
    std::string name;
    std::weak_ptr<const Pin> last;  // still there if an open file holds it
  };
  struct Inode {
    std::uint64_t node{};
    std::uint64_t references{};
    FileId id;
    FileHandle handle;
    std::uint32_t generation{};
    std::uint32_t used_at{};  // tick_
    mode_t type{};
    bool kept{};  // pinned until forgotten, not in the list
    PinPtr pin;
    Inode* newer{};  // list of pinned inodes, not kept
    Inode* older{};
    std::unique_ptr<Name> name;  // only without handles
  };
  struct Shard {
    Mutex mu;
    std::unordered_map<std::uint64_t, Inode> inodes GUARDED_BY(mu);
    Inode* newest GUARDED_BY(mu){};
    Inode* oldest GUARDED_BY(mu){};
    std::size_t pins GUARDED_BY(mu){};
  };
  static constexpr std::size_t kShards = 64;

  InodeTable(UniqueFd root, const struct stat& st, Options options);

  Shard& shard_of(std::uint64_t node) noexcept {
    return shards_[(node ^ (node >> NodeIds::kInoBits)) % kShards];
  }
  static void unlink_locked(Shard& shard, Inode& inode) REQUIRES(shard.mu);
  static void push_locked(Shard& shard, Inode& inode) REQUIRES(shard.mu);
  void touch_locked(Shard& shard, Inode& inode) REQUIRES(shard.mu);
  // Gives the inode a pin; returns one that had to go, to be dropped outside the mutex.
  [[nodiscard]] PinPtr set_pin_locked(Shard& shard, Inode& inode, PinPtr pin) REQUIRES(shard.mu);

  // Node and identity of an open file.
  struct Identity {
    std::uint64_t node{};
    unsigned slot{};
    FileHandle handle;
    std::uint32_t generation{};
    struct stat attr {};
  };
  Result<Identity> identify(int fd);
  Result<PinPtr> repin(std::uint64_t node);
  // What handles of a device are opened with. ESTALE: the file system is mounted no more.
  Result<Devices::MountPtr> mount_of(unsigned slot);
  Result<UniqueFd> open_by_name(std::uint64_t node, FileId id);
  Result<Entry> self(std::uint64_t node);
  Result<Entry> unknown_self(std::uint64_t node);
  Result<Entry> parent_of(std::uint64_t node);
  // Walks up from a directory.
  Result<void> check_below_root(int dir);
  Result<UniqueFd> open_parent(int dir);
  void shed() noexcept;
  void sweep(std::uint32_t idle_ticks) noexcept;
  void run_janitor();

  const PinPtr root_;
  const Options options_;
  const std::size_t pins_per_shard_;
  Devices devices_;
  MountPoints mount_points_{devices_};
  NodeIds ids_;
  std::array<Shard, kShards> shards_;
  std::atomic<std::uint32_t> tick_{0};

  Mutex janitor_mu_;  // leaf
  CondVar janitor_cv_;
  bool stopping_ GUARDED_BY(janitor_mu_){};
  std::atomic<bool> janitor_idle_{false};
  std::thread janitor_;
};

}  // namespace latchfs::posix
