// NFSv3's locks by libnfs: the calls of NLM version 4, and the service a server calls back to when
// a lock that was waited for is granted. For one thread.
#pragma once

#include <nfsc/libnfs.h>

#include <cstdint>
#include <string>
// (In this order: they need it.)
#include <nfsc/libnfs-raw.h>

namespace latchfs::testing {

struct NlmRange {
  bool exclusive{};
  std::uint64_t start{};
  std::uint64_t length{};  // 0: to the end
};

class NlmSession {
 public:
  // Connects to the lock service of `server` that its rpcbind names. Does not return if that fails:
  // says so on standard error and ends the process, as all of the calls do.
  NlmSession(const std::string& server, std::string handle);
  NlmSession(const NlmSession&) = delete;
  NlmSession& operator=(const NlmSession&) = delete;
  ~NlmSession();

  // These answer with NLM4_… (nlmstat4).
  int lock(const NlmRange& range, bool wait, bool reclaim = false);
  int cancel(const NlmRange& range);
  int unlock(const NlmRange& range);
  // On NLM4_DENIED, `held` is the range of who holds it.
  int test(const NlmRange& range, NlmRange& held);

  // Takes the place of this host's lock service in its rpcbind, before a lock is waited for.
  void offer_granted();
  // Until a server says that it has granted, to which the answer is that we know of it.
  void await_granted();

 private:
  struct rpc_context* rpc_{};
  std::string handle_;
  std::string host_;
  std::string owner_;
  int listening_{-1};
};

}  // namespace latchfs::testing
