// From the bytes of a call to the bytes of its answer: decode, one call down, encode.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/seldom.h"
#include "nlm/address.h"
#include "nlm/duplicates.h"
#include "nlm/lock_desk.h"
#include "nlm/monitor.h"
#include "nlm/rpc_message.h"
#include "nlm/siphash.h"

namespace latchfs::nlm {

// Who sent a message, and how.
struct Peer {
  Endpoint remote;
  Endpoint local;  // what it was sent to
  bool tcp{};
  // It came to a socket that is there for this machine's statd alone.
  bool only_statd{};
};

// Any thread.
class Dispatcher {
 public:
  struct Options {
    bool root_squash{true};
    std::uint32_t anonymous_uid{65534};
    std::uint32_t anonymous_gid{65534};
    // Locks are for who speaks from a reserved port, so for root of his machine (exports(5),
    // secure): anybody else could name any user and any process.
    bool insecure_ports{};
    // statd, and who gives all his machine's locks back, speaks from one in any case; tests cannot
    // always.
    bool root_port_reserved{true};
  };
  Dispatcher(Options options, LockDesk& desk, Monitor& monitor, Outside& outside,
             Outcalls& outcalls);

  // The answer; "": none. Takes any bytes; throws std::bad_alloc, after which the request was not
  // answered and may be asked again.
  [[nodiscard]] std::string answer(std::string_view message, const Peer& peer);

  // Who asks, as far as files are concerned (exports(5), root_squash).
  [[nodiscard]] User user_of(const Credentials& credentials) const;

 private:
  using Said = Duplicates::Said;
  struct Request {
    const CallMessage& call;
    const Peer& peer;
    Source from;
  };
  std::string serve(const CallMessage& call, std::string_view message, const Peer& peer);
  // Whether the port it comes from allows the call.
  [[nodiscard]] bool port_suffices(Proc procedure, const Peer& peer) const;
  // Nothing: it is not answered.
  std::optional<Said> serve_lock_call(const Request& request, Proc procedure);
  std::optional<Said> serve_share_call(const Request& request, Proc procedure);
  std::string serve_other(const Request& request, Proc procedure);
  // Calls the client's _RES procedure.
  void tell(const Request& request, const Said& said);

  const Options options_;
  const HashKey key_;
  LockDesk& desk_;
  Monitor& monitor_;
  Outside& outside_;
  Outcalls& outcalls_;
  Seldom complained_{10'000'000'000};
  Duplicates duplicates_;
};

}  // namespace latchfs::nlm
