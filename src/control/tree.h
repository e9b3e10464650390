// The /.locks tree: nodes, what reading them gives, what writing them does. Bytes in, bytes out;
// knows nothing of FUSE. CONTRACT section 3.
//
// Thread-safe. Never throws but std::bad_alloc.
//
// Node numbers: bit 63 set. Bit 62 set as well: the mirror of the mount's node in the low 62 bits
// below files/. Static nodes are small numbers; a name with a query gets a number of its own that
// lives until forgotten.
#pragma once

#include <sys/stat.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/caller.h"
#include "control/file_view.h"
#include "control/filelocks.h"
#include "latchfs/lock_service.h"
#include "latchfs/result.h"

namespace latchfs::control {

inline constexpr std::uint64_t kControlBit = std::uint64_t{1} << 63;
inline constexpr std::uint64_t kMirrorBit = std::uint64_t{1} << 62;
inline constexpr std::uint64_t kTreeRoot = kControlBit | 1;
[[nodiscard]] constexpr bool is_control(std::uint64_t node) { return (node & kControlBit) != 0; }
// The mount's node that one below files/ mirrors; 0 for all others.
[[nodiscard]] constexpr std::uint64_t mirrored_node(std::uint64_t node) {
  constexpr std::uint64_t kBoth = kControlBit | kMirrorBit;
  return (node & kBoth) == kBoth ? node & ~kBoth : 0;
}

// A user who is nobody in particular: is shown what everybody may see. (65534 is somebody, and has
// files and locks, and so have those squashed to -2.)
inline constexpr Caller kAnybody{static_cast<uid_t>(-3), static_cast<gid_t>(-3), 0, 0};

// How the mount is served, for `status`: of each the value that its option takes, or would.
struct Serving {
  std::string transport;  // "dev": requests come from /dev/fuse; "uring": by io_uring
  std::string io;         // "passthrough", "direct", "cached"
};

struct Options {
  std::string mountpoint;  // absolute; a path that begins with it is accepted too
  std::string name;        // ".locks": for README
  std::string node_name;
  std::string node_address;
  std::string snapshots;  // GLOB over mount-relative directories, "" for none (see docs)
  std::string version;
  bool mandatory{};
  std::function<Serving()> serving;  // asked when the mount answers; none: nothing to say
};

struct NodeAttr {
  std::uint64_t node{};
  // st_ino is the node number; st_size and st_mtim are truthful, to the caller. st_ctim is another
  // one each second and for each user, but for README's.
  struct stat attr {};
  std::uint32_t generation{};  // below files/: the mirrored node's
};

struct FileName {
  std::string name;
  std::uint64_t ino{};
  mode_t type{};  // S_IFDIR, S_IFREG
};

class Tree {
 public:
  Tree(LockService& locks, FileView& files, Filelocks& filelocks, Options options);
  ~Tree();
  Tree(const Tree&) = delete;
  Tree& operator=(const Tree&) = delete;

  // References the answer once (mirror nodes reference the mount's node). ENOENT, EACCES, EINVAL
  // (a malformed query), ENAMETOOLONG. "." and ".." go by node, known still or not, for NFS
  // handles: ESTALE; ".." of the tree's root is the mount's, node FileView::kRootNode.
  Result<NodeAttr> lookup(std::uint64_t parent, std::string_view name, const Caller&);
  void forget(std::uint64_t node, std::uint64_t count) noexcept;
  Result<NodeAttr> getattr(std::uint64_t node, const Caller&);
  // chmod, chown: EPERM. Size 0 and times are accepted on files that can be written, so that
  // `echo x > release` and touch work; else EPERM.
  struct Change {
    bool mode{}, owner{}, times{}, size{};
    std::uint64_t new_size{};
  };
  Result<NodeAttr> setattr(std::uint64_t node, const Change&, const Caller&);
  // Of the root alone, without "." and "..". Query names are listed nowhere. Directories below
  // files/ are as large as the mount's: their names come from there (mirrored_node()), but for
  // Options::name in files/ itself. ENOTDIR for all other nodes.
  Result<std::vector<FileName>> readdir(std::uint64_t node);

  // flags: open(2)'s. EACCES for writing what cannot be written, EISDIR.
  Result<std::uint64_t> open(std::uint64_t node, int flags, const Caller&);
  Result<std::string> read(std::uint64_t fh, std::uint64_t offset, std::size_t size, const Caller&);
  // The number of bytes taken; the errno of the first failure of the request that they completed.
  Result<std::size_t> write(std::uint64_t fh, std::uint64_t offset, std::string_view data,
                            const Caller&);
  // Runs what is complete only by the end of input (query form without newline).
  Result<void> flush(std::uint64_t fh, const Caller&);
  void release(std::uint64_t fh) noexcept;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace latchfs::control
