// Calls of an NFSv4.0 client that libnfs does not make. What a client does after its server was
// restarted, in the server's grace period (RFC 7530, 9.6): it comes back under its name, opens by
// CLAIM_PREVIOUS and locks with the reclaim flag. And writing to a file in a directory that the
// user may not write to, which libnfs refuses by itself. For one thread.
#pragma once

#include <nfsc/libnfs.h>

#include <cstdint>
#include <string>
#include <vector>
// (In this order: they need it.)
#include <nfsc/libnfs-raw-nfs4.h>
#include <nfsc/libnfs-raw.h>

#include "nlm_session.h"

namespace latchfs::testing {

class Nfs4Client {
 public:
  // Connects. Does not return if that fails, nor do the calls if the connection is lost: they say
  // so on standard error and end the process.
  explicit Nfs4Client(const std::string& server);
  Nfs4Client(const Nfs4Client&) = delete;
  Nfs4Client& operator=(const Nfs4Client&) = delete;
  ~Nfs4Client();

  // NFS4_OK or the status of what was refused. client: the name it had; handle: of the file.
  int reclaim(const std::string& client, const std::string& handle, const NlmRange& range);
  // The lease.
  int renew();
  int unlock();

  // Opens the file, from the server's root, writes to its beginning, and closes it: the first
  // status that is not NFS4_OK.
  int write(const std::string& client, const std::string& path, std::string text);

 private:
  // Of one compound: its status, and what each operation gave.
  struct Answer {
    bool done{};
    int status{};
    std::vector<nfs_resop4> results;
    std::string handle;  // that GETFH gave
  };
  Answer ask(std::vector<nfs_argop4> operations);
  int come_back_as(const std::string& name);
  nfs_argop4 open_call(std::uint32_t access);
  int confirm_open(const OPEN4res& opened);
  int open_again();
  int open(const std::string& path);
  int lock();
  [[nodiscard]] nfs_argop4 put_handle();

  struct rpc_context* rpc_{};
  std::string handle_;
  std::string owner_;
  NlmRange range_;
  clientid4 client_{};
  stateid4 open_{};
  stateid4 lock_{};
  std::uint32_t open_seqid_{};
};

}  // namespace latchfs::testing
