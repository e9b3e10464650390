// Whose lock it is that a thread of the kernel's NFS server took: what /proc/fs/nfsd/clients tells
// of NFSv4 clients (fs/nfsd/nfs4state.c, client_states_op and client_info_fops).
//
// The kernel says which client has locks on which inode, not on which range of it. So of several
// clients with locks on one file nobody can say whose a given one is: all are named. Clients of an
// NFS server in another network namespace, and NFSv3's, are not there. A client that locked a file
// and has it still open is there as well. The kernel prints names of files as they are: a client
// can make itself look like one of those that lock any inode, so that nobody can say whose a lock
// is.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "latchfs/types.h"

namespace latchfs::posix {

// Thread-safe; runs as the daemon.
class NfsdClients {
 public:
  // directory: of the kernel's, or one like it.
  explicit NfsdClients(std::string directory = "/proc/fs/nfsd/clients")
      : directory_{std::move(directory)} {}

  static constexpr std::string_view kServerThread = "nfsd";
  // Is this a thread of the NFS server: the kernel's, and called so (comm: when it was asked)?
  [[nodiscard]] static bool is_server_thread(std::uint32_t pid, std::string_view comm);
  [[nodiscard]] static bool is_server_thread(pid_t pid);

  // The clients with locks on the inode of the super block, as of some moment after since_ns
  // (CLOCK_REALTIME) and at most a second ago; in the order of their addresses. Empty: not known.
  [[nodiscard]] std::vector<RemoteClient> with_locks_on(dev_t super_block, std::uint64_t ino,
                                                        std::int64_t since_ns);

  // "10.0.0.2:940", "[fe80::1%eth0]:940": without the port. "" if it is neither.
  [[nodiscard]] static std::string address_of(std::string_view text);
  // The machine's name in what a Linux client calls itself, "Linux NFSv4.2 build7" (fs/nfs/
  // nfs4proc.c nfs4_init_uniform_client_string() and its neighbour); the whole text of others.
  [[nodiscard]] static std::string machine_of(std::string_view text);

 private:
  using Inode = std::pair<dev_t, std::uint64_t>;
  struct Snapshot {
    std::int64_t read_at_ns{};
    std::map<Inode, std::vector<RemoteClient>> lockers;
  };
  [[nodiscard]] std::shared_ptr<const Snapshot> read() const;

  const std::string directory_;
  Mutex mu_;  // leaf
  std::shared_ptr<const Snapshot> last_ GUARDED_BY(mu_);
};

}  // namespace latchfs::posix
