#include "control/pages.h"

#include <fmt/core.h>

#include <string_view>

#include "base/clock.h"
#include "control/text.h"

namespace latchfs::control {
namespace {

// For a POSIX shell: one word, whatever the bytes.
std::string shell_quoted(std::string_view text) {
  constexpr std::string_view kPlain =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+,:@%";
  if (!text.empty() && text.find_first_not_of(kPlain) == std::string_view::npos) {
    return std::string{text};
  }
  std::string out = "'";
  for (const char ch : text) {
    if (ch == '\'') {
      out += R"('\'')";
    } else {
      out += ch;
    }
  }
  out += '\'';
  return out;
}

// "{L}" stands for the control directory.
constexpr std::string_view kReadme =
    R"readme(The locks of this mount, as files. Examples are for a shell and use jq.

  L={L}

  list     the locks held             list?KEY=VALUE&KEY=VALUE     some of them
  waiters  who waits and for whom     waiters?KEY=VALUE            likewise
  files/   like the mount itself: reading a file here lists the locks on it
  release  written to: breaks a lock; read: the outcome of your last release
  filelock, filelock?KEY=VALUE     read: the files that only who locked them may
           change; written to: locks files so.   unfilelock   ends that
  reply    the full reply to your last request
  status   version, capacity, enforcement, mounts that share the table

KEY is ref (a file_id or /path), pid, uid, owner_id, owner_name, owner_address,
mode (shared or exclusive), snapshot, limit or after (`next` of the page before);
pid is a process here unless an owner_name or owner_address is asked for;
of filelock: ref, uid, user, limit or after.
VALUE is URL-encoded (/ is %2F). A path too long for a name: take its file_id.

Who holds locks:
  jq -r '.grants[] | [.pid, .comm, .kind, .mode[0], .path] | @tsv' "$L/list"
Locks on one file:
  F=some/file; [ ! -e "$L/files/$F" ] || cat "$L/files/$F"
Locks of this shell, and the first two of all:
  cat "$L/list?pid=$$" "$L/list?limit=2"
Who waits for whom (null: the lock is just being granted):
  jq -r '.waiters[] | [.pid, .path, .blocked_by.pid, .blocked_by.comm] | @tsv' "$L/waiters"
Break a lock of process P. Dangerous: do it only if P leaked the lock and cannot
be ended instead. Whoever waits goes on at once, P is not told.
  P=0; cat "$L/list?pid=$P" | jq -c '.grants[0] // empty |
    {ref: .file_id, offset, size, owner_id}' > "$L/release" && cat "$L/reply"
Break all that an NFS client holds, by its address:
  A=; [ -z "$A" ] || echo "owner_address=$A" > "$L/release"
Keep others from changing a file (a path a line; / is the mount's root), see it:
  F=/some/file; [ ! -e "$L/files$F" ] || echo "$F" > "$L/filelock"
  jq -r '.filelocks[] | [.user, .locked_at, .path] | @tsv' "$L/filelock"
End it; with revert the file becomes again what it was when it was locked:
  [ ! -e "$L/files$F" ] || jq -n --arg f "$F" '{paths: [{path: $f, revert: false}]}' \
    > "$L/unfilelock"
)readme";

void field(std::string& out, std::string_view key, std::string_view value, std::string_view end) {
  out += fmt::format("  \"{}\": {}{}\n", key, json_string(value), end);
}

std::string mount_line(const MountInfo& mount) {
  return fmt::format(
      R"({{"id": "{}", "pid": {}, "source": {}, "mountpoint": {}, "started": "{}", "self": {}}})",
      mount.id, mount.pid, json_string(mount.source), json_string(mount.mountpoint),
      rfc3339(mount.started_at_ns), mount.self);
}

}  // namespace

std::string readme_text(const Options& options) {
  std::string directory = options.mountpoint;
  while (!directory.empty() && directory.back() == '/') directory.pop_back();
  directory += '/' + options.name;
  std::string out{kReadme};
  out.replace(out.find("{L}"), 3, shell_quoted(directory));
  return out;
}

std::string status_text(const Context& context, const TableStats& stats, const Viewer& viewer) {
  const Options& options = context.options();
  std::string_view verify = stats.last_verify;
  if (!viewer.admin && !verify.empty() && verify != "ok") verify = "failed";
  std::string out = "{\n";
  field(out, "version", options.version, ",");
  field(out, "table", stats.table, ",");
  out += fmt::format("  \"format\": {},\n", stats.format);
  field(out, "enforce", options.mandatory ? "mandatory" : "advisory", ",");
  const Serving serving = options.serving ? options.serving() : Serving{};
  field(out, "transport", serving.transport, ",");
  field(out, "io", serving.io, ",");
  field(out, "last_verify", verify, ",");
  field(out, "changed_at", stats.changed_at_ns == 0 ? "" : rfc3339(stats.changed_at_ns), ",");
  out += fmt::format("  \"capacity\": {{\"used\": {}, \"committed\": {}, \"max\": {}}},\n",
                     stats.bytes_used, stats.bytes_committed, stats.bytes_max);
  out += fmt::format(
      "  \"counts\": {{\"files\": {}, \"grants\": {}, \"owners\": {}, \"waiters\": {}, "
      "\"mounts\": {}}},\n",
      stats.files, stats.grants, stats.owners, stats.waiters, stats.mounts.size());
  out += "  \"mounts\": [";
  bool first = true;
  for (const MountInfo& mount : stats.mounts) {
    if (!viewer.admin && !mount.self) continue;
    out += first ? "\n    " : ",\n    ";
    out += mount_line(mount);
    first = false;
  }
  out += first ? "]\n}\n" : "\n  ]\n}\n";
  return out;
}

}  // namespace latchfs::control
