// A latchfs daemon on directories of its own, for one test. Started when constructed, gone when
// destroyed, whatever the test did in between, and its shared table with it.
//
// Throws std::runtime_error with one clear line where it cannot work: no /dev/fuse, no binary
// (LATCHFS_BIN, set by meson), a daemon that dies before it answers (then with its log).
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

namespace latchfs::test {

// A new empty directory below TMPDIR (default /tmp), removed at the end.
class TempDir {
 public:
  TempDir();
  ~TempDir();
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// A new file system of a type that needs no device ("tmpfs", ...), mounted at a directory of its
// own, gone at the end. Needs root.
class OwnFileSystem {
 public:
  explicit OwnFileSystem(const char* type, const std::string& options = {});
  ~OwnFileSystem();
  OwnFileSystem(const OwnFileSystem&) = delete;
  OwnFileSystem& operator=(const OwnFileSystem&) = delete;
  // False: it could not be mounted.
  [[nodiscard]] bool ok() const { return ok_; }
  [[nodiscard]] const std::string& path() const { return place_.path(); }

 private:
  TempDir place_;
  bool ok_;
};

// What the table's last user leaves, and keeps for the next: the memory, the file that names it,
// the state directory (docs/recovery.md). For tables with a name like no other, and no next user.
void remove_table(const std::string& name);

class MountFixture {
 public:
  struct Options {
    std::string source;                // "": a directory of its own
    std::string table;                 // "": one of its own
    bool owns_table{};                 // a given one goes with it too
    std::vector<std::string> options;  // each one -o
    bool foreground{true};             // -f; else it daemonises
  };

  MountFixture() : MountFixture(Options{}) {}
  explicit MountFixture(Options options);
  ~MountFixture();
  MountFixture(const MountFixture&) = delete;
  MountFixture& operator=(const MountFixture&) = delete;

  // A second mount of the same directory with the same table.
  [[nodiscard]] Options another() const;

  [[nodiscard]] const std::string& source() const { return options_.source; }
  [[nodiscard]] const std::string& mount() const { return mountpoint_; }
  [[nodiscard]] const std::string& table() const { return options_.table; }
  [[nodiscard]] pid_t daemon() const { return daemon_; }

  // SIGKILL, and waits until it is dead. The dead mount stays until detach().
  void kill_daemon();
  // umount -l.
  void detach();
  // An ordinary unmount: true if the mount went and the daemon ended by itself with status 0.
  [[nodiscard]] bool unmount();

  [[nodiscard]] std::string log() const;
  // How the mount reads files: "io" of its `.locks/status`.
  [[nodiscard]] std::string io() const { return status("io"); }
  // How requests come to it: "transport" of the same.
  [[nodiscard]] std::string transport() const { return status("transport"); }

 private:
  void start();
  [[nodiscard]] std::string status(const char* field) const;
  void wait_until_it_answers();
  [[nodiscard]] bool daemon_ended(int* status = nullptr);
  [[nodiscard]] bool mounted() const;

  Options options_;
  TempDir place_;  // mountpoint, log and, unless given, source
  std::string mountpoint_;
  pid_t daemon_{-1};
  bool is_child_{};
  bool owns_table_{};
};

}  // namespace latchfs::test
