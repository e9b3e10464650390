// The program on a real mount: clients on the network against processes of this machine.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "nlm_daemon.h"
#include "nlm_world.h"
#include "nlmd/options.h"

namespace latchfs::test {
namespace {

using nlm::LockCall;
using nlm::Proc;
using nlm::Status;

// fcntl on a range; 0 or errno.
int local(int fd, short type, off_t start, off_t length, int command = F_SETLK) {
  struct flock lk {};
  lk.l_type = type;
  lk.l_whence = SEEK_SET;
  lk.l_start = start;
  lk.l_len = length;
  return ::fcntl(fd, command, &lk) == 0 ? 0 : errno;
}

class NlmMount : public ::testing::Test {
 protected:
  NlmMount() : mount{{"", "", false, {"allow_other"}, true}}, nlm{mount.table(), mount.mount()} {}

  std::string make(const std::string& name, mode_t mode = 0666) {
    const std::string path = mount.mount() + "/" + name;
    const UniqueFd fd{::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, mode)};
    EXPECT_TRUE(fd) << path;
    EXPECT_EQ(::fchmod(fd.get(), mode), 0);
    return path;
  }
  static UniqueFd open(const std::string& path) {
    return UniqueFd{::open(path.c_str(), O_RDWR | O_CLOEXEC)};
  }
  NlmClient client(const std::string& name = "build7", bool tcp = false,
                   const std::string& address = "127.0.0.1") {
    return NlmClient{nlm.port(), {name, tcp, address}};
  }
  static LockCall request(const NlmClient& c, const std::string& path, std::uint64_t offset,
                          std::uint64_t length, std::int32_t svid = 1) {
    LockCall call = c.request(1, offset, length, svid);
    call.what.handle = nfs_handle(path);
    return call;
  }
  nlohmann::json grants() {
    std::ifstream in{mount.mount() + "/.locks/list"};
    return nlohmann::json::parse(in)["grants"];
  }

  MountFixture mount;
  NlmDaemon nlm;
};

TEST_F(NlmMount, LocalLocksAndThoseOfClientsExcludeEachOther) {
  const std::string path = make("file");
  const UniqueFd fd = open(path);
  auto c = client();
  const LockCall call = request(c, path, 0, 10, 4242);
  EXPECT_EQ(c.lock(call), Status::kGranted);
  EXPECT_EQ(local(fd.get(), F_WRLCK, 5, 1), EAGAIN);
  EXPECT_EQ(local(fd.get(), F_RDLCK, 5, 1), EAGAIN);
  EXPECT_EQ(local(fd.get(), F_WRLCK, 10, 1), 0);
  EXPECT_EQ(c.lock(request(c, path, 0, 0)), Status::kDenied);
  const auto test = c.test(request(c, path, 10, 0, 5));
  EXPECT_EQ(test.status, Status::kDenied);
  EXPECT_EQ(test.holder.svid, ::getpid());
  EXPECT_EQ(test.holder.offset, 10U);
  EXPECT_EQ(test.holder.length, 1U);
  EXPECT_EQ(c.unlock(call), Status::kGranted);
  EXPECT_EQ(local(fd.get(), F_WRLCK, 0, 0), 0);
  EXPECT_EQ(c.lock(call), Status::kDenied);
  EXPECT_EQ(local(fd.get(), F_UNLCK, 0, 0), 0);
  EXPECT_EQ(c.lock(call), Status::kGranted);
}

TEST_F(NlmMount, TheListSaysWhichMachineOwnsALock) {
  const std::string path = make("file");
  auto one = client("build7");
  auto two = client("build8", true, "127.0.0.9");
  ASSERT_EQ(one.lock(request(one, path, 0, 10, 4242)), Status::kGranted);
  ASSERT_EQ(two.lock(request(two, path, 20, 10, 77)), Status::kGranted);
  const auto list = grants();
  ASSERT_EQ(list.size(), 2U) << list;
  for (const auto& grant : list) {
    const bool first = grant["offset"] == "0";
    EXPECT_EQ(grant["owner_name"], first ? "build7" : "build8") << grant;
    EXPECT_EQ(grant["owner_address"], first ? "127.0.0.1" : "127.0.0.9");
    EXPECT_EQ(grant["pid"], first ? 4242 : 77);
    EXPECT_EQ(grant["uid"], 1000);
    EXPECT_EQ(grant["path"], "/file");
    EXPECT_EQ(grant["kind"], "posix");
  }
}

TEST_F(NlmMount, WhoWaitsIsGrantedAcrossBothKinds) {
  const std::string path = make("file");
  const UniqueFd fd = open(path);
  auto c = client();
  LockCall call = request(c, path, 0, 0);
  call.block = true;
  ASSERT_EQ(local(fd.get(), F_WRLCK, 0, 0), 0);
  ASSERT_EQ(c.lock(call), Status::kBlocked);
  ASSERT_EQ(local(fd.get(), F_UNLCK, 0, 0), 0);
  // (Nobody hears calls here: who asks again learns it.)
  EXPECT_TRUE(NlmWorld::await([&] { return c.lock(call) == Status::kGranted; }));
  std::thread waits{[&] { EXPECT_EQ(local(fd.get(), F_WRLCK, 0, 0, F_SETLKW), 0); }};
  EXPECT_TRUE(NlmWorld::await([&] {
    std::ifstream in{mount.mount() + "/.locks/waiters"};
    return nlohmann::json::parse(in)["waiters"].size() == 1;
  }));
  EXPECT_EQ(c.unlock(call), Status::kGranted);
  waits.join();
}

TEST_F(NlmMount, ItsDeathFreesItsLocks) {
  const std::string path = make("file");
  const UniqueFd fd = open(path);
  auto c = client();
  ASSERT_EQ(c.lock(request(c, path, 0, 0)), Status::kGranted);
  std::thread waits{[&] { EXPECT_EQ(local(fd.get(), F_WRLCK, 0, 0, F_SETLKW), 0); }};
  EXPECT_TRUE(NlmWorld::await([&] {
    std::ifstream in{mount.mount() + "/.locks/waiters"};
    return nlohmann::json::parse(in)["waiters"].size() == 1;
  }));
  nlm.kill();
  waits.join();
  EXPECT_EQ(local(fd.get(), F_UNLCK, 0, 0), 0);

  NlmDaemon again{mount.table(), mount.mount()};
  NlmClient other{again.port(), {"build7"}};
  EXPECT_EQ(other.lock(request(other, path, 0, 0)), Status::kGranted);
  EXPECT_EQ(again.stop(), 0);
  EXPECT_EQ(local(fd.get(), F_WRLCK, 0, 0), 0);
}

TEST_F(NlmMount, AHandleOfAFileThatIsGoneIsStaleAndNamesNoOther) {
  const std::string path = make("file");
  auto c = client();
  const LockCall call = request(c, path, 0, 0);
  ASSERT_EQ(c.lock(call), Status::kGranted);
  struct stat before {};
  ASSERT_EQ(::stat(path.c_str(), &before), 0);
  ASSERT_EQ(::unlink(path.c_str()), 0);
  // As long as it is locked its inode number is nobody else's.
  for (int i = 0; i < 100; ++i) {
    struct stat now {};
    ASSERT_EQ(::stat(make("new" + std::to_string(i)).c_str(), &now), 0);
    ASSERT_NE(now.st_ino, before.st_ino);
  }
  EXPECT_EQ(c.unlock(call), Status::kGranted);
  // (It is alive until the mount's daemon has heard of the last close, too.)
  EXPECT_TRUE(NlmWorld::await([&] {
    const Status status = c.lock(call);
    if (status == Status::kGranted) {
      c.unlock(call);
      NlmWorld::await([&] { return nlm.opens_below(path) == 0; });
    }
    return status == Status::kStaleHandle;
  }));
  for (int i = 0; i < 100; ++i) make("newer" + std::to_string(i));
  EXPECT_EQ(c.lock(call), Status::kStaleHandle);
  LockCall wrong = request(c, make("other"), 0, 0);
  wrong.what.handle.back() ^= 1;  // the generation
  EXPECT_EQ(c.lock(wrong), Status::kStaleHandle);
  EXPECT_TRUE(grants().empty());
}

TEST_F(NlmMount, WhatIsNoFileOfTheUsersIsNotLocked) {
  auto c = client();
  ASSERT_EQ(::mkdir((mount.mount() + "/dir").c_str(), 0777), 0);
  EXPECT_EQ(c.lock(request(c, mount.mount() + "/dir", 0, 0)), Status::kFailed);
  ASSERT_EQ(::mkfifo((mount.mount() + "/fifo").c_str(), 0666), 0);
  EXPECT_EQ(c.lock(request(c, mount.mount() + "/fifo", 0, 0)), Status::kFailed);
  LockCall call = c.request(0, 0, 0);
  nlm::NfsHandle handle;
  handle.fsid = *nlm::Fsid::parse("1");
  handle.root = true;
  call.what.handle = nlm::handle_bytes(handle);
  EXPECT_EQ(c.lock(call), Status::kFailed);
  handle.root = false;
  for (const std::uint64_t node :
       {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{1} << 63, (std::uint64_t{1} << 63) + 2,
        std::uint64_t{3} << 62, ~std::uint64_t{0}}) {
    for (const std::uint32_t generation : {0U, 1U, 0xffffffffU}) {
      handle.node = node;
      handle.generation = generation;
      call.what.handle = nlm::handle_bytes(handle);
      const Status status = c.lock(call);
      EXPECT_TRUE(status == Status::kStaleHandle || status == Status::kFailed)
          << node << " " << generation << " " << static_cast<std::uint32_t>(status);
    }
  }
  EXPECT_TRUE(grants().empty());
}

TEST_F(NlmMount, TheCallersRightsDecide) {
  const std::string path = make("file", 0600);
  ASSERT_EQ(::chown(path.c_str(), 1000, 2000), 0);
  auto c = client();
  const auto as = [&](nlm::Credentials credentials, const std::string& file) {
    c.options.credentials = std::move(credentials);
    const LockCall call = request(c, file, 0, 0);
    const Status status = c.lock(call);
    c.unlock(call);
    return status;
  };
  EXPECT_EQ(as({true, 1000, 1000, {}}, path), Status::kGranted);
  EXPECT_EQ(as({true, 1001, 1001, {}}, path), Status::kFailed);
  EXPECT_EQ(as({true, 1001, 1001, {2000}}, path), Status::kFailed);
  EXPECT_EQ(as({true, 0, 0, {}}, path), Status::kFailed) << "root is squashed";
  EXPECT_EQ(as({}, path), Status::kFailed);
  ASSERT_EQ(::chmod(path.c_str(), 0640), 0);
  const std::string group = path;
  EXPECT_EQ(as({true, 1002, 1002, {5, 2000}}, group), Status::kGranted) << "by a group of his";
  EXPECT_EQ(as({true, 1003, 2000, {}}, group), Status::kGranted);
  EXPECT_EQ(as({true, 1003, 1003, {2001}}, group), Status::kFailed);
  // Ids that nobody has: no, and not silence.
  constexpr std::uint32_t kNone = ~0U;
  EXPECT_EQ(as({true, 1003, 1003, {kNone}}, group), Status::kFailed);
  EXPECT_EQ(as({true, 1003, kNone, {2000}}, group), Status::kFailed);
  EXPECT_EQ(as({true, kNone, 2000, {}}, group), Status::kFailed);
  const std::string write_only = make("write_only", 0200);
  ASSERT_EQ(::chown(write_only.c_str(), 1000, 2000), 0);
  EXPECT_EQ(as({true, 1000, 1000, {}}, write_only), Status::kGranted) << "the owner may always";
  const std::string roots = make("roots", 0600);
  EXPECT_EQ(as({true, 0, 0, {}}, roots), Status::kFailed);
  EXPECT_EQ(as({true, 1000, 0, {0}}, roots), Status::kFailed);

  NlmDaemon trusting{mount.table(), mount.mount(), {"--no-statd", "--grace=0", "--no-root-squash"}};
  NlmClient root{trusting.port(), {"r", false, "127.0.0.1", {true, 0, 0, {}}}};
  EXPECT_EQ(root.lock(request(root, roots, 0, 0)), Status::kGranted);
  NlmDaemon insecure{mount.table(), mount.mount(), {"--no-statd", "--grace=0", "--insecure-locks"}};
  NlmClient anybody{insecure.port(), {"r", false, "127.0.0.1", {true, 9, 9, {}}}};
  EXPECT_EQ(anybody.lock(request(anybody, path, 0, 0)), Status::kGranted);
}

TEST_F(NlmMount, AMountOfAnotherTableIsRefused) {
  const MountFixture other{{mount.source(), "", false, {"allow_other"}, true}};
  const NlmDaemon wrong{other.table(), mount.mount()};
  NlmClient c{wrong.port(), {"c"}};
  EXPECT_EQ(c.lock(request(c, make("file"), 0, 0)), Status::kDeniedNolocks);
  EXPECT_NE(wrong.log().find("no lock is given"), std::string::npos) << wrong.log();
  // Nor where nothing is mounted.
  const TempDir plain;
  const NlmDaemon nowhere{mount.table(), plain.path()};
  NlmClient d{nowhere.port(), {"d"}};
  EXPECT_EQ(d.lock(request(d, make("file"), 0, 0)), Status::kDeniedNolocks);
}

TEST_F(NlmMount, AMountThatWasStartedAnewGoesOn) {
  const std::string path = make("file");
  auto c = client();
  const LockCall held = request(c, path, 0, 10);
  ASSERT_EQ(c.lock(held), Status::kGranted);
  mount.kill_daemon();
  c.options.credentials.uid = 1001;  // (whose leave is not remembered)
  EXPECT_EQ(c.lock([&] {
    LockCall call = held;
    call.what.offset = 10;
    return call;
  }()),
            Status::kDeniedNolocks)
      << nlm.log();
  mount.detach();
  EXPECT_EQ(c.unlock(held), Status::kGranted) << "without a mount";
  ASSERT_EQ(c.lock(held), Status::kDeniedNolocks);
}

TEST_F(NlmMount, WithoutLocksItHoldsUpNoUnmount) {
  auto c = client();
  const LockCall call = request(c, make("file"), 0, 10);
  ASSERT_EQ(c.lock(call), Status::kGranted);
  ASSERT_EQ(c.unlock(call), Status::kGranted);
  EXPECT_TRUE(NlmWorld::await([&] { return nlm.opens_below(mount.mount()) == 0; }));
  // (It is busy until its daemon has heard of the close.)
  EXPECT_TRUE(NlmWorld::await([&] { return mount.unmount(); }));
}

// The command as a shell sees it: what it prints, and its exit status (128 and more: a signal).
struct Outcome {
  int status{};
  std::string text;
};
Outcome command(const std::string& arguments) {
  const std::string line = std::string{std::getenv("LATCHFS_NLM_BIN")} + " " + arguments + " 2>&1";
  Outcome out;
  FILE* const pipe = ::popen(line.c_str(), "re");
  if (pipe == nullptr) return {-1, "popen"};
  std::array<char, 4096> buffer{};
  while (const std::size_t n = std::fread(buffer.data(), 1, buffer.size(), pipe)) {
    out.text.append(buffer.data(), n);
  }
  const int status = ::pclose(pipe);
  out.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return out;
}

// Ends what runs with a directory of ours on its command line, whatever became of the test.
struct EndOfDaemons {
  std::string directory;
  ~EndOfDaemons() {
    std::error_code error;
    for (const auto& entry : std::filesystem::directory_iterator{"/proc", error}) {
      const std::string name = entry.path().filename().string();
      if (name.find_first_not_of("0123456789") != std::string::npos) continue;
      std::string words;
      std::getline(std::ifstream{entry.path() / "cmdline"}, words);
      if (words.find(directory) != std::string::npos) {
        ::kill(static_cast<pid_t>(std::stoi(name)), SIGKILL);
      }
    }
  }
};

TEST_F(NlmMount, TheCommandReturnsWhenItServesAndSaysWhyItDoesNot) {
  const TempDir place;
  const EndOfDaemons end{"--state-dir=" + place.path()};
  const std::string common =
      "--table=" + mount.table() + " --export=1=" + mount.mount() +
      " --listen=127.0.0.1 --insecure-ports --no-statd --grace=0 --state-dir=" + place.path() +
      "/state --log=" + place.path() + "/log ";
  Outcome out = command(common + "--port=" + std::to_string(nlm.port()));
  EXPECT_EQ(out.status, 1);
  EXPECT_EQ(out.text, "latchfs-nlm: the sockets: Address already in use\n");
  out = command("--export=1=/x");
  EXPECT_EQ(out.status, 2);
  EXPECT_NE(out.text.find("no --listen=ADDRESS"), std::string::npos) << out.text;
  out = command("--help");
  EXPECT_EQ(out.status, 0);
  EXPECT_EQ(out.text, nlmd::usage_text());
  EXPECT_EQ(command("--version").status, 0);

  // In the background: it serves when the command returns. (Its port: of the log.)
  out = command(common);
  EXPECT_EQ(out.status, 0) << out.text;
  EXPECT_EQ(out.text, "");
  std::string line;
  std::getline(std::ifstream{place.path() + "/log"}, line);
  unsigned pid = 0;
  unsigned port = 0;
  ASSERT_EQ(std::sscanf(line.c_str(), "%*s [%u] info: serving at port %u", &pid, &port), 2) << line;
  NlmClient c{static_cast<std::uint16_t>(port), {"c"}};
  EXPECT_EQ(c.lock(request(c, make("file"), 0, 0)), Status::kGranted);
  // A second one with its state.
  out = command(common);
  EXPECT_EQ(out.status, 1);
  EXPECT_NE(out.text.find("another latchfs-nlm uses"), std::string::npos) << out.text;
  ASSERT_EQ(::kill(static_cast<pid_t>(pid), SIGTERM), 0);
  EXPECT_TRUE(NlmWorld::await([&] { return grants().empty(); }));
  EXPECT_TRUE(NlmWorld::await(
      [&] { return ::access(("/proc/" + std::to_string(pid) + "/fd/0").c_str(), F_OK) != 0; }));
  // A state directory that others can write to.
  ASSERT_EQ(::chmod((place.path() + "/state").c_str(), 0777), 0);
  out = command(common);
  EXPECT_EQ(out.status, 1);
  EXPECT_NE(out.text.find("not permitted"), std::string::npos) << out.text;
}

TEST_F(NlmMount, WhatAClientDoesAsOftenAsItLikesFillsNoLog) {
  NlmClient::Options who{"build7"};
  who.reserved_port = true;
  NlmClient c{nlm.port(), who};
  const LockCall call = request(c, make("file"), 0, 10);
  constexpr std::size_t kRounds = 100;
  for (std::size_t i = 0; i < kRounds; ++i) {
    ASSERT_EQ(c.lock(call), Status::kGranted);
    c.call(Proc::kFreeAll, nlm::encode_free_call({"build7", 0}));
  }
  EXPECT_TRUE(grants().empty());
  const std::string log = nlm.log();
  std::size_t lines = 0;
  for (std::size_t at = log.find("gives all"); at != std::string::npos;
       at = log.find("gives all", at + 1)) {
    ++lines;
  }
  EXPECT_GE(lines, 1U) << log;
  EXPECT_LT(lines, kRounds / 2) << log;
}

// Its daemon is stopped: whoever asks it waits for good.
TEST_F(NlmMount, AMountThatHangsHoldsUpNoUnlocking) {
  auto c = client();
  const LockCall held = request(c, make("held"), 0, 10);
  const LockCall other = request(c, make("other"), 0, 10);
  ASSERT_EQ(c.lock(held), Status::kGranted);
  {
    class Stopped {
     public:
      explicit Stopped(pid_t pid) : pid_{pid} { ::kill(pid_, SIGSTOP); }
      ~Stopped() { ::kill(pid_, SIGCONT); }

     private:
      const pid_t pid_;
    };
    const Stopped stopped{mount.daemon()};
    auto many = client("many");
    for (int i = 0; i < 40; ++i) {
      many.send(many.message(Proc::kLock, nlm::encode_lock_call(nlm::Form::kLock, other)));
    }
    EXPECT_EQ(c.unlock(held), Status::kGranted);
    EXPECT_EQ(c.call(Proc::kNull, ""), "");
  }
  const UniqueFd fd = open(mount.mount() + "/held");
  EXPECT_EQ(local(fd.get(), F_WRLCK, 0, 10), 0);
  EXPECT_EQ(nlm.stop(), 0) << nlm.log();
}

}  // namespace
}  // namespace latchfs::test
