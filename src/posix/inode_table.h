// The inodes the kernel knows: node id to backing file.
//
// A file is kept by its handle (open_by_handle_at) where the daemon may and the file system can,
// else by name below its parent node, checked by device and inode when it is used again. On top
// there is a bounded cache of O_PATH descriptors, least recently used first out, so that hot nodes
// cost nothing and a walk of a million files needs neither descriptors nor much memory: about 170
// bytes an inode, plus its name where there are no handles; forgotten, it goes back to the system.
//
// A cached descriptor keeps a removed file's blocks in use. So descriptors unused for two seconds
// are closed (by handle they are had again). Without handles they stay: an open file holds its own
// (OpenFile::pin). With the descriptors go those that keep nested file systems mounted (devices.h).
//
// A file that is removed through this mount keeps a descriptor until the kernel forgets the node,
// as a local file system keeps the inode while a dentry names it. The kernel may have looked it up
// before and be about to open it; and were the inode number free, the next file would have it, and
// with it the node, whereupon the kernel declares the old one bad, open descriptors and all (EIO:
// fs/fuse/inode.c fuse_iget(), fuse_stale_inode()), or, if answers overtake one another, the new
// one. The kernel forgets with the last user, in general before unlink(2) returns. Bounds: as many
// descriptors more as are cached (beyond, a removed file's is one of those); and for what has
// blocks, where the kernel thinks of other names that there are no more, or somebody has an O_PATH
// descriptor, a minute from the last use, or until there is no room on the device (make_room()).
//
// Thread-safe. Makes no system call while a shard's mutex is held, and takes no other lock but, for
// dealt numbers, that of NodeIds: in the table is only what is the file's number there.
#pragma once

#include <sys/stat.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <unordered_map>
#include <utility>
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
    // Cached, and of removed files as many more. 0: a quarter of RLIMIT_NOFILE, at most 4096.
    std::size_t max_pins{};
    std::uint32_t grace{60};   // seconds that a removed file's blocks are kept when nobody asks
    std::uint32_t settled{2};  // seconds after its birth that a file is known by it: see lookup()
    std::string state{};       // directory of what outlives the daemon (device_numbers.h); "": none
  };

  // root: any descriptor of the directory that is node 1. Not to be followed by a fork.
  static Result<std::unique_ptr<InodeTable>> create(UniqueFd root, Options options);
  ~InodeTable();
  InodeTable(const InodeTable&) = delete;
  InodeTable& operator=(const InodeTable&) = delete;

  // ESTALE: not known to the table, or the file is gone. (Where the kernel came by a path it then
  // walks it once more, asking for each name: what replaced the file is found. ENOENT would be
  // final also for a name that always had a file. fs/namei.c do_filp_open(), retry_estale().)
  Result<PinPtr> pin(std::uint64_t node);

  // One step down, as the daemon; takes a reference. "." and ".." go by node, known to the table or
  // not, for NFS handles (Documentation/filesystems/fuse: EXPORT_SUPPORT): ENOMEM if that cannot be
  // told now, for lack of descriptors or memory. EINVAL for a name with a slash.
  //
  // listed: the inode number that the directory was just read with, where the answer is for a
  // listing. A file that is known by that number, by its handle and by its time of birth is then
  // answered with one system call instead of four. For what opens or changes something the
  // handle itself is asked for each time.
  Result<Entry> lookup(std::uint64_t parent, const char* name, std::uint64_t listed = 0);
  // The same for a file that is open already (any descriptor) and was reached by parent and name.
  Result<Entry> adopt(UniqueFd fd, std::uint64_t parent, std::string_view name);
  // The same for a file that was just made and stays open elsewhere. It gets a descriptor only
  // where there are no handles, or it has no name: others are mostly closed, or removed, before
  // they need one.
  Result<Entry> adopt_open(int fd, std::uint64_t parent, std::string_view name);

  // An O_PATH descriptor of a name in a directory: mount_points.h. Takes no reference.
  Result<UniqueFd> open_child(int dir, const char* name);
  // Before the first request.
  void set_own_mount(dev_t dev, UniqueFd covered) noexcept {
    mount_points_.set_own(dev, std::move(covered));
  }

  // Gives references back.
  void forget(std::uint64_t node, std::uint64_t count) noexcept;

  // The node's file has lost its last name through this mount; `fd` is an O_PATH descriptor of it
  // and `st` its state. It stays reachable by its node (see above).
  void removed(UniqueFd fd, const struct stat& st);
  // There was no room for something: gives the blocks of removed files back that only the table
  // holds, and waits for those that forget() is giving back (FORGET is not waited for by
  // unlink(2)).
  void make_room() noexcept;
  // It has a new name; matters only where there are no handles.
  void renamed(std::uint64_t node, std::uint64_t parent, std::string_view name);
  // The node of a file met by other means; 0 if the kernel does not know it.
  std::uint64_t known(const struct stat& st);

  // A descriptor of the file under this id, also of one the kernel does not know: then only where
  // an inode number is enough (handle_by_ino.h). ESTALE. Takes no reference. As the daemon.
  Result<PinPtr> pin_of(FileId id);

  // st_ino as users see it: unique in the mount also where several file systems are below it.
  void show(struct stat& st) const noexcept;
  [[nodiscard]] std::uint64_t shown_ino(dev_t dev, std::uint64_t ino) const noexcept;

  [[nodiscard]] const PinPtr& root() const noexcept { return root_; }
  // Whether files of this device are found by handle, so that nothing need be kept open for them.
  [[nodiscard]] bool has_handles(dev_t dev) const noexcept;

  struct Counts {
    std::size_t inodes{};
    std::size_t pins{};  // cached
    std::size_t kept{};  // of removed files
  };
  [[nodiscard]] Counts counts();

 private:
  struct Name {
    std::uint64_t parent{};
    std::string name;
    std::weak_ptr<const Pin> last;  // still there if an open file holds it
  };
  // Until when an inode's pin is kept at most.
  enum class Keep : std::uint8_t {
    kUsed,       // while it is used: in Shard::cached
    kGrace,      // removed: in Shard::grace
    kReferenced  // removed, without blocks or handle: until forgotten, in no list
  };
  struct Inode {
    std::uint64_t node{};
    std::uint64_t references{};
    FileId id;
    FileHandle handle;
    std::int64_t birth{};  // nanoseconds; 0: does not tell it from others of its number
    std::uint32_t generation{};
    std::uint32_t used_at{};  // tick_
    mode_t type{};
    Keep keep{Keep::kUsed};
    PinPtr pin;
    Inode* newer{};  // in the list
    Inode* older{};
    std::unique_ptr<Name> name;  // only without handles
  };
  // Pinned inodes in the order of their use.
  struct List {
    Inode* newest{};
    Inode* oldest{};
    std::size_t size{};
    void push(Inode& inode) noexcept;
    void remove(Inode& inode) noexcept;
  };
  struct Shard {
    Mutex mu;
    std::unordered_map<std::uint64_t, Inode> inodes GUARDED_BY(mu);
    List cached GUARDED_BY(mu);
    List grace GUARDED_BY(mu);
  };
  static constexpr std::size_t kShards = 64;

  InodeTable(UniqueFd root, const struct stat& st, Options options);

  Shard& shard_of(std::uint64_t node) noexcept {
    return shards_[(node ^ (node >> NodeIds::kInoBits)) % kShards];
  }
  // The list the pinned inode is in, if any.
  static List* list_of_locked(Shard& shard, const Inode& inode) REQUIRES(shard.mu);
  void touch_locked(Shard& shard, Inode& inode) REQUIRES(shard.mu);
  // A pin taken from an inode, to be dropped outside the mutex. While one lives that was removed
  // with blocks, leaving_ counts it.
  class Taken {
   public:
    Taken() = default;
    Taken(PinPtr pin, std::atomic<std::uint32_t>* leaving) noexcept;
    Taken(Taken&& o) noexcept
        : pin_{std::move(o.pin_)}, leaving_{std::exchange(o.leaving_, nullptr)} {}
    Taken& operator=(Taken&& o) noexcept {
      std::swap(pin_, o.pin_);
      std::swap(leaving_, o.leaving_);
      return *this;
    }
    Taken(const Taken&) = delete;
    Taken& operator=(const Taken&) = delete;
    ~Taken();

   private:
    PinPtr pin_;
    std::atomic<std::uint32_t>* leaving_{};
  };
  // None if the inode has none.
  [[nodiscard]] Taken take_pin_locked(Shard& shard, Inode& inode) noexcept REQUIRES(shard.mu);
  // Gives an inode without a pin one; returns another's that had to go.
  [[nodiscard]] Taken set_pin_locked(Shard& shard, Inode& inode, PinPtr pin,
                                     Keep keep = Keep::kUsed) REQUIRES(shard.mu);
  void wake_janitor() noexcept {
    if (!janitor_idle_.load(std::memory_order_relaxed)) return;
    {
      const MutexLock hold{janitor_mu_};
      woken_ = true;
    }
    janitor_cv_.notify_one();
  }

  [[nodiscard]] std::uint32_t generation_of(unsigned slot, const FileHandle& handle, int fd) const;

  [[nodiscard]] bool is_still(std::uint64_t node, std::uint32_t generation);
  // As pin(), of a node that may have been forgotten.
  Result<PinPtr> pin_again(std::uint64_t node);
  // Enters the file system that had the number in a daemon before. ESTALE: it is not there.
  Result<void> enter_remembered(unsigned slot);
  // The number of the file system that is there now.
  Result<unsigned> meet(const Devices::Way& way);

  // Node and identity of an open file.
  struct Identity {
    std::uint64_t node{};  // 0: to be dealt
    unsigned slot{};
    FileHandle handle;
    std::uint32_t generation{};
    std::int64_t birth{};  // as an Inode's
    struct stat attr {};
  };
  // parent: the node it was found below, which tells what to ask for.
  Result<Identity> identify(int fd, std::uint64_t parent, std::string_view name);
  [[nodiscard]] bool is_by_handle(const Identity& found) const noexcept;
  // Takes a reference. fd: what the node is to be pinned with, if with anything.
  Entry enter(Identity found, UniqueFd fd, std::uint64_t parent, std::string_view name);
  // The same; nothing was done if false: the dealt number is the file's no more.
  bool enter_as(const Identity& found, FileId id, PinPtr&& pin, std::unique_ptr<Name>&& hint);
  // What lookup() answers if it is certain that it is a file that is known; takes a reference.
  std::optional<Entry> recognise(const Pin& dir, const char* name, std::uint64_t ino);
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
  // What needs descriptors; once more, with fewer cached, if there were none.
  template <class Fn>
  auto with_descriptors(Fn&& fn) -> decltype(fn()) {
    auto done = fn();
    if (done || (done.error() != errno_code(EMFILE) && done.error() != errno_code(ENFILE))) {
      return done;
    }
    shed();
    return fn();
  }
  // Takes from the list what was not used for so long; false: there is more than that.
  using Gone = std::array<Taken, 32>;
  bool take_idle_locked(Shard& shard, List& list, std::uint32_t ticks, Gone& gone) noexcept
      REQUIRES(shard.mu);
  void sweep() noexcept;
  // To the kernel, what forgotten inodes took.
  void give_memory_back() noexcept;
  void run_janitor();

  const PinPtr root_;
  const Options options_;
  const std::size_t pins_per_shard_;
  Devices devices_;
  MountPoints mount_points_{devices_};
  NodeIds ids_;
  std::array<Shard, kShards> shards_;
  std::atomic<std::uint32_t> tick_{0};
  std::atomic<std::size_t> kept_{0};       // pins of removed files
  std::atomic<std::uint32_t> leaving_{0};  // see Taken

  Mutex janitor_mu_;  // leaf
  CondVar janitor_cv_;
  bool stopping_ GUARDED_BY(janitor_mu_){};
  bool woken_ GUARDED_BY(janitor_mu_){};
  std::atomic<bool> janitor_idle_{false};
  std::thread janitor_;
};

}  // namespace latchfs::posix
