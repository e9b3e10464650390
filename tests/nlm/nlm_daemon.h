// latchfs-nlm itself, for one test: started when constructed, gone when destroyed.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "support/mount_fixture.h"

namespace latchfs::test {

// Throws std::runtime_error with its log where it does not serve (LATCHFS_NLM_BIN, set by meson).
class NlmDaemon {
 public:
  // On 127.0.0.1, any port, without statd and grace unless the options say otherwise.
  NlmDaemon(const std::string& table, const std::string& mountpoint,
            const std::vector<std::string>& options = {"--no-statd", "--grace=0"});
  ~NlmDaemon();
  NlmDaemon(const NlmDaemon&) = delete;
  NlmDaemon& operator=(const NlmDaemon&) = delete;

  [[nodiscard]] std::uint16_t port() const { return port_; }
  [[nodiscard]] std::string log() const;
  // How many of its descriptors are on files below the directory.
  [[nodiscard]] std::size_t opens_below(const std::string& directory) const;
  // SIGKILL, and waits until it is dead.
  void kill();
  // SIGTERM; its exit status, or -1 where it died otherwise.
  int stop();

 private:
  int end(int signal);
  TempDir place_;
  pid_t pid_{-1};
  std::uint16_t port_{};
};

// The handle nfsd gives out for the file: of an export with this fsid=.
[[nodiscard]] std::string nfs_handle(const std::string& path, std::uint32_t fsid = 1);

}  // namespace latchfs::test
