// A mounted latchfs: from a directory and a mountpoint to a running FUSE session and back.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/unique_fd.h"
#include "fuse/reply.h"
#include "latchfs/change_gate.h"
#include "latchfs/lock_service.h"
#include "latchfs/result.h"
#include "transport/channel.h"

namespace latchfs::fuse {

// How the bytes of files are read; writes come to the daemon always.
enum class DataMode : std::uint8_t {
  // The best that kernel and rights allow: what is open to be read only goes straight to the
  // backing file (Linux 6.9, root), else as kDirect with shared mappings (Linux 6.6), else kCached.
  kAuto,
  // Each read(2) comes to the daemon. Before Linux 6.6, and where `mandatory`, shared mappings are
  // refused (ENODEV).
  kDirect,
  // Through the kernel's page cache, dropped when the backing file's mtime or size changed.
  kCached,
};

struct MountConfig {
  UniqueFd source;          // the directory, opened before the mount may cover it; O_PATH will do
  std::string source_path;  // shown as the mount's fsname; ""
  std::string mountpoint;   // absolute

  // fuse(8) and kernel options, each as in "-o", not escaped: "ro", "nodev", "noatime",
  // "nosymfollow" (root's only), "allow_other". default_permissions, and for root allow_other
  // (unless allow_root is given), are always added; fsname=source_path and subtype=latchfs unless
  // given.
  std::vector<std::string> options;
  std::uint32_t max_read{};  // bytes: what "max_read=" among the options says, 0 without it

  DataMode data_mode{DataMode::kAuto};
  bool mandatory{};  // enforce=mandatory: wants kDirect
  Timeouts timeouts;
  transport::Wanted::Rings rings{transport::Wanted::Rings::kIfOffered};
  unsigned threads{16};  // most worker threads; with rings, twice as many of each CPU

  std::string control_name{".locks"};
  std::optional<gid_t> admin_gid;
  std::string table;  // its name, for who asks which table a file's locks are in
  std::string node_name;
  std::string node_address;
  std::string snapshots;
  // Where the daemons of one table keep what survives them while a filelock is put on or taken off;
  // "": filelocks are refused.
  std::string state_directory;
  std::string version;

  // In tests, and where file handles cannot be used: descriptors and names only.
  bool use_handles{true};

  // Called once, on a thread of its own, when the mount answers; or with what it answered instead.
  std::function<void(Result<void>)> on_ready;
};

struct FileSystem;
class ParkingLot;

class FuseMount {
 public:
  // Mounts. On failure `why` is one line for the person who asked.
  // Forks before this are fine, none may follow. lot is the sink that locks tells; all three
  // must outlive the mount.
  [[nodiscard]] static Result<std::unique_ptr<FuseMount>> create(MountConfig config,
                                                                 LockService& locks,
                                                                 ChangeGate& gate, ParkingLot& lot,
                                                                 std::string& why);
  ~FuseMount();
  FuseMount(const FuseMount&) = delete;
  FuseMount& operator=(const FuseMount&) = delete;

  // Serves until unmounted or stopped, then unmounts. 0, or the errno of what broke the session;
  // EBUSY: something else is mounted over this mount, which stays, without a daemon. Once.
  [[nodiscard]] int run();

  // Ends run() from any thread, at any time; more than once is fine.
  void stop() noexcept;

 private:
  struct Impl;
  explicit FuseMount(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace latchfs::fuse
