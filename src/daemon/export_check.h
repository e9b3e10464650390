// Whether the mount is exported by the kernel's NFS server in a way that works: docs/nfs.md. Looks
// at exports(5) files and changes nothing; what it does not understand it does not speak of.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace latchfs::daemon {

// To whom a directory is exported, and how.
struct ExportClient {
  std::string name;                  // as written: "*", "10.0.0.0/8", "@group"; "" is everybody
  std::vector<std::string> options;  // the line's defaults first, then the client's own
};
struct Export {
  std::string path;  // as written, without quotes and with escapes resolved
  std::vector<ExportClient> clients;
};

// The text of an exports(5) file: continued lines, quotes, octal escapes, comments, default options
// ("-ro,fsid=1"). Lines that do not name an absolute path are left out; of more than 1 MiB only the
// beginning is read. Any bytes will do.
[[nodiscard]] std::vector<Export> parse_exports(std::string_view text);

// What decides beside the exports.
struct ExportSetting {
  std::string mountpoint;  // absolute, symlinks resolved
  bool mandatory{};        // enforce=mandatory
  bool leases{};           // fs.leases-enable is not 0
};

// A line for each thing that is off, naming its remedy; none if the mountpoint is not exported.
[[nodiscard]] std::vector<std::string> export_warnings(const std::vector<Export>& exports,
                                                       const ExportSetting& setting);

// ETC/exports and ETC/exports.d/*.exports, as exportfs(8) reads them. What cannot be read is as if
// it were not there.
[[nodiscard]] std::vector<Export> read_exports(const std::string& etc);

// Whether PROC/sys/fs/leases-enable is there and not 0.
[[nodiscard]] bool leases_enabled(const std::string& proc);

}  // namespace latchfs::daemon
