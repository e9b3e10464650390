// Calls that we make: to the lock manager and the status monitor of a client, to statd and rpcbind
// of this machine.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

#include "latchfs/result.h"

namespace latchfs::nlm {

// The other side of a conversation.
struct Where {
  std::string address;  // numeric
  std::string local;    // our address that he knows us by, numeric; "": any
  bool tcp{};
};

// Any thread.
class Outside {
 public:
  virtual ~Outside() = default;

  // Finds the program's port by rpcbind there, calls, and waits for the answer: its results. Takes
  // up to three times `patience`. ETIMEDOUT; EHOSTUNREACH and the like; ENOENT: no such program
  // there; EPROTO: it answered that it cannot.
  Result<std::string> call(const Where& where, std::uint32_t program, std::uint32_t version,
                           std::uint32_t procedure, std::string_view arguments,
                           std::chrono::milliseconds patience) {
    unsigned unanswered = 0;
    return exchange(where, program, version, procedure, arguments, patience, unanswered);
  }
  // call(), for what must not be done twice. unanswered: how many copies of it went out to which
  // no answer was seen: the other side may have done it as often, before what it answered at last.
  virtual Result<std::string> exchange(const Where& where, std::uint32_t program,
                                       std::uint32_t version, std::uint32_t procedure,
                                       std::string_view arguments,
                                       std::chrono::milliseconds patience,
                                       unsigned& unanswered) = 0;
  // call() without waiting for an answer, of which there is none (NLM's _RES procedures).
  virtual Result<void> tell(const Where& where, std::uint32_t program, std::uint32_t version,
                            std::uint32_t procedure, std::string_view arguments,
                            std::chrono::milliseconds patience) = 0;
};

}  // namespace latchfs::nlm
