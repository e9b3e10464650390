// Which files the kernel reads and maps at their backing file, past the daemon.
//
// All open files of one inode must agree: beside one that is passed through, the kernel refuses any
// other kind and any other backing number (fs/fuse/iomode.c). So what the first open of a node
// finds out holds until the last is released.
#pragma once

#include <array>
#include <cstdint>
#include <unordered_map>
#include <utility>

#include "base/mutex.h"
#include "transport/channel.h"

namespace latchfs::fuse {

// Thread-safe; a shard's mutex is a leaf.
class BackingFiles {
 public:
  explicit BackingFiles(transport::Channel& channel) : channel_{channel} {}

  // Whether files of the file system that fd is on may be passed through. The kernel opens the
  // backing file again with the daemon's rights and the opener's flags: an open descriptor must
  // show the same to whoever has it (not so: proc, which looks at who opened it; network file
  // systems, where the server does), and O_DIRECT must work (not so: ramfs).
  [[nodiscard]] static bool suits(int fd) noexcept;

  // One open file's part in it. Ending it calls become_daemon().
  class Use {
   public:
    Use() = default;
    Use(Use&& o) noexcept : files_{std::exchange(o.files_, nullptr)}, node_{o.node_}, id_{o.id_} {}
    Use& operator=(Use&& o) noexcept {
      std::swap(files_, o.files_);
      std::swap(node_, o.node_);
      std::swap(id_, o.id_);
      return *this;
    }
    Use(const Use&) = delete;
    Use& operator=(const Use&) = delete;
    ~Use() {
      if (files_ != nullptr) files_->leave(node_);
    }
    // The kernel's number of the backing file; 0: reads come to the daemon.
    [[nodiscard]] std::int32_t id() const noexcept { return id_; }

   private:
    friend class BackingFiles;
    Use(BackingFiles& files, std::uint64_t node, std::int32_t id)
        : files_{&files}, node_{node}, id_{id} {}
    BackingFiles* files_{};
    std::uint64_t node_{};
    std::int32_t id_{};
  };

  // One more open file of the node, whose backing file is open as fd. Keep it until the file is
  // released. Calls become_daemon(). Throws std::bad_alloc. Precondition: Channel::passthrough().
  [[nodiscard]] Use enter(std::uint64_t node, int fd);

  // At the session's end, while the channel has its device: the kernel lets go of what the daemon
  // named. Else that would wait until the last descriptor of the device is closed, which a ring
  // does some time after its process has ended, and SOURCE's file system would be busy until then.
  void close_all() noexcept;

 private:
  static constexpr std::size_t kShards = 16;
  struct Backing {
    std::int32_t id{};
    std::uint64_t opens{};
  };
  struct Shard {
    Mutex mu;
    std::unordered_map<std::uint64_t, Backing> nodes GUARDED_BY(mu);
  };
  void leave(std::uint64_t node) noexcept;
  Shard& shard_of(std::uint64_t node) { return shards_[node % kShards]; }
  std::int32_t number_for(int fd) noexcept;

  transport::Channel& channel_;
  std::array<Shard, kShards> shards_;
};

}  // namespace latchfs::fuse
