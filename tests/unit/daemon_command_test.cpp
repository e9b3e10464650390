// The latchfs command as the shell, mount(8) and fstab use it. Needs root and /dev/fuse.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>

namespace latchfs::daemon {
namespace {

namespace fs = std::filesystem;

struct Outcome {
  int status{};
  std::string out, err;
  [[nodiscard]] auto lines_of_err() const { return std::count(err.begin(), err.end(), '\n'); }
};

std::string text_of(const fs::path& path) {
  std::ostringstream out;
  out << std::ifstream{path}.rdbuf();
  return out.str();
}

class Command : public ::testing::Test {
 protected:
  void SetUp() override {
    const char* binary = std::getenv("LATCHFS_BIN");
    ASSERT_TRUE(binary != nullptr && ::access(binary, X_OK) == 0) << "LATCHFS_BIN: build it first";
    ASSERT_EQ(::access("/dev/fuse", R_OK | W_OK), 0) << "/dev/fuse is missing";
    std::string name = (fs::temp_directory_path() / "latchfs-command-XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    dir_ = fs::canonical(name);
    fs::permissions(dir_, fs::perms{0755});
    for (const char* sub : {"src", "mnt", "bin"}) fs::create_directory(dir_ / sub);
    std::ofstream{dir_ / "src/hello"} << "world\n";
    // Where mount.fuse3 finds us, and whose processes we may look for.
    fs::create_symlink(binary, dir_ / "bin/latchfs");
    table_ = "command-" + std::to_string(::getpid()) + "-" + dir_.filename().string().substr(16);
  }

  void TearDown() override {
    if (dir_.empty()) return;  // skipped
    // Some tests mount twice there.
    const std::string all = "umount -l " + q(mnt()) + " " + q(src()) + " 2>/dev/null\n";
    sh(all + all);
    fs::remove_all(dir_);
    fs::remove("/run/latchfs/" + table_ + ".table");
    fs::remove_all("/var/lib/latchfs/" + table_);
  }

  [[nodiscard]] fs::path src() const { return dir_ / "src"; }
  [[nodiscard]] fs::path mnt() const { return dir_ / "mnt"; }
  static std::string q(const fs::path& path) { return "'" + path.string() + "'"; }

  // A line of shell in dir_, with latchfs on the PATH and its table in $T. "answers PID" waits
  // until the mount of that process does; 9 if it ends before.
  Outcome sh(const std::string& line) const {
    std::ofstream{dir_ / "line"} << "cd " + q(dir_) + "; PATH=" + q(dir_ / "bin") +
                                        ":$PATH; export PATH; T=table=" + table_ +
                                        "\nanswers() { until [ -e mnt/hello ]; do kill -0 $1 || "
                                        "exit 9; sleep 0.02; done; }\n" +
                                        line + "\n";
    const std::string whole =
        "sh " + q(dir_ / "line") + " >" + q(dir_ / "out") + " 2>" + q(dir_ / "err") + " </dev/null";
    const int status = std::system(whole.c_str());  // NOLINT: the words are ours
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status), text_of(dir_ / "out"),
            text_of(dir_ / "err")};
  }

  // No latchfs daemon of ours is left: none has our table's name on its command line.
  [[nodiscard]] bool daemon_gone() const {
    for (int tries = 0; tries < 3000; ++tries) {
      if (sh("pgrep -f -- " + table_).status == 1) return true;
      ::usleep(20'000);
    }
    return false;
  }

  fs::path dir_;
  std::string table_;
};

TEST_F(Command, HelpAndVersionGoToStandardOutput) {
  const Outcome help = sh("latchfs --help");
  EXPECT_EQ(help.status, 0);
  EXPECT_EQ(help.out.rfind("usage: latchfs SOURCE MOUNTPOINT", 0), 0u);
  EXPECT_EQ(help.err, "");
  const Outcome version = sh("latchfs --version");
  EXPECT_EQ(version.status, 0);
  EXPECT_EQ(version.out.rfind("latchfs ", 0), 0u);
}

TEST_F(Command, WrongUsageIsOneLineAndStatusTwo) {
  for (const char* line : {"latchfs", "latchfs src", "latchfs src mnt -o bogus",
                           "latchfs src mnt -o table_max=1", "latchfs src mnt extra",
                           "latchfs src mnt -o admin_group=nosuchgroup", "latchfs src mnt -z"}) {
    const Outcome got = sh(line);
    EXPECT_EQ(got.status, 2) << line;
    EXPECT_EQ(got.lines_of_err(), 1) << got.err;
    EXPECT_EQ(got.err.rfind("latchfs: ", 0), 0u) << got.err;
  }
}

TEST_F(Command, WrongPlacesAreOneLineAndStatusOne) {
  for (const char* line :
       {"latchfs none mnt", "latchfs src none", "latchfs src/hello mnt", "latchfs src src/hello",
        "latchfs src mnt -o log=/no/such/directory/log", "latchfs none mnt -f"}) {
    const Outcome got = sh(line);
    EXPECT_EQ(got.status, 1) << line;
    EXPECT_EQ(got.lines_of_err(), 1) << got.err;
    EXPECT_EQ(got.err.rfind("latchfs: ", 0), 0u) << got.err;
  }
}

TEST_F(Command, TheNextShellLineCanUseTheMount) {
  const Outcome got = sh("latchfs src mnt -o $T && cat mnt/hello && cat mnt/.locks/list");
  EXPECT_EQ(got.status, 0) << got.err;
  EXPECT_EQ(got.out.rfind("world\n{\"grants\": [", 0), 0u) << got.out;
  EXPECT_EQ(got.err, "");
  EXPECT_EQ(sh("findmnt -no FSTYPE,SOURCE --mountpoint mnt").out,
            "fuse.latchfs " + src().string() + "\n");
  EXPECT_EQ(sh("umount mnt").status, 0);
  EXPECT_TRUE(daemon_gone());
}

TEST_F(Command, TakesTheUsualOptionsForReal) {
  const Outcome got = sh(
      "latchfs src mnt -o $T,max_read=65536,auto_unmount,noatime,nosuid,nodev,noexec,sync,dirsync,"
      "fsname=a\\\\,b,subtype=st,attr_timeout=1,entry_timeout=0.5,negative_timeout=0,"
      "default_permissions,allow_other && cat mnt/hello; findmnt -no FSTYPE,SOURCE,OPTIONS mnt");
  EXPECT_EQ(got.status, 0) << got.err;
  EXPECT_EQ(got.out.rfind("world\nfuse.st a,b ", 0), 0u) << got.out;
  for (const char* option : {"noatime", "nosuid", "nodev", "noexec", "sync", "max_read=65536"}) {
    EXPECT_NE(got.out.find(option), std::string::npos) << option << " in " << got.out;
  }
}

// fusermount3 mounts then, and would have it nosuid and nodev.
TEST_F(Command, AutoUnmountChangesNoOtherFlag) {
  const Outcome got =
      sh("for o in '' ,auto_unmount ,noexec,auto_unmount,nosuid; do\n"
         "latchfs src mnt -o $T,noatime$o && findmnt -no VFS-OPTIONS mnt && umount mnt; done");
  EXPECT_EQ(got.err, "");
  EXPECT_EQ(got.out, "rw,noatime\nrw,noatime\nrw,nosuid,noexec,noatime\n");
  EXPECT_TRUE(daemon_gone());
}

// What was visited and locked through the mount can be unmounted below it; a working directory in
// it goes on being one after the daemon let go of it.
TEST_F(Command, AFileSystemBelowSourceCanBeUnmountedWhenUnused) {
  const Outcome got = sh(
      "mkdir src/n; mount -t tmpfs nested src/n && echo x > src/n/file; latchfs src mnt -o $T\n"
      "find mnt > /dev/null; flock mnt/n/file cat mnt/n/file\n"
      "d=/proc/$(pgrep -f -- $T)/fd; dev=$(stat -c %d src/n)\n"
      "holds() { for f in $d/*; do [ $(stat -Lc %d $f) != $dev ] || return 0; done; return 1; }\n"
      "(cd mnt/n; n=0; while holds && [ $n -lt 200 ]; do n=$((n+1)); sleep 0.1; done; cat file\n"
      " cd ..; n=0; until umount ../src/n 2>/dev/null || [ $n -ge 200 ]; do\n"
      " n=$((n+1)); sleep 0.1; done)\n"
      "ls mnt/n; umount src/n; umount mnt");
  EXPECT_EQ(got.out, "x\nx\n") << got.err;
  EXPECT_NE(got.err.find("src/n: not mounted"), std::string::npos) << got.err;
  sh("umount -l src/n 2>/dev/null");
  EXPECT_TRUE(daemon_gone());
}

TEST_F(Command, FusermountEndsIt) {
  ASSERT_EQ(sh("latchfs src mnt -o $T").status, 0);
  EXPECT_EQ(sh("fusermount3 -u mnt").status, 0);
  EXPECT_TRUE(daemon_gone());
}

TEST_F(Command, MountsOverItself) {
  const Outcome got = sh("latchfs src src -o $T && cat src/hello && echo more > src/new");
  EXPECT_EQ(got.status, 0) << got.err;
  EXPECT_EQ(got.out, "world\n");
  EXPECT_EQ(sh("umount src && cat src/new").out, "more\n");
  EXPECT_TRUE(daemon_gone());
}

TEST_F(Command, TermAndIntUnmountAndEndWithZero) {
  for (const char* sig : {"TERM", "INT", "HUP"}) {
    const Outcome got = sh(std::string{"latchfs src mnt -f -o $T & pid=$!\n"
                                       "until [ -e mnt/hello ]; do sleep 0.02; done\n"
                                       "kill -"} +
                           sig + " $pid; wait $pid; s=$?; ls mnt; exit $s");
    EXPECT_EQ(got.status, 0) << sig << got.err;
    EXPECT_EQ(got.out, "") << sig;
  }
}

// Its first request is its own, to see whether it answers: killed then, it must not wait for it.
TEST_F(Command, DiesOfSigkillWhileItStarts) {
  for (const std::string transport : {"dev", "auto"}) {
    const auto killed =
        sh("LATCHFS_FAULT=fuse.statfs=kill@1 latchfs -f src mnt -o $T,transport=" + transport +
           " & for i in $(seq 500); do [ $(ls /proc/$!/task 2>/dev/null | wc -l) -gt 0 ] || break; "
           "grep -q zombie /proc/$!/status && [ $(ls /proc/$!/task | wc -l) = 1 ] && break; "
           "sleep 0.02; done; [ $i -lt 500 ] || { umount -f mnt; exit 77; }; wait $!; exit $?");
    EXPECT_EQ(killed.status, 128 + SIGKILL) << transport << ": " << killed.err;
    EXPECT_NE(sh("cat mnt/hello").status, 0) << transport;  // and does not wait for an answer
    EXPECT_EQ(sh("umount mnt && latchfs src mnt -o $T && cat mnt/hello && umount mnt").out,
              "world\n");
  }
}

TEST_F(Command, StoppingLeavesWhatOthersMountedOverItAlone) {
  const Outcome got =
      sh("latchfs src mnt -f -o $T & pid=$!\n"
         "answers $pid\n"
         "mount -t tmpfs over mnt && echo kept > mnt/file\n"
         "kill $pid; wait $pid; echo $?; cat mnt/file; umount mnt\n"
         "until ls mnt 2>&1 | grep 'Transport endpoint is not connected' >&2; do sleep 0.02; done\n"
         "umount mnt; ls mnt");
  EXPECT_EQ(got.out, "1\nkept\n") << got.err;
  EXPECT_NE(got.err.find("mnt shows another mount than this one"), std::string::npos) << got.err;
  EXPECT_NE(got.err.find("Transport endpoint is not connected"), std::string::npos) << got.err;
  EXPECT_TRUE(daemon_gone());
}

TEST_F(Command, TwoOnOneMountpointEndEachItself) {
  fs::create_directory(dir_ / "upper");
  std::ofstream{dir_ / "upper/hello"} << "upper\n";
  const Outcome got =
      sh("latchfs src mnt -f -o $T & lower=$!\n"
         "answers $lower\n"
         "latchfs upper mnt -o $T || exit 8\n"
         "kill $lower; wait $lower; cat mnt/hello\n"
         "kill $(pgrep -f -- upper.mnt.-o.$T)");
  EXPECT_EQ(got.status, 0) << got.err;
  EXPECT_EQ(got.out, "upper\n") << got.err;
  EXPECT_TRUE(daemon_gone());
  EXPECT_EQ(sh("findmnt -no SOURCE --mountpoint mnt").out, src().string() + "\n");
  EXPECT_EQ(sh("umount mnt; findmnt -no SOURCE --mountpoint mnt").out, "");
}

TEST_F(Command, AMountThatWasDetachedTakesNothingElseWithIt) {
  const Outcome got =
      sh("latchfs src mnt -f -o $T & pid=$!\n"
         "answers $pid\n"
         "exec 3< mnt/hello; umount -l mnt; mount -t tmpfs over mnt && echo kept > mnt/file\n"
         "kill $pid; wait $pid; cat mnt/file; umount mnt");
  EXPECT_EQ(got.status, 0) << got.err;
  EXPECT_EQ(got.out, "kept\n");
  EXPECT_TRUE(daemon_gone());
}

TEST_F(Command, TheDaemonKeepsNeitherTerminalNorDirectory) {
  // A pipe's reader sees the end only when nobody holds the other side.
  const Outcome got =
      sh("latchfs src mnt -o $T 2>&1 | cat; "
         "d=/proc/$(pgrep -f -- " +
         table_ + "); readlink $d/cwd $d/fd/0 $d/fd/2");
  EXPECT_EQ(got.out, "/\n/dev/null\n/dev/null\n");
}

// A descriptor of the daemon's own must not take the number of a stream the caller closed.
TEST_F(Command, ClosedStandardStreamsAreFine) {
  for (const char* closed : {"<&-", ">&-", "2>&-", "<&- >&- 2>&-"}) {
    for (const char* kind : {"", "-f"}) {
      const std::string line =
          *kind == '\0' ? std::string{"latchfs src mnt -o $T "} + closed + " || exit 9\n"
                        : std::string{"latchfs src mnt -f -o $T "} + closed + " & answers $!\n";
      // (With -f the daemon may just be asking its mount whether it answers: busy for a moment.)
      const Outcome got =
          sh(line +
             "cat mnt/hello && echo x > mnt/new && cat src/new && "
             "for i in $(seq 500); do umount mnt && exit; sleep 0.02; done; exit 8");
      EXPECT_EQ(got.status, 0) << closed << kind << got.err;
      EXPECT_EQ(got.out, "world\nx\n") << closed << kind;
      EXPECT_TRUE(daemon_gone());
      sh("umount -l mnt 2>/dev/null");
    }
  }
}

// The limit of the shell that mounts is not the users'; each of them has his own.
TEST_F(Command, AnInheritedFileSizeLimitHoldsForNobody) {
  const Outcome got =
      sh("(ulimit -S -f 8; latchfs src mnt -o $T) || exit 9\n"
         "head -c 200000 /dev/zero > mnt/large && stat -c %s src/large\n"
         "(trap '' XFSZ; ulimit -f 8; head -c 200000 /dev/zero > mnt/small); stat -c %s src/small\n"
         "cat mnt/hello; umount mnt");
  EXPECT_EQ(got.status, 0) << got.err;
  // ulimit -f counts blocks of 512 bytes in dash, of 1024 in bash.
  EXPECT_TRUE(got.out == "200000\n4096\nworld\n" || got.out == "200000\n8192\nworld\n") << got.out;
  EXPECT_NE(got.err.find("File too large"), std::string::npos) << got.err;
  EXPECT_TRUE(daemon_gone());
}

// mount(8) looks for latchfs on a PATH of its own, which begins with /usr/local/sbin: there it is
// in a mount namespace of the test's.
class MountCommand : public Command {
 protected:
  [[nodiscard]] Outcome sh_with_helper(const std::string& line) const {
    std::ofstream{dir_ / "inner"} << "mount --bind bin /usr/local/sbin || exit 99\n"
                                  << line << "\n";
    return sh("T=$T exec unshare --mount sh ./inner");
  }
};

TEST_F(MountCommand, WorksThroughMount) {
  const Outcome got = sh_with_helper(
      "set -e; mount -t fuse.latchfs src mnt -o $T,admin_group=0,noatime,x-test,nofail,user=me\n"
      "cat mnt/hello; findmnt -no FSTYPE,OPTIONS --mountpoint mnt; umount mnt");
  EXPECT_EQ(got.status, 0) << got.err;
  EXPECT_EQ(got.out.rfind("world\nfuse.latchfs rw,noatime,", 0), 0u) << got.out;
  EXPECT_NE(got.out.find("allow_other"), std::string::npos) << got.out;
  EXPECT_NE(got.out.find("default_permissions"), std::string::npos) << got.out;
  EXPECT_TRUE(daemon_gone());
}

TEST_F(MountCommand, WorksFromFstab) {
  std::ofstream{dir_ / "fstab"} << src().string() << " " << mnt().string()
                                << " fuse.latchfs table=" << table_
                                << ",ro,_netdev,noauto,x-systemd.automount 0 0\n";
  const Outcome got = sh_with_helper("mount --fstab fstab " + q(mnt()) +
                                     " && cat mnt/hello\n"
                                     "echo x > mnt/new && echo written; umount mnt");
  EXPECT_EQ(got.status, 0) << got.err;
  EXPECT_EQ(got.out, "world\n");
  EXPECT_NE(got.err.find("Read-only file system"), std::string::npos) << got.err;
  EXPECT_TRUE(daemon_gone());
}

// What fstab lines carry from other file systems; mount(8) passes each of them on.
TEST_F(MountCommand, TakesOrRefusesEveryMountFlagInOneLine) {
  for (const char* option : {"nodiratime", "strictatime", "lazytime", "defaults,relatime"}) {
    const Outcome got = sh_with_helper(std::string{"mount -t fuse.latchfs src mnt -o $T,"} +
                                       option + " && cat mnt/hello; umount mnt");
    EXPECT_EQ(got.out, "world\n") << option << got.err;
    EXPECT_EQ(got.err, "") << option;
    EXPECT_TRUE(daemon_gone());
  }
  const Outcome links = sh_with_helper(
      "ln -s hello src/link; mount -t fuse.latchfs src mnt -o $T,nosymfollow,nodev,noatime\n"
      "cat mnt/link; findmnt -no OPTIONS mnt; umount mnt");
  EXPECT_EQ(links.out.rfind("rw,nodev,noatime,nosymfollow,", 0), 0u) << links.out;
  EXPECT_EQ(links.err, "cat: mnt/link: Too many levels of symbolic links\n");
  const Outcome again = sh_with_helper(
      "mount -t fuse.latchfs src mnt -o $T; mount -o remount,ro mnt; cat mnt/hello; umount mnt");
  EXPECT_EQ(again.out, "world\n");
  EXPECT_EQ(again.err.rfind("latchfs: option 'remount' is not supported: ", 0), 0u) << again.err;
  EXPECT_EQ(again.lines_of_err(), 1) << again.err;
}

TEST_F(MountCommand, AWrongOptionThroughMountIsSaid) {
  const Outcome got = sh_with_helper("mount -t fuse.latchfs src mnt -o $T,bogus");
  EXPECT_NE(got.status, 0);
  EXPECT_NE(got.err.find("latchfs: unknown option 'bogus'"), std::string::npos) << got.err;
}

// An ordinary user's mounts, in a mount namespace with a /dev/fuse open to all, as distributions
// have it.
class UserCommand : public Command {
 protected:
  void SetUp() override {
    Command::SetUp();
    for (const char* sub : {"src", "mnt"}) fs::create_directories(dir_ / "home" / sub);
    std::ofstream{dir_ / "home/src/file"} << "mine\n";
    ASSERT_EQ(sh("chown -R 65534:65534 home; mknod fuse c 10 229 && chmod 666 fuse").status, 0);
  }

  // What a daemon that was not ended in order leaves.
  void TearDown() override {
    Command::TearDown();
    for (const auto& entry : fs::directory_iterator{"/dev/shm"}) {
      const std::string name = entry.path().filename().string();
      std::error_code kept;
      if (name.rfind("latchfs-" + table_ + "-", 0) == 0) fs::remove(entry.path(), kept);
      if (name.rfind("latchfs-65534.", 0) != 0) continue;
      fs::remove(entry.path() / (table_ + ".table"), kept);
      fs::remove(entry.path(), kept);  // unless another test's table is in it
    }
  }

  // A line of shell in his home.
  [[nodiscard]] Outcome sh_as_user(const std::string& line) const {
    std::ofstream{dir_ / "user"} << "cd home || exit 99\n" << line << "\n";
    return sh(
        "export T; exec unshare --mount sh -c 'mount --bind fuse /dev/fuse && "
        "exec setpriv --reuid 65534 --regid 65534 --clear-groups sh ./user'");
  }
};

TEST_F(UserCommand, MountsHisOwnFiles) {
  const Outcome got = sh_as_user(
      "latchfs src mnt -o $T || exit 2\n"
      "echo more > mnt/new && cat src/new mnt/file mnt/.locks/list; fusermount3 -u mnt");
  EXPECT_EQ(got.status, 0) << got.err;
  EXPECT_EQ(got.out.rfind("more\nmine\n{\"grants\": [", 0), 0u) << got.out << got.err;
  EXPECT_TRUE(daemon_gone());
}

TEST_F(UserCommand, MountsADirectoryThatHeMayEnterButNotRead) {
  fs::create_directories(dir_ / "his/sub");
  std::ofstream{dir_ / "his/sub/file"} << "below\n";
  fs::permissions(dir_ / "his", fs::perms{0711});
  const Outcome got = sh_as_user(
      "latchfs ../his mnt -o $T || exit 2\n"
      "cat mnt/sub/file; ls mnt; fusermount3 -u mnt");
  EXPECT_EQ(got.status, 0) << got.err;
  EXPECT_EQ(got.out, "below\n");
  EXPECT_NE(got.err.find("Permission denied"), std::string::npos) << got.err;
  EXPECT_TRUE(daemon_gone());
}

}  // namespace
}  // namespace latchfs::daemon
