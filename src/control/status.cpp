#include "control/status.h"

#include <cerrno>
#include <system_error>

#include "control/text.h"

namespace latchfs::control {

Status status_of(int err) {
  switch (err) {
    case EINVAL:
    case EISDIR:
    case ELOOP:
    case ENOTDIR:
    case ENAMETOOLONG:
      return {"400", "Bad Request"};
    case EACCES:
    case EPERM:
      return {"403", "Forbidden"};
    case ENOENT:
      return {"404", "Not Found"};
    case EBUSY:
      return {"409", "Conflict"};
    case EMSGSIZE:
      return {"413", "Payload Too Large"};
    case EOPNOTSUPP:
      return {"501", "Not Implemented"};
    case ENOMEM:
    case ENOLCK:
    case ENOSPC:
    case EDQUOT:
      return {"507", "Insufficient Storage"};
    default:
      return {"500", "Internal Server Error"};
  }
}

std::string words_for(int err) { return std::generic_category().message(err); }

void append_error(std::string& out, int err, std::string_view why) {
  const Status status = status_of(err);
  out += "\"error\": {\"code\": \"";
  out += status.code;
  out += "\", \"reason\": \"";
  out += status.reason;
  out += "\", \"user_message\": ";
  append_json_string(out, why);
  out += '}';
}

}  // namespace latchfs::control
