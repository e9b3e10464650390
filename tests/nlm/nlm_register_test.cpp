// The program beside the real rpcbind and the real rpc.statd, in namespaces of their own.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <net/if.h>
#include <pwd.h>
#include <rpc/rpc.h>
#include <rpc/rpcb_clnt.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>

#include "nlm/net_outside.h"
#include "nlm/registration.h"
#include "nlm_daemon.h"
#include "nlm_world.h"

namespace latchfs::test {
namespace {

using nlm::Status;
using std::chrono::milliseconds;

constexpr const char* kRpcbind = "/sbin/rpcbind";
constexpr const char* kStatd = "/sbin/rpc.statd";
constexpr milliseconds kPatience{20'000};

void need(bool done, const char* what) {
  if (!done) throw std::runtime_error{std::string{what} + ": " + std::strerror(errno)};
}

void run(const std::vector<std::string>& words) {
  std::vector<char*> argv;
  for (const std::string& word : words) argv.push_back(const_cast<char*>(word.c_str()));
  argv.push_back(nullptr);
  const pid_t pid = ::fork();
  need(pid >= 0, "fork");
  if (pid != 0) return;
  ::execv(argv[0], argv.data());
  ::_exit(127);
}

// A machine of its own as far as rpcbind and statd can tell.
void make_machine() {
  need(::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0, "private mounts");
  need(::mount("proc", "/proc", "proc", 0, nullptr) == 0, "/proc");
  // (Lock tables, too: their names have process ids, which here are those of any other run.)
  for (const char* place : {"/run", "/var/lib/nfs", "/dev/shm"}) {
    need(::mount("tmpfs", place, "tmpfs", 0, "mode=755") == 0, place);
  }
  std::filesystem::create_directories("/run/rpcbind");
  std::filesystem::create_directories("/run/lock");
  std::filesystem::create_directories("/var/lib/nfs/sm");
  std::filesystem::create_directories("/var/lib/nfs/sm.bak");
  if (const passwd* const statd = ::getpwnam("statd")) {
    for (const char* place : {"/var/lib/nfs", "/var/lib/nfs/sm", "/var/lib/nfs/sm.bak"}) {
      need(::chown(place, statd->pw_uid, statd->pw_gid) == 0, place);
    }
  }
  const UniqueFd fd{::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0)};
  ifreq lo{};
  std::strcpy(lo.ifr_name, "lo");
  lo.ifr_flags = IFF_UP | IFF_RUNNING;
  need(::ioctl(fd.get(), SIOCSIFFLAGS, &lo) == 0, "lo");
}

// The port of a program and version here; 0: none, -1: rpcbind does not answer.
int port_of(std::uint32_t program, std::uint32_t version, bool tcp = false) {
  nlm::NetOutside outside;
  const auto port = outside.port_of({"127.0.0.1", "", tcp}, program, version, kPatience);
  if (!port) return port.error() == errno_code(ENOENT) ? 0 : -1;
  return *port;
}

// Runs `body` in new namespaces, which end with it and take along whatever it started. True:
// nothing failed.
bool in_namespaces(const std::function<void()>& body) {
  const pid_t outer = ::fork();
  if (outer == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (::unshare(CLONE_NEWNET | CLONE_NEWNS | CLONE_NEWPID) != 0) {
      std::perror("unshare");
      ::_exit(1);
    }
    const pid_t inner = ::fork();
    if (inner == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      try {
        body();
      } catch (const std::exception& e) {
        ADD_FAILURE() << e.what();
      }
      std::fflush(nullptr);
      ::_exit(::testing::Test::HasFailure() ? 1 : 0);
    }
    int status = 1;
    TEMP_FAILURE_RETRY(::waitpid(inner, &status, 0));
    ::_exit(inner > 0 && WIFEXITED(status) ? WEXITSTATUS(status) : 1);
  }
  int status = 1;
  TEMP_FAILURE_RETRY(::waitpid(outer, &status, 0));
  return outer > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

void start_rpcbind_and_statd() {
  need(::access(kRpcbind, X_OK) == 0, "no rpcbind: install it");
  need(::access(kStatd, X_OK) == 0, "no rpc.statd: install nfs-common");
  make_machine();
  run({kRpcbind, "-f"});
  need(NlmWorld::await([] { return port_of(nlm::kStatdProgram, 1) == 0; }), "rpcbind");
  run({kStatd, "-F", "--no-notify"});
  need(NlmWorld::await([] { return port_of(nlm::kStatdProgram, 1) > 0; }), "rpc.statd");
}

std::size_t files_in(const std::string& directory) {
  std::size_t count = 0;
  for (const auto& entry : std::filesystem::directory_iterator{directory}) {
    count += entry.is_regular_file() ? 1 : 0;
  }
  return count;
}

TEST(NlmRegister, TakesLockdsPlaceAndGivesItBackAlsoAfterADeath) {
  EXPECT_TRUE(in_namespaces([] {
    start_rpcbind_and_statd();
    const TempDir place;
    // What lockd would have: versions 3 and 4, at some port.
    constexpr std::uint16_t kLockd = 777;
    auto lockd = nlm::Registration::take({"udp", "tcp"}, kLockd, place.path() + "/lockd");
    need(lockd.ok(), "a registration");
    const MountFixture mount{{"", "", false, {"allow_other"}, true}};
    const std::vector<std::string> options{"--register", "--no-statd", "--grace=0",
                                           "--state-dir=" + place.path() + "/state"};
    {
      NlmDaemon nlm{mount.table(), mount.mount(), options};
      EXPECT_EQ(port_of(nlm::kNlmProgram, 4), nlm.port());
      EXPECT_EQ(port_of(nlm::kNlmProgram, 4, true), nlm.port());
      EXPECT_EQ(nlm.stop(), 0);
      EXPECT_EQ(port_of(nlm::kNlmProgram, 4), kLockd);
      EXPECT_EQ(port_of(nlm::kNlmProgram, 4, true), kLockd);
    }
    {
      NlmDaemon nlm{mount.table(), mount.mount(), options};
      nlm.kill();
      EXPECT_NE(port_of(nlm::kNlmProgram, 4), kLockd) << "nobody could give it back";
    }
    NlmDaemon nlm{mount.table(), mount.mount(), options};
    EXPECT_EQ(port_of(nlm::kNlmProgram, 4), nlm.port());
    EXPECT_EQ(nlm.stop(), 0);
    EXPECT_EQ(port_of(nlm::kNlmProgram, 4), kLockd);
    EXPECT_EQ(port_of(nlm::kNlmProgram, 4, true), kLockd);
  }));
}

TEST(NlmRegister, TakesItsPlaceBackFromALockdThatIsStartedLater) {
  EXPECT_TRUE(in_namespaces([] {
    start_rpcbind_and_statd();
    const TempDir place;
    const MountFixture mount{{"", "", false, {"allow_other"}, true}};
    const std::vector<std::string> options{"--register", "--no-statd", "--grace=0",
                                           "--state-dir=" + place.path() + "/state"};
    NlmDaemon nlm{mount.table(), mount.mount(), options};
    const auto is_back = [&] {
      return NlmWorld::await([&] {
        return port_of(nlm::kNlmProgram, 4) == nlm.port() &&
               port_of(nlm::kNlmProgram, 4, true) == nlm.port();
      });
    };
    for (const std::uint16_t port : {std::uint16_t{777}, std::uint16_t{778}}) {
      // With one transport that we do not have, too.
      std::optional<nlm::Registration> lockd;
      const auto registers = [&] {
        auto taken = nlm::Registration::take({"udp", "tcp", "tcp6"}, port, place.path() + "/lockd");
        if (taken.ok()) lockd.emplace(std::move(*taken));
        return taken.ok();
      };
      // (It fails if the place is taken back between its steps.)
      need(NlmWorld::await(registers), "a registration");
      EXPECT_TRUE(is_back()) << nlm.log();
      // It ends as lockd does: whatever is registered is no more.
      if (port == 777) ::rpcb_unset(nlm::kNlmProgram, 4, nullptr);
      EXPECT_TRUE(is_back()) << nlm.log();
    }
    // The last one is remembered by the next run as well.
    nlm.kill();
    NlmDaemon next{mount.table(), mount.mount(), options};
    EXPECT_EQ(next.stop(), 0);
    EXPECT_EQ(port_of(nlm::kNlmProgram, 4), 778);
    EXPECT_EQ(port_of(nlm::kNlmProgram, 4, true), 778);
  }));
}

// A file that NFS clients may lock, and where their locks show.
struct SharedFileMount {
  SharedFileMount() {
    std::ofstream{file} << "x";
    need(::chmod(file.c_str(), 0666) == 0, "chmod");
  }
  [[nodiscard]] std::size_t grants() const {
    std::ifstream in{mount.mount() + "/.locks/list"};
    return nlohmann::json::parse(in)["grants"].size();
  }
  const TempDir place{};
  const MountFixture mount{{"", "", false, {"allow_other"}, true}};
  const std::string file{mount.mount() + "/file"};
};

TEST(NlmRegister, StatdTellsOfAClientsRestartAndIsToldOfOurs) {
  EXPECT_TRUE(in_namespaces([] {
    start_rpcbind_and_statd();
    const SharedFileMount on;
    const std::vector<std::string> options{"--register", "--grace=0",
                                           "--state-dir=" + on.place.path() + "/state"};
    auto nlm = std::make_unique<NlmDaemon>(on.mount.table(), on.mount.mount(), options);
    const auto lock = [&] {
      NlmClient c{nlm->port(), {"client"}};
      nlm::LockCall call = c.request(1, 0, 0);
      call.what.handle = nfs_handle(on.file);
      return c.lock(call);
    };
    EXPECT_EQ(lock(), Status::kGranted);
    EXPECT_EQ(files_in("/var/lib/nfs/sm"), 1U) << "statd keeps the client in mind";

    // The client's monitor, at its start.
    nlm::NetOutside outside;
    const auto restarted = [&](std::int32_t state) {
      return outside
          .call({"127.0.0.1", "", false}, nlm::kStatdProgram, 1, 6,
                nlm::encode_notify_call("127.0.0.1", state), kPatience)
          .ok();
    };
    EXPECT_TRUE(restarted(7));
    EXPECT_TRUE(NlmWorld::await([&] { return on.grants() == 0; })) << nlm->log();
    EXPECT_EQ(lock(), Status::kGranted);
    EXPECT_TRUE(restarted(9));
    EXPECT_TRUE(NlmWorld::await([&] { return on.grants() == 0; })) << nlm->log();

    // Ours: the client's monitor (the same statd, here) hears of it.
    EXPECT_EQ(lock(), Status::kGranted);
    nlm->kill();
    nlm = std::make_unique<NlmDaemon>(on.mount.table(), on.mount.mount(), options);
    EXPECT_TRUE(NlmWorld::await([&] {
      return nlm->log().find("127.0.0.1 knows that we restarted") != std::string::npos;
    })) << nlm->log();
    EXPECT_EQ(files_in("/var/lib/nfs/sm"), 0U) << "what the dead run asked for is forgotten";
    EXPECT_EQ(lock(), Status::kGranted);
    EXPECT_EQ(files_in("/var/lib/nfs/sm"), 1U);
    EXPECT_EQ(nlm->stop(), 0);
    EXPECT_EQ(files_in("/var/lib/nfs/sm"), 0U);
    EXPECT_EQ(files_in(on.place.path() + "/state/monitored"), 1U)
        << "it held a lock: told next time";
  }));
}

// statd calls back by 127.0.0.1, whatever clients speak.
TEST(NlmRegister, StatdFindsItAlsoWhereOnlyIpv6IsServed) {
  EXPECT_TRUE(in_namespaces([] {
    start_rpcbind_and_statd();
    const SharedFileMount on;
    NlmDaemon nlm{
        on.mount.table(),
        on.mount.mount(),
        {"--register", "--grace=0", "--listen=::1", "--state-dir=" + on.place.path() + "/state"}};
    EXPECT_EQ(port_of(nlm::kNlmProgram, 4), nlm.port());
    EXPECT_EQ(port_of(nlm::kNlmProgram, 4, true), 0) << "no client";
    nlm::NetOutside outside;
    for (const bool tcp : {false, true}) {
      const auto six = outside.port_of({"::1", "", tcp}, nlm::kNlmProgram, 4, kPatience);
      EXPECT_EQ(six ? *six : 0, nlm.port());
    }
    NlmClient c{nlm.port(), {"client", false, "::1", {true, 1000, 1000, {}}, "::1"}};
    nlm::LockCall call = c.request(1, 0, 0);
    call.what.handle = nfs_handle(on.file);
    EXPECT_EQ(c.lock(call), Status::kGranted);
    EXPECT_EQ(on.grants(), 1U);
    EXPECT_TRUE(outside.call({"::1", "", false}, nlm::kStatdProgram, 1, 6,
                             nlm::encode_notify_call("::1", 7), kPatience));
    EXPECT_TRUE(NlmWorld::await([&] { return on.grants() == 0; })) << nlm.log();
    EXPECT_EQ(nlm.stop(), 0);
    EXPECT_EQ(port_of(nlm::kNlmProgram, 4), 0);
  }));
}

TEST(NlmRegister, WithoutRpcbindItSaysSo) {
  EXPECT_TRUE(in_namespaces([] {
    make_machine();
    const MountFixture mount{{"", "", false, {"allow_other"}, true}};
    try {
      const NlmDaemon nlm{mount.table(), mount.mount(), {"--register", "--no-statd"}};
      ADD_FAILURE() << "it serves";
    } catch (const std::runtime_error&) {
    }
    // And without statd it gives no locks.
    NlmDaemon nlm{mount.table(), mount.mount(), {"--grace=0"}};
    EXPECT_NE(nlm.log().find("rpc.statd does not answer"), std::string::npos) << nlm.log();
    const std::string file = mount.mount() + "/file";
    std::ofstream{file} << "x";
    NlmClient c{nlm.port(), {"client"}};
    nlm::LockCall call = c.request(1, 0, 0);
    call.what.handle = nfs_handle(file);
    EXPECT_EQ(c.lock(call), Status::kDeniedNolocks);
  }));
}

}  // namespace
}  // namespace latchfs::test
