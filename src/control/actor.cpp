#include "control/actor.h"

#include <fmt/core.h>

namespace latchfs::control {

std::string describe_caller(const Actor& actor) {
  std::string out = fmt::format("uid {} pid {}", actor.writer.caller.uid, actor.writer.caller.pid);
  if (actor.opener.caller.uid != actor.writer.caller.uid) {
    out += fmt::format(" (opened by uid {})", actor.opener.caller.uid);
  }
  return out;
}

}  // namespace latchfs::control
