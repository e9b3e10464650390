// libnfs's calls by RPC, one at a time: each is waited for. What fails ends the process.
#pragma once

#include <nfsc/libnfs.h>
#include <poll.h>

#include <cstdio>
#include <cstdlib>
#include <string>
// (In this order: they need it.)
#include <nfsc/libnfs-raw.h>

namespace latchfs::testing {

[[noreturn]] inline void give_up(const char* what, const char* why) {
  std::fprintf(stderr, "nfs_client: %s: %s\n", what, why);
  std::exit(3);
}

// Until `done`, or the connection is gone.
inline void serve(struct rpc_context* rpc, const bool& done, const char* what) {
  while (!done) {
    struct pollfd one {};
    one.fd = rpc_get_fd(rpc);
    one.events = static_cast<short>(rpc_which_events(rpc));
    if (::poll(&one, 1, 1000) < 0) give_up(what, "poll");
    if (rpc_service(rpc, one.revents) != 0) give_up(what, rpc_get_error(rpc));
  }
}

// Where the server's rpcbind says that the program is.
inline void connect(struct rpc_context* rpc, const std::string& server, int program, int version,
                    const char* what) {
  bool done = false;
  const auto connected = [](struct rpc_context* context, int status, void*, void* data) {
    if (status != RPC_STATUS_SUCCESS) give_up("connect", rpc_get_error(context));
    *static_cast<bool*>(data) = true;
  };
  if (rpc == nullptr) give_up(what, "no memory");
  if (rpc_connect_program_async(rpc, server.c_str(), program, version, connected, &done) != 0) {
    give_up(what, rpc_get_error(rpc));
  }
  serve(rpc, done, what);
}

}  // namespace latchfs::testing
