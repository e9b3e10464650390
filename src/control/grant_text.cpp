#include "control/grant_text.h"

#include <string_view>

#include "base/clock.h"
#include "control/text.h"

namespace latchfs::control {
namespace {

// ", \"key\": " and a string.
void field(std::string& out, std::string_view key, std::string_view value) {
  out += ", \"";
  out += key;
  out += "\": ";
  append_json_string(out, value);
}

// owner_name and owner_address, of all that it may be.
void append_machines(std::string& out, const Context& context, const Grant& grant) {
  std::string names;
  std::string addresses;
  for (const RemoteClient& machine : context.machines_of(grant)) {
    const char* const comma = addresses.empty() && names.empty() ? "" : ", ";
    names += comma + machine.name;
    addresses += comma + machine.address;
  }
  field(out, "owner_name", names);
  field(out, "owner_address", addresses);
}

void append_range(std::string& out, const Grant& grant) {
  out += "\"mode\": [\"";
  out += api_mode(grant.kind, grant.mode);
  out += "\"], \"offset\": ";
  append_quoted_number(out, grant.range.begin());
  out += ", \"size\": ";
  append_quoted_number(out, grant.range.size_or_zero());
}

void append_holder(std::string& out, const Holder& holder) {
  out += ", \"pid\": ";
  append_number(out, holder.pid);
  field(out, "comm", comm_of(holder));
  out += ", \"uid\": ";
  append_number(out, holder.uid);
}

// Everything up to and with uid.
void append_common(std::string& out, const Context& context, const Grant& grant,
                   const FileFacts::Facts& facts) {
  const Options& options = context.options();
  out += "{\"file_id\": \"";
  out += context.file_id_text(grant.file);
  out += R"(", "stream_id": "0")";
  field(out, "snapshot_id", facts.snapshot);
  out += ", ";
  append_range(out, grant);
  field(out, "owner_id", to_string(grant.owner));
  append_machines(out, context, grant);
  field(out, "node_address", options.node_address);
  field(out, "path", facts.path);
  field(out, "kind", kind_name(grant.kind));
  append_holder(out, grant.holder);
}

void append_blocker(std::string& out, const Context& context, const Grant& blocker, bool visible) {
  out += '{';
  append_range(out, blocker);
  field(out, "owner_id", visible ? to_string(blocker.owner) : "");
  if (visible) {
    append_machines(out, context, blocker);
  } else {
    field(out, "owner_name", "");
    field(out, "owner_address", "");
  }
  field(out, "kind", kind_name(blocker.kind));
  if (visible) {
    append_holder(out, blocker.holder);
  } else {
    out += R"(, "pid": 0, "comm": "", "uid": null)";
  }
  field(out, "acquired_at", visible ? rfc3339(blocker.acquired_at_ns) : "");
  out += '}';
}

}  // namespace

void append_grant(std::string& out, const Context& context, const Grant& grant,
                  const FileFacts::Facts& facts) {
  append_common(out, context, grant, facts);
  field(out, "acquired_at", rfc3339(grant.acquired_at_ns));
  out += ", \"waiters\": ";
  append_number(out, grant.waiters);
  out += '}';
}

void append_released(std::string& out, const Context& context, const Grant& grant,
                     const FileFacts::Facts& facts) {
  append_common(out, context, grant, facts);
  field(out, "acquired_at", rfc3339(grant.acquired_at_ns));
  out += '}';
}

void append_waiter(std::string& out, const Context& context, const Waiter& waiter,
                   const FileFacts::Facts& facts, bool blocker_visible) {
  append_common(out, context, waiter.request, facts);
  field(out, "blocked_at", rfc3339(waiter.request.acquired_at_ns));
  out += ", \"blocked_by\": ";
  if (waiter.blocker) {
    append_blocker(out, context, *waiter.blocker, blocker_visible);
  } else {
    out += "null";
  }
  out += '}';
}

}  // namespace latchfs::control
