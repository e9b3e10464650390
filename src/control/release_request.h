// What may be written to `release`: {"ref", "offset", "size", "owner_id"} and perhaps "snapshot",
// as JSON or in the seed's query form. All of the first four, nothing else, nothing twice. Or, what
// the seed has not, {"owner_address"} alone: all that one machine on the network holds.
#pragma once

#include <optional>
#include <string>
#include <variant>

#include "control/intake.h"
#include "control/query.h"
#include "control/text.h"
#include "latchfs/types.h"

namespace latchfs::control {

struct ReleaseRequest {
  FileRef ref;
  std::string ref_text;  // as written
  ByteRange range;
  OwnerId owner;
  std::optional<std::string> snapshot;  // "" is the head
};

struct ReleaseOfClient {
  std::string owner_address;  // not empty
};

// In JSON a ref is plain text, in the query form it is URL-encoded; only the latter can spell
// names that are not UTF-8.
[[nodiscard]] std::variant<ReleaseRequest, ReleaseOfClient, Malformed> parse_release(
    const Intake::Request& request);

}  // namespace latchfs::control
